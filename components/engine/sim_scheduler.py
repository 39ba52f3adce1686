"""The simulated engine's scheduler: continuous batching, chunked prefill, preemption; after vLLM's V1 scheduler.

Pure and steppable: the caller passes the time, waits or pretends to, and completes the step. So the same code runs in
real time behind the engine protocol and in a virtual clock with a thousand engines. Knows token ids, not text.

    step = scheduler.schedule(now_s)         # None: nothing to compute before next_arrival_s()
    ...                                      # step.duration_s pass
    for sequence in scheduler.complete(step):
        sequence.tokens[-1]                  # is new
"""

import heapq
from collections import deque
from collections.abc import Callable

import msgspec

from components.engine.sim_cache import BlockCache, BlockEvent, BlockStored
from components.engine.sim_timing import StepWork, Timing
from components.wire.block_hash import extend


class SimSequence:
    """One request inside the scheduler.

    Attributes:
        tokens: the prompt, then the output so far.
        prompt_tokens: length of the prompt.
        max_tokens: output ends at this length.
        next_token: returns the next output token; called once for each, in order.
        cached_tokens: prompt tokens found in the cache when it was first scheduled; None before.
        computed_tokens: tokens whose KV the engine has.
        finished: no step will touch it any more.
    """

    __slots__ = (
        "_hashes",
        "_held",
        "_private_blocks",
        "_root",
        "_sealed_blocks",
        "cached_tokens",
        "computed_tokens",
        "finished",
        "max_tokens",
        "next_token",
        "prompt_tokens",
        "tokens",
    )

    def __init__(self, prompt: list[int], max_tokens: int, next_token: Callable[[], int], root: int) -> None:
        """Begin with `prompt`; sequences with different root hashes share no KV."""
        self.tokens = list(prompt)
        self.next_token = next_token
        self.prompt_tokens = len(prompt)
        self.max_tokens = max_tokens
        self.cached_tokens: int | None = None
        self.computed_tokens = 0
        self.finished = False
        self._root = root
        self._hashes: list[int] = []  # of the full blocks looked at so far
        self._held: list[int] = []  # stored blocks in use
        self._private_blocks = 0  # others in use
        self._sealed_blocks = 0  # full blocks offered to the cache

    @property
    def output_tokens(self) -> int:
        """Length of the output so far."""
        return len(self.tokens) - self.prompt_tokens

    def hashes(self, blocks: int, block_size: int) -> list[int]:
        """Return the chained hashes of the first `blocks` full blocks."""
        known = len(self._hashes)
        if blocks > known:
            tokens = self.tokens[known * block_size : blocks * block_size]
            self._hashes += extend(self._parent(known), tokens, block_size)
        return self._hashes[:blocks]

    def _parent(self, index: int) -> int:
        return self._hashes[index - 1] if index else self._root


class Chunk(msgspec.Struct, gc=False):
    """`tokens` of `sequence` are computed in a step."""

    sequence: SimSequence
    tokens: int


class Step(msgspec.Struct):
    """One forward pass.

    Attributes:
        chunks: what it computes.
        work: the same, in sums.
        duration_s: how long it takes, in seconds.
        events: KV blocks stored and removed for it, in order.
    """

    chunks: list[Chunk]
    work: StepWork
    duration_s: float = 0.0
    events: list[BlockEvent] = []


class Totals(msgspec.Struct):
    """What a scheduler has done since it was made; tokens unless named otherwise."""

    prompt: int = 0
    cached: int = 0
    output: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    preempted_sequences: int = 0


class SimScheduler:
    """Decides what each step computes.

    Attributes:
        running: sequences that hold KV blocks, oldest first.
        waiting: sequences that may start, oldest first.
        totals: counters.
    """

    def __init__(
        self,
        timing: Timing,
        *,
        blocks: int,
        block_size: int,
        max_running_requests: int,
        max_batched_tokens: int,
    ) -> None:
        """Start with an empty cache.

        Args:
            timing: how long things take.
            blocks: KV blocks; the longest sequence must fit.
            block_size: tokens a block.
            max_running_requests: at most so many sequences run.
            max_batched_tokens: at most so many tokens are computed in a step.
        """
        self.running: list[SimSequence] = []
        self.waiting: deque[SimSequence] = deque()
        self.totals = Totals()
        self._arriving: list[tuple[float, int, SimSequence]] = []  # heap: from when on it may start, tie-break, what
        self._arrivals = 0
        self._timing = timing
        self._cache = BlockCache(blocks)
        self._block_size = block_size
        self._max_running_requests = max_running_requests
        self._max_batched_tokens = max_batched_tokens

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks in use, 0 to 1."""
        return self._cache.usage

    @property
    def waiting_requests(self) -> int:
        """Sequences that hold no KV blocks yet."""
        return len(self.waiting) + len(self._arriving)

    def next_arrival_s(self) -> float | None:
        """Return when the next added sequence may start; None when there is none."""
        return self._arriving[0][0] if self._arriving else None

    def add(self, sequence: SimSequence, now_s: float) -> None:
        """Take in a new sequence at the time `now_s`."""
        ready_s = now_s + self._timing.arrival_s(len(self._cached(sequence)) * self._block_size)
        self._arrivals += 1
        heapq.heappush(self._arriving, (ready_s, self._arrivals, sequence))

    def finish(self, sequence: SimSequence) -> None:
        """End a sequence, wherever it is, and free its blocks; one that has finished stays so."""
        if sequence.finished:
            return
        sequence.finished = True
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            self._arriving = [entry for entry in self._arriving if entry[2] is not sequence]
            heapq.heapify(self._arriving)

    def schedule(self, now_s: float) -> Step | None:
        """Return the next step, or None when there is nothing to compute at the time `now_s`."""
        while self._arriving and self._arriving[0][0] <= now_s:
            self.waiting.append(heapq.heappop(self._arriving)[2])
        step = Step([], StepWork())
        budget, all_fit = self._go_on(step)
        if all_fit:
            self._start_waiting(step, budget)
        if not step.chunks:
            return None
        step.duration_s = self._timing.step_s(step.work)
        step.events, self._cache.events = self._cache.events, []
        return step

    def complete(self, step: Step) -> list[SimSequence]:
        """Return the sequences that got a new token from `step`; those at their `max_tokens` have finished."""
        grown = []
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.finished:
                continue
            sequence.computed_tokens += chunk.tokens
            if sequence.computed_tokens == len(sequence.tokens):
                self._append_token(sequence)
                grown.append(sequence)
        return grown

    def _append_token(self, sequence: SimSequence) -> None:
        if sequence.output_tokens == 0:
            self.totals.prompt += sequence.prompt_tokens
            self.totals.cached += sequence.cached_tokens or 0
        self.totals.output += 1
        sequence.tokens.append(sequence.next_token())
        if sequence.output_tokens >= sequence.max_tokens:
            self.finish(sequence)

    def _go_on(self, step: Step) -> tuple[int, bool]:
        """Schedule running sequences; return the tokens left to schedule, and whether nobody was preempted."""
        budget, index = self._max_batched_tokens, 0
        preempted = self.totals.preempted_sequences
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            tokens = min(len(sequence.tokens) - sequence.computed_tokens, budget)
            if self._grow(sequence, tokens):
                self._put(step, sequence, tokens)
                budget -= tokens
                index += 1
            else:
                self._preempt(self.running.pop())
        return budget, preempted == self.totals.preempted_sequences

    def _start_waiting(self, step: Step, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self._max_running_requests:
            sequence = self.waiting[0]
            reused = self._cached(sequence)
            cached = len(reused) * self._block_size
            tokens = min(len(sequence.tokens) - cached, budget)
            if not self._cache.can_start(reused, self._blocks(cached + tokens) - len(reused)):
                return
            self.running.append(self.waiting.popleft())
            self._reuse(sequence, reused)
            self._grow(sequence, tokens)
            self._put(step, sequence, tokens)
            budget -= tokens

    def _cached(self, sequence: SimSequence) -> list[int]:
        """Return the stored blocks `sequence` can start with; its last token is always computed."""
        hashes = sequence.hashes((len(sequence.tokens) - 1) // self._block_size, self._block_size)
        return hashes[: self._cache.match(hashes)]

    def _reuse(self, sequence: SimSequence, reused: list[int]) -> None:
        self._cache.hold(reused)
        sequence._held = reused
        sequence._sealed_blocks = len(reused)
        sequence.computed_tokens = len(reused) * self._block_size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed_tokens
            self.totals.cache_queries += sequence.prompt_tokens
            self.totals.cache_hits += sequence.computed_tokens

    def _grow(self, sequence: SimSequence, tokens: int) -> bool:
        """Give `sequence` room for `tokens` more and store the blocks they fill; False when there is no room."""
        end = sequence.computed_tokens + tokens
        missing = self._blocks(end) - len(sequence._held) - sequence._private_blocks
        if missing:
            if missing > self._cache.available():
                return False
            self._cache.take(missing)
            sequence._private_blocks += missing
        if end // self._block_size > sequence._sealed_blocks:
            self._seal(sequence, end // self._block_size)
        return True

    def _seal(self, sequence: SimSequence, full_blocks: int) -> None:
        """Store the blocks of `sequence` up to `full_blocks`. As in vLLM, others may reuse them at once."""
        size = self._block_size
        hashes = sequence.hashes(full_blocks, size)
        for index in range(sequence._sealed_blocks, full_blocks):
            tokens = sequence.tokens[index * size : (index + 1) * size]
            parent = hashes[index - 1] if index else None
            if self._cache.store(BlockStored(hashes[index], parent, tokens)):
                sequence._held.append(hashes[index])
                sequence._private_blocks -= 1
        sequence._sealed_blocks = full_blocks

    def _put(self, step: Step, sequence: SimSequence, tokens: int) -> None:
        step.chunks.append(Chunk(sequence, tokens))
        start, work = sequence.computed_tokens, step.work
        if tokens == 1 and start >= sequence.prompt_tokens:
            work.decode_sequences += 1
            work.decode_context_tokens += start
        else:
            work.prefill_tokens += tokens
            work.squared_prefill_tokens += (start + tokens) ** 2 - start**2

    def _preempt(self, sequence: SimSequence) -> None:
        """Take a sequence's blocks away; it will compute its tokens again, or find them still stored."""
        self._free(sequence)
        self.waiting.appendleft(sequence)
        self.totals.preempted_sequences += 1

    def _free(self, sequence: SimSequence) -> None:
        self._cache.release(sequence._held, sequence._private_blocks)
        sequence._held = []
        sequence._private_blocks = sequence._sealed_blocks = sequence.computed_tokens = 0

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)
