"""The simulated engine's scheduler: continuous batching, chunked prefill, preemption; after vLLM's V1 scheduler.

Pure and steppable: the caller passes the time, waits or pretends to, and completes the step. So the same code runs in
real time behind the engine protocol and in a virtual clock with a thousand engines. Knows token ids, not text.

    step = scheduler.schedule(now_s)         # None: nothing to compute before next_arrival_s()
    ...                                      # step.duration_s pass
    for sequence in scheduler.complete(step):
        sequence.tokens[-1]                  # is new
"""

from collections import deque

from components.engine.sim_cache import BlockCache, BlockStored
from components.engine.sim_sequence import SimSequence, TimedSequences
from components.engine.sim_shared import SharedPrompts
from components.engine.sim_step import Chunk, Step, Totals
from components.engine.sim_timing import StepWork, Timing


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
        shared: SharedPrompts | None = None,
    ) -> None:
        """Start with an empty cache.

        Args:
            timing: how long things take.
            blocks: KV blocks; the longest sequence must fit.
            block_size: tokens a block.
            max_running_requests: at most so many sequences run.
            max_batched_tokens: at most so many tokens are computed in a step.
            shared: the cache it shares with other engines.
        """
        self.running: list[SimSequence] = []
        self.waiting: deque[SimSequence] = deque()
        self.totals = Totals()
        self._arriving = TimedSequences()  # may start then
        self._loading = TimedSequences()  # hold blocks, and have their KV then
        self._timing = timing
        self._cache = BlockCache(blocks)
        self._shared = shared
        self._block_size = block_size
        self._max_running_requests = max_running_requests
        self._max_batched_tokens = max_batched_tokens

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks in use, 0 to 1."""
        return self._cache.usage

    @property
    def waiting_requests(self) -> int:
        """Sequences that have not started, or wait for KV from the shared cache."""
        return len(self.waiting) + len(self._arriving) + len(self._loading)

    def next_arrival_s(self) -> float | None:
        """Return when the next added sequence may start, or has its KV loaded; None when there is none."""
        times_s = (self._arriving.next_s(), self._loading.next_s())
        return min((time_s for time_s in times_s if time_s is not None), default=None)

    def add(self, sequence: SimSequence, now_s: float) -> None:
        """Take in a new sequence at the time `now_s`."""
        self._arriving.add(sequence, now_s + self._timing.arrival_s(len(self._cached(sequence)) * self._block_size))

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
        elif self._loading.remove(sequence):
            self._free(sequence)
        else:
            self._arriving.remove(sequence)

    def schedule(self, now_s: float) -> Step | None:
        """Return the next step, or None when there is nothing to compute at the time `now_s`."""
        self.waiting.extend(self._arriving.take(now_s))
        for sequence in self._loading.take(now_s):
            self._have_loaded(sequence)
            self.running.append(sequence)
        step = Step([], StepWork())
        budget, all_fit = self._go_on(step)
        if all_fit:
            self._start_waiting(step, budget, now_s)
        if not step.chunks:
            return None
        step.work.kv_usage = self.kv_usage
        step.duration_s = self._timing.step_s(step.work)
        step.events, self._cache.events = self._cache.events, []
        return step

    def repeats(self, step: Step) -> int:
        """Return how many times in a row `step` may be taken: steps that differ in nothing but the tokens they add.

        That is once, unless all it does is to decode, nobody waits, no block is taken or stored, and nobody ends before the
        last time. The caller ends a run early where a sequence arrives, takes `Timing.run_s`, and tells by `Step.times`.
        """
        if self.waiting or self._loading or step.events or step.work.decode_sequences < len(self.running):
            return 1
        return min(
            min(each.easy_tokens - each.computed_tokens, each.max_tokens - each.output_tokens) for each in self.running
        )

    def complete(self, step: Step) -> list[SimSequence]:
        """Return the sequences that got a new token from `step`; those at their `max_tokens` have finished."""
        grown, finished = [], []
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.finished:
                continue
            sequence.computed_tokens += chunk.tokens
            if sequence.computed_tokens == len(sequence.tokens):
                if sequence.output_tokens == 0:
                    self._count_prompt(sequence, step)
                sequence.grow(step.times)
                grown.append(sequence)
                if sequence.output_tokens >= sequence.max_tokens:
                    finished.append(sequence)
        self.totals.output += len(grown) * step.times
        for sequence in finished:
            self.finish(sequence)
        return grown

    def _count_prompt(self, sequence: SimSequence, step: Step) -> None:
        """Note that a prompt is computed; from now on others can load it from the shared cache."""
        if self._shared is not None:
            step.shared += self._shared.store(sequence.prompt_hashes(self._block_size))
        self.totals.prompt += sequence.prompt_tokens
        self.totals.cached += sequence.cached_tokens or 0

    def _go_on(self, step: Step) -> tuple[int, bool]:
        """Schedule running sequences; return the tokens left to schedule, and whether nobody was preempted."""
        budget, index = self._max_batched_tokens, 0
        preempted = self.totals.preempted_sequences
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            start = sequence.computed_tokens
            tokens = min(len(sequence.tokens) - start, budget)
            if start + tokens <= sequence.easy_tokens or self._grow(sequence, tokens):
                self._put(step, sequence, tokens)
                budget -= tokens
                index += 1
            else:
                self._preempt(self.running.pop())
        return budget, preempted == self.totals.preempted_sequences

    def _start_waiting(self, step: Step, budget: int, now_s: float) -> None:
        while self.waiting and budget > 0 and len(self.running) + len(self._loading) < self._max_running_requests:
            sequence = self.waiting[0]
            reused = self._cached(sequence)
            cached = len(reused) * self._block_size
            loaded = self._loadable(sequence, cached)
            tokens = min(len(sequence.tokens) - cached - loaded, budget)
            if not self._cache.can_start(reused, self._blocks(cached + loaded + tokens) - len(reused)):
                return
            self.waiting.popleft()
            self._reuse(sequence, reused, loaded)
            if loaded and self._load(sequence, loaded, now_s):
                continue
            self.running.append(sequence)
            self._grow(sequence, tokens)
            self._put(step, sequence, tokens)
            budget -= tokens

    def _cached(self, sequence: SimSequence) -> list[int]:
        """Return the stored blocks `sequence` can start with; its last token is always computed."""
        hashes = sequence.hashes((len(sequence.tokens) - 1) // self._block_size, self._block_size)
        return hashes[: self._cache.match(hashes)]

    def _loadable(self, sequence: SimSequence, cached: int) -> int:
        """Return how many tokens after the `cached` ones can be loaded: as with LMCache, all but the last one at most."""
        if self._shared is None:
            return 0
        held = self._shared.tokens(sequence.prompt_hashes(self._block_size))
        return max(0, min(held, len(sequence.tokens) - 1) - cached)

    def _reuse(self, sequence: SimSequence, reused: list[int], loaded: int) -> None:
        """Let `sequence` begin with stored blocks; count these, and the `loaded` tokens that will follow them."""
        self._cache.hold(reused)
        sequence.held = reused
        sequence.sealed_blocks = len(reused)
        sequence.computed_tokens = cached = len(reused) * self._block_size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = cached + loaded
            self.totals.cache_queries += sequence.prompt_tokens
            self.totals.cache_hits += cached
            if self._shared is not None:
                self.totals.shared_queries += sequence.prompt_tokens - cached
                self.totals.shared_hits += loaded

    def _load(self, sequence: SimSequence, tokens: int, now_s: float) -> bool:
        """Give `sequence` room for `tokens` more, and begin to load them; False when they are there at once."""
        self._make_room(sequence, sequence.computed_tokens + tokens)
        sequence.loading_tokens = tokens
        load_s = self._timing.load_s(tokens)
        if load_s == 0:
            self._have_loaded(sequence)
            return False
        self._loading.add(sequence, now_s + load_s)
        return True

    def _have_loaded(self, sequence: SimSequence) -> None:
        sequence.computed_tokens += sequence.loading_tokens
        sequence.loading_tokens = 0
        self._seal(sequence, sequence.computed_tokens)

    def _grow(self, sequence: SimSequence, tokens: int) -> bool:
        """Give `sequence` room for `tokens` more and store the blocks they fill; False when there is no room."""
        end = sequence.computed_tokens + tokens
        if not self._make_room(sequence, end):
            return False
        self._seal(sequence, end)
        room = (len(sequence.held) + sequence.private_blocks) * self._block_size
        sequence.easy_tokens = min(room, (sequence.sealed_blocks + 1) * self._block_size - 1)
        return True

    def _make_room(self, sequence: SimSequence, end: int) -> bool:
        """Give `sequence` blocks for its first `end` tokens; False when there are not enough."""
        missing = self._blocks(end) - len(sequence.held) - sequence.private_blocks
        if missing > self._cache.available():
            return False
        if missing:
            self._cache.take(missing)
            sequence.private_blocks += missing
        return True

    def _seal(self, sequence: SimSequence, end: int) -> None:
        """Store the full blocks of the first `end` tokens. As in vLLM, others may reuse them at once."""
        full_blocks = end // self._block_size
        if full_blocks <= sequence.sealed_blocks:
            return
        hashes = sequence.hashes(full_blocks, self._block_size)
        for index in range(sequence.sealed_blocks, full_blocks):
            parent = hashes[index - 1] if index else None
            if self._cache.store(BlockStored(hashes[index], parent)):
                sequence.held.append(hashes[index])
                sequence.private_blocks -= 1
        sequence.sealed_blocks = full_blocks

    def _put(self, step: Step, sequence: SimSequence, tokens: int) -> None:
        step.chunks.append(Chunk(sequence, tokens))
        start, work = sequence.computed_tokens, step.work
        if start + tokens == len(sequence.tokens):
            work.grown_sequences += 1
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
        self._cache.release(sequence.held, sequence.private_blocks)
        sequence.held = []
        sequence.private_blocks = sequence.sealed_blocks = sequence.computed_tokens = sequence.easy_tokens = 0

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)
