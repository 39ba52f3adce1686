"""The simulated engine's KV blocks: a fixed number, shared by equal prefixes, the longest unused evicted first.

Pure bookkeeping: no clock, no requests, and no block ids, since only numbers matter. A block is empty, private to one
sequence, or stored under its hash; a stored block is in use or idle, and only idle ones are evicted. Unlike vLLM, empty
blocks are taken before any idle one.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec


class BlockStored(msgspec.Struct, frozen=True, gc=False):
    """A full block can be reused from now on.

    Attributes:
        block_hash: ours, chained over all blocks up to this one.
        parent_hash: of the block before it; None for the first of its prompt.
    """

    block_hash: int
    parent_hash: int | None


class BlockRemoved(msgspec.Struct, frozen=True, gc=False):
    """A block was evicted."""

    block_hash: int


BlockEvent = BlockStored | BlockRemoved


class BlockCache:
    """All KV blocks of one engine.

    Attributes:
        blocks: how many there are.
        events: what was stored and removed since somebody last emptied this list, in order.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.events: list[BlockEvent] = []
        self._empty = blocks
        self._users: dict[int, int] = {}  # block hash → sequences that hold it
        self._idle: OrderedDict[int, None] = OrderedDict()  # stored and unused, the next to evict first

    @property
    def usage(self) -> float:
        """Share of blocks some sequence holds, 0 to 1."""
        return 1.0 - self.available() / self.blocks

    def available(self) -> int:
        """Return how many blocks can be taken."""
        return self._empty + len(self._idle)

    def match(self, block_hashes: Sequence[int]) -> int:
        """Return how many of `block_hashes`, from the first on, are stored."""
        users = self._users
        for matched, block_hash in enumerate(block_hashes):
            if block_hash not in users:
                return matched
        return len(block_hashes)

    def can_start(self, reused: Sequence[int], new_blocks: int) -> bool:
        """Return whether a sequence can hold the stored blocks `reused` and take `new_blocks`."""
        idle = sum(block_hash in self._idle for block_hash in reused)
        return self.available() - idle >= new_blocks

    def hold(self, block_hashes: Iterable[int]) -> None:
        """Use stored blocks, one more sequence each."""
        for block_hash in block_hashes:
            if self._users[block_hash] == 0:
                del self._idle[block_hash]
            self._users[block_hash] += 1

    def take(self, count: int) -> None:
        """Make `count` available blocks private to a sequence, evicting idle ones when there are no empty ones."""
        evicted = max(0, count - self._empty)
        self._empty -= count - evicted
        for _ in range(evicted):
            block_hash, _nothing = self._idle.popitem(last=False)
            del self._users[block_hash]
            self.events.append(BlockRemoved(block_hash))

    def store(self, block: BlockStored) -> bool:
        """Turn a private block into a stored one that its sequence holds; False when an equal one is stored already."""
        if block.block_hash in self._users:
            return False
        self._users[block.block_hash] = 1
        self.events.append(block)
        return True

    def release(self, held: Sequence[int], private_blocks: int) -> None:
        """Give back a sequence's blocks; of the stored ones, the last will be evicted first."""
        self._empty += private_blocks
        for block_hash in reversed(held):
            self._users[block_hash] -= 1
            if self._users[block_hash] == 0:
                self._idle[block_hash] = None
