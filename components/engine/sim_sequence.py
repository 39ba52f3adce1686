"""What the simulated engine's scheduler schedules: sequences, and sequences that wait for a time of their own. Pure."""

import heapq
from collections.abc import Callable

from components.wire.block_hash import extend


class SimSequence:
    """One request inside the scheduler.

    Attributes:
        tokens: the prompt, then the output so far.
        prompt_tokens: length of the prompt.
        output_tokens: length of the output so far.
        max_tokens: output ends at this length.
        next_token: returns the next output token; called once for each, in order.
        cached_tokens: prompt tokens found in a cache when it was first scheduled; None before.
        computed_tokens: tokens whose KV the engine has.
        loading_tokens: tokens after these whose KV is coming from the shared cache.
        finished: no step will touch it any more.
        held: stored blocks in use; these and the next three are the scheduler's own.
        private_blocks: others in use.
        sealed_blocks: full blocks offered to the cache.
        easy_tokens: while no more tokens are computed, no block must be taken or sealed.
    """

    __slots__ = (
        "_hashes",
        "_root",
        "cached_tokens",
        "computed_tokens",
        "easy_tokens",
        "finished",
        "held",
        "loading_tokens",
        "max_tokens",
        "next_token",
        "output_tokens",
        "private_blocks",
        "prompt_tokens",
        "sealed_blocks",
        "tokens",
    )

    def __init__(self, prompt: list[int], max_tokens: int, next_token: Callable[[], int], root: int) -> None:
        """Begin with `prompt`; sequences with different root hashes share no KV."""
        self.tokens = list(prompt)
        self.next_token = next_token
        self.prompt_tokens = len(prompt)
        self.output_tokens = 0
        self.max_tokens = max_tokens
        self.cached_tokens: int | None = None
        self.computed_tokens = 0
        self.loading_tokens = 0
        self.finished = False
        self.held: list[int] = []
        self.private_blocks = 0
        self.sealed_blocks = 0
        self.easy_tokens = 0
        self._root = root
        self._hashes: list[int] = []  # of the full blocks looked at so far

    def grow(self, count: int = 1) -> None:
        """Add the next output tokens; all but the last are computed."""
        for _ in range(count):
            self.tokens.append(self.next_token())
        self.output_tokens += count
        self.computed_tokens += count - 1

    def hashes(self, blocks: int, block_size: int) -> list[int]:
        """Return the chained hashes of the first `blocks` full blocks."""
        known = len(self._hashes)
        if blocks > known:
            tokens = self.tokens[known * block_size : blocks * block_size]
            self._hashes += extend(self._parent(known), tokens, block_size)
        return self._hashes[:blocks]

    def prompt_hashes(self, block_size: int) -> list[int]:
        """Return the hashes of the prompt's full blocks."""
        return self.hashes(self.prompt_tokens // block_size, block_size)

    def _parent(self, index: int) -> int:
        return self._hashes[index - 1] if index else self._root


class TimedSequences:
    """Sequences, each until its time has come; of those at the same time, the first to come goes first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, SimSequence]] = []
        self._added = 0

    def __len__(self) -> int:
        return len(self._heap)

    def next_s(self) -> float | None:
        """Return when the next one's time has come; None when there is none."""
        return self._heap[0][0] if self._heap else None

    def add(self, sequence: SimSequence, ready_s: float) -> None:
        """Keep `sequence` until the time `ready_s`."""
        self._added += 1
        heapq.heappush(self._heap, (ready_s, self._added, sequence))

    def take(self, now_s: float) -> list[SimSequence]:
        """Return those whose time has come at `now_s`, and forget them."""
        taken = []
        while self._heap and self._heap[0][0] <= now_s:
            taken.append(heapq.heappop(self._heap)[2])
        return taken

    def remove(self, sequence: SimSequence) -> bool:
        """Forget `sequence`; False when it is not here."""
        kept = [entry for entry in self._heap if entry[2] is not sequence]
        if len(kept) == len(self._heap):
            return False
        heapq.heapify(kept)
        self._heap = kept
        return True
