"""What was routed where a moment ago, and so counts as cached there before any event says so.

A chosen prompt's blocks are noted for the worker that got it, all with one expiry. Since a note holds its prompt from the
first block on, a block's expiry is never earlier than that of a block after it: binary search finds how much is alive.

Two generations of dicts bound the memory without a walk: when the younger is old or full, it becomes the elder, and the
elder is dropped whole. When many prompts come in, notes may so be dropped before they expire.

A prompt's first block leads to the workers it went to, so that a look costs what it finds, however many workers there are.

Writing 512 blocks down takes longer than the rest of a decision. So a note is only put on a pile, which is written down
before the next look, or by `settle` when there is time.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

_MAX_PILE = 64


class _Note(NamedTuple):
    worker: str
    blocks: Sequence[int]
    noted_s: float


class _Generation:
    """Notes of about the same age.

    Attributes:
        known: worker → block → when it expires.
        heads: first block of a prompt → workers it went to; some of them may be forgotten.
    """

    def __init__(self) -> None:
        self.known: dict[str, dict[int, float]] = {}
        self.heads: dict[int, dict[str, None]] = {}


class RecentChoices:
    """Blocks routed to each worker, for a while."""

    def __init__(self, ttl_s: float, max_blocks: int = 4_000_000) -> None:
        """Make an empty memory.

        Args:
            ttl_s: how long a note counts.
            max_blocks: most blocks remembered, over all workers.
        """
        self._ttl_s = ttl_s
        self._max_young = max_blocks // 2
        self._young = _Generation()
        self._elder = _Generation()
        self._young_blocks = 0
        self._young_until_s = 0.0
        self._pile: list[_Note] = []

    def note(self, worker: str, blocks: Sequence[int], now_s: float) -> None:
        """Remember that a prompt with these `blocks`, from its first on, goes to `worker`."""
        self._pile.append(_Note(worker, blocks, now_s))
        if len(self._pile) > _MAX_PILE:
            self.settle()

    def settle(self) -> None:
        """Write down what was noted; changes nothing that can be seen."""
        pile, self._pile = self._pile, []
        for note in pile:
            blocks = note.blocks[: self._max_young]
            self._age(note.noted_s, len(blocks))
            if not blocks:
                continue
            known = self._young.known.setdefault(note.worker, {})
            self._young.heads.setdefault(blocks[0], {})[note.worker] = None
            before = len(known)
            known.update(zip(blocks, repeat(note.noted_s + self._ttl_s)))
            self._young_blocks += len(known) - before

    def overlap(self, blocks: Sequence[int], now_s: float) -> dict[str, int]:
        """Return how many leading `blocks` each worker counts as holding; workers that hold none are left out."""
        if not blocks:
            return {}
        self.settle()
        held: dict[str, int] = {}
        for generation in (self._elder, self._young):
            for worker in generation.heads.get(blocks[0], ()):
                length = _alive(generation.known.get(worker, {}), blocks, now_s)
                if length > held.get(worker, 0):
                    held[worker] = length
        return held

    def forget(self, worker: str) -> None:
        """Drop all notes of `worker`."""
        self._pile = [note for note in self._pile if note.worker != worker]
        self._young_blocks -= len(self._young.known.pop(worker, ()))
        self._elder.known.pop(worker, None)

    def blocks(self) -> int:
        """Return how many blocks are remembered, expired ones included."""
        self.settle()
        return self._young_blocks + sum(map(len, self._elder.known.values()))

    def _age(self, now_s: float, more_blocks: int) -> None:
        if now_s < self._young_until_s and self._young_blocks + more_blocks <= self._max_young:
            return
        self._elder, self._young, self._young_blocks = self._young, _Generation(), 0
        if now_s >= self._young_until_s + self._ttl_s:
            self._elder = _Generation()
        self._young_until_s = now_s + self._ttl_s


def _alive(known: dict[int, float], blocks: Sequence[int], now_s: float) -> int:
    """Return how many leading `blocks` have not expired."""
    get = known.get
    if get(blocks[0], 0.0) <= now_s:
        return 0
    low, high = 0, len(blocks)
    while high - low > 1:
        middle = (low + high) >> 1
        if get(blocks[middle], 0.0) > now_s:
            low = middle
        else:
            high = middle
    return high
