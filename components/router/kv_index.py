"""The KV index: which worker holds how much of a prompt. One flat dict, block hash → mask of workers, one bit a worker.

Equal chained hash means equal prefix, so how far a worker holds a prompt is found by binary search, all workers at once, not
by a walk. That is exact as long as a worker that holds a block holds all blocks before it. Where this fails (`holding`
tells: a hole), the search for that worker ends at the hole: before its first hole its blocks are unbroken.

Memory: a block takes 32 bytes for its hash and 30 to 60 for its entry, up to 120 where blocks come and go for long
(CPython leaves that much room in a dict), whoever holds it. At most `max_pairs` pairs of block and worker are held.
When they are, new blocks are refused and counted, the front of a run kept; the index then follows the engines as they
evict. A block that is not indexed costs time, never a wrong answer. A forgotten worker's blocks are invisible at once
and freed in small steps, by `sweep` and by each `stored`.

Knows one tier; no events' numbering, no time, no load.
"""

import heapq
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import repeat, zip_longest
from operator import itemgetter

import msgspec

from components.router.holding import Holding, Names, bits

_INT_BYTES = 32
_MAX_CACHED_MASKS = 4096
_MAX_STALE_HOLES = 100_000
_MANY_ENDS = 3  # so many ends of prefixes, found in a first halving, tell of many more
_WALK_BLOCKS = 16  # a worker: up to so many blocks a walk is faster then


class IndexStats(msgspec.Struct, frozen=True):
    """How full the index is.

    Attributes:
        workers: known ones.
        blocks: distinct blocks.
        pairs: of block and worker, those waiting for the sweep included.
        holes: blocks missing in the middle of somebody's chain.
        refused_blocks: not taken because the index was full, by the workers known now.
        size_bytes: memory taken, block hashes included.
    """

    workers: int
    blocks: int
    pairs: int
    holes: int
    refused_blocks: int
    size_bytes: int


class KvIndex:
    """Who holds which blocks, on one tier."""

    def __init__(self, max_pairs: int = 20_000_000) -> None:
        """Make an empty index.

        Args:
            max_pairs: most pairs of block and worker it holds.
        """
        self._max_pairs = max_pairs
        self._pairs = 0
        self._holders: dict[int, int] = {}  # block → mask of its holders, never 0
        self._holes: dict[int, int] = {}  # hole → mask of the workers that have it
        self._workers: dict[str, Holding] = {}
        self._alive = 0  # mask of known workers
        self._retired = 0  # mask of forgotten workers whose blocks are not being freed yet
        self._swept = 0  # mask of those whose blocks are
        self._unswept: list[int] = []  # blocks still to be looked at for them
        self._free_bits: list[int] = []
        self._bits = 0  # handed out so far
        self._masks: dict[int, int] = {}  # so that equal masks are one object
        self._names = Names()

    def overlap(self, blocks: Sequence[int]) -> dict[str, int]:
        """Return how many leading blocks of a prompt each worker holds; workers that hold none are left out.

        Args:
            blocks: the prompt's block hashes, from its first block on.
        """
        held: dict[str, int] = {}
        mask = self._holders.get(blocks[0], 0) & self._alive if blocks else 0
        if mask and self._holes and (holes := self._holes.keys() & blocks):
            for end in sorted(map(blocks.index, holes)):
                if broken := self._holes[blocks[end]] & mask:
                    self._search(blocks, end, broken, held)
                    mask &= ~broken
        if mask:
            self._search(blocks, len(blocks), mask, held)
        return held

    def _search(self, blocks: Sequence[int], end: int, mask: int, held: dict[str, int]) -> None:
        """Find how much of ``blocks[:end]`` each worker in `mask` holds; all hold the first block and have no hole there."""
        get = self._holders.get
        low, at_low, high, at_high = 0, mask, end - 1, get(blocks[end - 1], 0) & mask
        if at_high:
            held.update(dict.fromkeys(self._names[at_high], end))
        later = []
        while at_low != at_high:
            while high - low > 1:
                middle = (low + high) >> 1
                at_middle = get(blocks[middle], 0) & mask
                if at_middle == at_high:
                    high = middle
                elif at_middle == at_low:
                    low = middle
                else:
                    later.append((middle, at_middle, high, at_high))
                    high, at_high = middle, at_middle
                    if len(later) > _MANY_ENDS and end < _WALK_BLOCKS * mask.bit_count():
                        return self._walk(blocks[low:end], low, at_low, held)
            ended = at_low & ~at_high
            held.update(dict.fromkeys(self._names[ended], low + 1))
            if not later:
                return None
            low, at_low, high, at_high = later.pop()
        return None

    def _walk(self, blocks: Sequence[int], start: int, mask: int, held: dict[str, int]) -> None:
        """Do as `_search` block by block: where nearly every block is somebody's last, that takes less than halving."""
        names, holders = self._names, self._holders
        longest = bisect_left(blocks, True, key=lambda block: not holders.get(block, 0) & mask)
        masks = itemgetter(*blocks[:longest])(holders)  # a tuple, for there are many
        holes = self._holes and not self._holes.keys().isdisjoint(blocks)
        if masks[0] != mask or holes or self._retired or self._unswept:  # else nobody joins on the way: who is in was always
            masks = [each & mask for each in masks]
        before, length = masks[0], start
        for now in masks:
            if now is not before:
                for name in names[before ^ now]:
                    held[name] = length
                before = now
            length += 1
        held.update(dict.fromkeys(names[before], length))

    def stored(self, worker: str, blocks: Sequence[int], parent: int | None = None) -> None:
        """Note that `worker` now holds `blocks`; those it holds already change nothing.

        Args:
            worker: known or new.
            blocks: consecutive blocks of one prompt, in order.
            parent: the block before the first; None only if ``blocks[0]`` is the first of its prompt.
        """
        holding = self._workers.get(worker) or self._admit(worker)
        if self._retired or self._unswept:
            self.sweep(2 * len(blocks))
        room = self._max_pairs - self._pairs
        if len(blocks) > room:
            holding.refused_blocks += len(blocks) - room
            blocks = blocks[:room]
        if not blocks:
            return
        before = holding.blocks
        if self._mark_new(blocks, holding.bit):
            holding.added_run(parent, blocks[-1], len(blocks))
        else:
            self._mark(blocks, parent, holding)
        self._pairs += holding.blocks - before

    def _mark_new(self, blocks: Sequence[int], bit: int) -> bool:
        """Mark blocks that nobody holds or misses: the common case, done in C; False if they are not so or one repeats."""
        holders, holes = self._holders, self._holes
        if not holders.keys().isdisjoint(blocks) or (holes and not holes.keys().isdisjoint(blocks)):
            return False
        known = len(holders)
        holders.update(zip(blocks, repeat(bit)))
        if len(holders) - known == len(blocks):
            return True
        for block in set(blocks):
            del holders[block]
        return False

    def _mark(self, blocks: Sequence[int], parent: int | None, holding: Holding) -> None:
        holders, get, one_object, bit = self._holders, self._holders.get, self._masks.setdefault, holding.bit
        for block in blocks:
            mask = get(block, 0)
            if not mask & bit:
                mask |= bit
                holders[block] = one_object(mask, mask)
                holding.added(block, parent)
            parent = block
        if len(self._masks) > _MAX_CACHED_MASKS:
            self._masks.clear()

    def removed(self, worker: str, blocks: Sequence[int], parents: Sequence[int | None] = ()) -> None:
        """Note that `worker` no longer holds `blocks`; those it does not hold change nothing.

        Args:
            worker: known; others are ignored.
            blocks: in any order.
            parents: the block before each, None where there is none or it is unknown; may end early.
        """
        holding = self._workers.get(worker)
        if holding is None:
            return
        get, before = self._holders.get, holding.blocks
        for block, parent in zip_longest(blocks, parents[: len(blocks)]):
            mask = get(block, 0)
            if mask & holding.bit:
                self._unmark(block, mask ^ holding.bit)
                holding.removed(block, parent)
        self._pairs += holding.blocks - before
        if holding.holes > holding.blocks + _MAX_STALE_HOLES:  # each has a child that is held, unless parents were not told
            self.cleared(worker)

    def _unmark(self, block: int, mask: int) -> None:
        """Leave those in `mask` as the block's holders."""
        if mask:
            self._holders[block] = self._masks.setdefault(mask, mask)
        else:
            del self._holders[block]

    def cleared(self, worker: str) -> None:
        """Note that `worker` holds nothing any more; it stays known."""
        if worker in self._workers:
            self.forget(worker)
            self._admit(worker)

    def forget(self, worker: str) -> None:
        """Drop `worker` and all it holds: at once for `overlap`, in steps for memory."""
        if holding := self._workers.pop(worker, None):
            holding.close_holes()
            self._alive &= ~holding.bit
            self._names.leave(holding.bit)
            if holding.blocks:
                self._retired |= holding.bit
            else:
                heapq.heappush(self._free_bits, holding.bit)

    def sweep(self, max_blocks: int) -> int:
        """Look at `max_blocks` blocks, free those of forgotten workers, and return how many are still to be looked at."""
        while max_blocks > 0 and (self._unswept or self._retired):
            if not self._unswept:
                self._unswept, self._swept, self._retired = list(self._holders), self._retired, 0
            step = self._unswept[-max_blocks:]
            del self._unswept[-max_blocks:]
            max_blocks -= len(step)
            self._free(step)
            if not self._unswept:
                for bit in bits(self._swept):
                    heapq.heappush(self._free_bits, bit)
        return len(self._unswept) + (len(self._holders) if self._retired else 0)

    def _free(self, blocks: Sequence[int]) -> None:
        get, swept = self._holders.get, self._swept
        for block in blocks:
            mask = get(block, 0)
            if gone := mask & swept:
                self._unmark(block, mask ^ gone)
                self._pairs -= gone.bit_count()

    def held_by(self, worker: str) -> Iterator[int]:
        """Return what `worker` holds, in no order. Walks the whole index, which must not change meanwhile."""
        bit = self._workers[worker].bit if worker in self._workers else 0
        return (block for block, mask in self._holders.items() if mask & bit)

    def workers(self) -> dict[str, int]:
        """Return how many blocks each known worker holds."""
        return {worker: holding.blocks for worker, holding in self._workers.items()}

    def refused(self, worker: str) -> int:
        """Return how many of a worker's blocks were not taken because the index was full."""
        holding = self._workers.get(worker)
        return holding.refused_blocks if holding else 0

    def stats(self) -> IndexStats:
        """Return how full the index is; cheap."""
        holdings = self._workers.values()
        tables = sum(map(sys.getsizeof, (self._holders, self._holes, self._unswept)))
        return IndexStats(
            workers=len(holdings),
            blocks=len(self._holders),
            pairs=self._pairs,
            holes=sum(holding.holes for holding in holdings),
            refused_blocks=sum(holding.refused_blocks for holding in holdings),
            size_bytes=tables + _INT_BYTES * len(self._holders) + sum(each.size_bytes() for each in holdings),
        )

    def _admit(self, worker: str) -> Holding:
        if self._free_bits:
            bit = heapq.heappop(self._free_bits)
        else:
            bit = 1 << self._bits
            self._bits += 1
        self._alive |= bit
        self._names.join(bit, worker)
        holding = self._workers[worker] = Holding(bit, self._holders, self._holes)
        return holding
