"""The blocks one worker holds on one tier, as a forest: each block knows its parent, and children are counted.

Exists for one question: where may a chain be broken? A **hole** is a block the worker does not hold although it holds one of
its children, because the middle of a chain was removed or a parent was never announced. Along a chain without holes, holding
is monotone, and a binary search over it is exact. Most blocks have one child, so counts are kept only for the others.

Knows nothing of other workers, but marks its holes in the map that all workers share.
"""

import sys
from collections.abc import Sequence


class Holding:
    """What one worker holds.

    Attributes:
        bit: this worker's bit in all masks.
        parents: block held → the block before it; None for the first block of a prompt.
        refused_blocks: blocks not taken because the index was full.
    """

    def __init__(self, bit: int, holes_of_all: dict[int, int]) -> None:
        self.bit = bit
        self.parents: dict[int, int | None] = {}
        self.refused_blocks = 0
        self._leaves: set[int] = set()  # held, no child held
        self._forks: dict[int, int] = {}  # held, two or more children held: how many
        self._holes: dict[int, int] = {}  # not held, children held: how many
        self._holes_of_all = holes_of_all  # hole → mask of the workers that have it

    @property
    def holes(self) -> int:
        """How many holes there are."""
        return len(self._holes)

    def add_run(self, blocks: Sequence[int], parent: int | None) -> None:
        """Take a run of blocks, each the child of the one before; none is held, none is a hole, none repeats.

        Args:
            blocks: at least one.
            parent: of the first block.
        """
        self.parents.update(zip(blocks, (parent, *blocks), strict=False))
        self._leaves.add(blocks[-1])
        self._gain_child(parent)

    def add(self, block: int, parent: int | None) -> bool:
        """Take one block; False if it was held already."""
        if block in self.parents:
            return False
        self.parents[block] = parent
        children = self._close(block) if block in self._holes else 0
        if not children:
            self._leaves.add(block)
        elif children > 1:
            self._forks[block] = children
        self._gain_child(parent)
        return True

    def remove(self, block: int) -> bool:
        """Drop one block; False if it was not held."""
        if block not in self.parents:
            return False
        parent = self.parents.pop(block)
        if block in self._leaves:
            self._leaves.remove(block)
        else:
            self._open(block, self._forks.pop(block, 1))
        self._lose_child(parent)
        return True

    def close_holes(self) -> None:
        """Take this worker's holes out of the shared map: it is about to be forgotten."""
        for block in list(self._holes):
            self._close(block)

    def size_bytes(self) -> int:
        """Return the memory its tables take, without the block hashes themselves."""
        tables = (self.parents, self._leaves, self._forks, self._holes)
        return sum(sys.getsizeof(table) for table in tables)

    def _gain_child(self, parent: int | None) -> None:
        if parent is None:
            return
        if parent not in self.parents:
            self._open(parent, self._holes.get(parent, 0) + 1)
        elif parent in self._leaves:
            self._leaves.remove(parent)
        else:
            self._forks[parent] = self._forks.get(parent, 1) + 1

    def _lose_child(self, parent: int | None) -> None:
        if parent is None:
            return
        if parent not in self.parents:
            left = self._close(parent) - 1
            if left:
                self._open(parent, left)
            return
        left = self._forks.pop(parent, 1) - 1
        if left == 0:
            self._leaves.add(parent)
        elif left > 1:
            self._forks[parent] = left

    def _open(self, block: int, children: int) -> None:
        self._holes[block] = children
        self._holes_of_all[block] = self._holes_of_all.get(block, 0) | self.bit

    def _close(self, block: int) -> int:
        left = self._holes_of_all[block] & ~self.bit
        if left:
            self._holes_of_all[block] = left
        else:
            del self._holes_of_all[block]
        return self._holes.pop(block)
