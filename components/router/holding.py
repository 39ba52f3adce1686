"""What one worker holds on one tier, seen as a forest: where may a chain be broken?

A **hole** is a block the worker does not hold although it holds one of its children, because the middle of a chain was
removed or a parent was never announced. Along a chain without holes, holding is monotone, and a binary search is exact.

Nothing is kept for an ordinary block, one with a child that is held: only chains' ends, forks and holes are noted. The
parent of a block comes with each event. When a removal does not know it, the parent keeps a child too many, and may count as
a hole later when it is none: that costs a step of some search, and changes no result.
"""

import sys
from collections.abc import Iterator, Mapping

_MAX_NAMES = 4096


class Holding:
    """What one worker holds.

    Attributes:
        bit: this worker's bit in all masks.
        blocks: how many it holds.
        refused_blocks: blocks not taken because the index was full.
    """

    def __init__(self, bit: int, holders: Mapping[int, int], holes_of_all: dict[int, int]) -> None:
        """Begin with nothing.

        Args:
            bit: this worker's.
            holders: block → mask of its holders; kept by the index, before it tells of a change here.
            holes_of_all: hole → mask of the workers that have it; each keeps its own bit.
        """
        self.bit = bit
        self.blocks = 0
        self.refused_blocks = 0
        self._holders = holders
        self._leaves: set[int] = set()  # held, no child held
        self._forks: dict[int, int] = {}  # held, two or more children held: how many
        self._holes: dict[int, int] = {}  # not held, children held: how many
        self._holes_of_all = holes_of_all

    @property
    def holes(self) -> int:
        """How many holes there are."""
        return len(self._holes)

    def added_run(self, first_parent: int | None, last: int, blocks: int) -> None:
        """Note a run of `blocks` blocks up to `last`, each the child of the one before; all new here, none was a hole."""
        self.blocks += blocks
        self._leaves.add(last)
        self._gain_child(first_parent)

    def added(self, block: int, parent: int | None) -> None:
        """Note one block that was not held before."""
        self.blocks += 1
        children = self._close(block) if block in self._holes else 0
        if not children:
            self._leaves.add(block)
        elif children > 1:
            self._forks[block] = children
        self._gain_child(parent)

    def removed(self, block: int, parent: int | None) -> None:
        """Note that one block is held no longer."""
        self.blocks -= 1
        if block in self._leaves:
            self._leaves.remove(block)
        else:
            self._open(block, self._forks.pop(block, 1))
        self._lose_child(parent)

    def close_holes(self) -> None:
        """Take this worker's holes out of the shared map: it is about to be forgotten."""
        for block in list(self._holes):
            self._close(block)

    def size_bytes(self) -> int:
        """Return the memory its tables take, without the block hashes themselves."""
        return sum(sys.getsizeof(table) for table in (self._leaves, self._forks, self._holes))

    def _holds(self, block: int) -> bool:
        return self._holders.get(block, 0) & self.bit != 0

    def _gain_child(self, parent: int | None) -> None:
        if parent is None:
            return
        if parent in self._leaves:
            self._leaves.remove(parent)
        elif self._holds(parent):
            self._forks[parent] = self._forks.get(parent, 1) + 1
        else:
            self._open(parent, self._holes.get(parent, 0) + 1)

    def _lose_child(self, parent: int | None) -> None:
        if parent is None:
            return
        if self._holds(parent):
            left = self._forks.pop(parent, 1) - 1
            if left == 0:
                self._leaves.add(parent)
            elif left > 1:
                self._forks[parent] = left
        elif parent in self._holes and (left := self._close(parent) - 1):
            self._open(parent, left)

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


class Names(dict[int, tuple[str, ...]]):
    """Mask → the workers in it: worked out when asked for, then remembered."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: dict[int, str] = {}  # bit → its worker

    def __missing__(self, mask: int) -> tuple[str, ...]:
        if len(self) > _MAX_NAMES:
            self.clear()
        names = self[mask] = tuple(self._workers[bit] for bit in bits(mask))
        return names

    def join(self, bit: int, worker: str) -> None:
        """Call a bit by its worker's name."""
        self._workers[bit] = worker

    def leave(self, bit: int) -> None:
        """Let a bit have no name."""
        del self._workers[bit]
        self.clear()


def bits(mask: int) -> Iterator[int]:
    """Return the bits of `mask`, one by one."""
    while mask:
        bit = mask & -mask
        mask ^= bit
        yield bit
