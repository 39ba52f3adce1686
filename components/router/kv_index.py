"""The KV index: which worker holds how much of a prompt. One flat dict, block hash → mask of workers, one bit a worker.

Equal chained hash means equal prefix, so how far a worker holds a prompt is found by binary search, all workers at once, not
by a walk. That is exact as long as a worker that holds a block holds all blocks before it. Where this fails (`holding`
tells: a hole), the search for that worker ends at the hole: before its first hole its blocks are unbroken.

Memory: 100 to 150 bytes a block with one holder while the index fills, up to 200 where blocks come and go for long (CPython
leaves that much room in a dict), and at most `max_pairs` pairs of block and worker. When that many are held, new blocks are
refused and counted, the front of a run kept; the index then follows the engines as they evict. A block that is not indexed
costs time, never a wrong answer. A forgotten worker's blocks are invisible at once and freed in small steps, by `sweep` and
by each `stored`.

Knows one tier; no events' numbering, no time, no load.
"""

import heapq
import sys
from collections.abc import Iterator, Sequence
from itertools import repeat

import msgspec

from components.router.holding import Holding

_INT_BYTES = 32
_MAX_CACHED_MASKS = 4096


class Run(msgspec.Struct, frozen=True):
    """Consecutive blocks of one prompt.

    Attributes:
        parent: the block before the first one; None if that is the first of its prompt.
        blocks: block hashes, in order.
    """

    parent: int | None
    blocks: list[int]


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
        self._retired: list[Holding] = []  # forgotten workers, not swept yet
        self._free_bits: list[int] = []
        self._bits = 0  # handed out so far
        self._masks: dict[int, int] = {}  # so that equal masks are one object
        self._names: dict[int, tuple[str, ...]] = {}  # mask → workers

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
            held.update(dict.fromkeys(self._names.get(at_high) or self._name(at_high), end))
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
            ended = at_low & ~at_high
            held.update(dict.fromkeys(self._names.get(ended) or self._name(ended), low + 1))
            if not later:
                return
            low, at_low, high, at_high = later.pop()

    def stored(self, worker: str, blocks: Sequence[int], parent: int | None = None) -> None:
        """Note that `worker` now holds `blocks`; those it holds already change nothing.

        Args:
            worker: known or new.
            blocks: consecutive blocks of one prompt, in order.
            parent: the block before the first; None only if ``blocks[0]`` is the first of its prompt.
        """
        holding = self._workers.get(worker) or self._admit(worker)
        if self._retired:
            self.sweep(2 * len(blocks))
        room = self._max_pairs - self._pairs
        if len(blocks) > room:
            holding.refused_blocks += len(blocks) - room
            blocks = blocks[:room]
        if not blocks:
            return
        if self._mark_new(blocks, holding.bit):
            holding.add_run(blocks, parent)
        else:
            pairs = zip(blocks, (parent, *blocks), strict=False)
            blocks = [block for block, before in pairs if holding.add(block, before)]
            self._mark(blocks, holding.bit)
        self._pairs += len(blocks)

    def _mark_new(self, blocks: Sequence[int], bit: int) -> bool:
        """Mark blocks that nobody holds or misses: the common case, done in C; False if they are not so or one repeats."""
        holders, holes = self._holders, self._holes
        if not holders.keys().isdisjoint(blocks) or (holes and not holes.keys().isdisjoint(blocks)):
            return False
        known = len(holders)
        holders.update(zip(blocks, repeat(bit)))
        return len(holders) - known == len(blocks)

    def _mark(self, blocks: Sequence[int], bit: int) -> None:
        holders, get, one_object = self._holders, self._holders.get, self._masks.setdefault
        for block in blocks:
            mask = get(block, 0) | bit
            holders[block] = one_object(mask, mask)
        if len(self._masks) > _MAX_CACHED_MASKS:
            self._masks.clear()

    def removed(self, worker: str, blocks: Sequence[int]) -> None:
        """Note that `worker` no longer holds `blocks`; those it does not hold change nothing."""
        if holding := self._workers.get(worker):
            self._unmark([block for block in blocks if holding.remove(block)], holding.bit)

    def _unmark(self, blocks: Sequence[int], bit: int) -> None:
        holders, one_object = self._holders, self._masks.setdefault
        for block in blocks:
            mask = holders[block] & ~bit
            if mask:
                holders[block] = one_object(mask, mask)
            else:
                del holders[block]
        self._pairs -= len(blocks)

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
            self._names.clear()
            self._retired.append(holding)

    def sweep(self, max_blocks: int) -> int:
        """Free at most `max_blocks` blocks of forgotten workers, and return how many are left to free."""
        while self._retired and max_blocks > 0:
            holding = self._retired[-1]
            step = min(max_blocks, len(holding.parents))
            self._unmark([holding.parents.popitem()[0] for _ in range(step)], holding.bit)
            max_blocks -= step
            if not holding.parents:
                heapq.heappush(self._free_bits, holding.bit)
                self._retired.pop()
        return sum(len(holding.parents) for holding in self._retired)

    def snapshot(self, worker: str, max_blocks: int = 65_536) -> Iterator[Run]:
        """Return what `worker` holds now, as runs of at most `max_blocks`; `stored` for each, in any order, restores it."""
        holding = self._workers.get(worker)
        parents = holding.parents if holding else {}
        return _runs(list(parents), list(parents.values()), max_blocks)

    def workers(self) -> dict[str, int]:
        """Return how many blocks each known worker holds."""
        return {worker: len(holding.parents) for worker, holding in self._workers.items()}

    def refused(self, worker: str) -> int:
        """Return how many of a worker's blocks were not taken because the index was full."""
        holding = self._workers.get(worker)
        return holding.refused_blocks if holding else 0

    def stats(self) -> IndexStats:
        """Return how full the index is; cheap."""
        holdings = list(self._workers.values())
        tables = sys.getsizeof(self._holders) + sys.getsizeof(self._holes)
        return IndexStats(
            workers=len(holdings),
            blocks=len(self._holders),
            pairs=self._pairs,
            holes=sum(holding.holes for holding in holdings),
            refused_blocks=sum(holding.refused_blocks for holding in holdings),
            size_bytes=tables + _INT_BYTES * self._pairs + sum(each.size_bytes() for each in holdings + self._retired),
        )

    def _admit(self, worker: str) -> Holding:
        if self._free_bits:
            bit = heapq.heappop(self._free_bits)
        else:
            bit = 1 << self._bits
            self._bits += 1
        self._alive |= bit
        self._names.clear()
        holding = self._workers[worker] = Holding(bit, self._holes)
        return holding

    def _name(self, mask: int) -> tuple[str, ...]:
        """Return the workers in `mask`, and remember them."""
        if len(self._names) > _MAX_CACHED_MASKS:
            self._names.clear()
        names = self._names[mask] = tuple(name for name, holding in self._workers.items() if holding.bit & mask)
        return names


def _runs(blocks: list[int], parents: list[int | None], max_blocks: int) -> Iterator[Run]:
    """Join neighbours that follow one another in their prompt."""
    start = 0
    for at in range(1, len(blocks) + 1):
        if at == len(blocks) or at - start == max_blocks or parents[at] != blocks[at - 1]:
            yield Run(parents[start], blocks[start:at])
            start = at
