"""Remote prefill in virtual time: the queue, the prefill workers that drain it, and each decode worker's side of it.

Where a prompt is prefilled is production's decision (`decode.placement`), as are what it learns, when it gives up, and how
much a prefill worker takes at a time. A job reaches its worker, and its end is known, after the wire's delay.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from components.decode.placement import Situation, Speeds, given_up, place
from components.engine.sim_sequence import SimSequence
from components.engine.sim_shared import SharedPrompts
from components.graph.schema import Disagg, PrefillSettings
from components.prefill.budget import Budget
from components.simulate.clock import Clock
from components.simulate.worker import Worker

_LOOK_S = 0.25  # as often does a decode worker look whether it has waited long enough


class Job(msgspec.Struct):
    """A prompt to be prefilled.

    Attributes:
        sequence: as the prefill worker's engine sees it: one token, which nobody reads.
        put_s: when it was put into the queue.
        done: called when it is computed, with how long it waited in the queue, and how long it took from then on.
        taken_s: when a prefill worker began; None before.
        ended: it is done, or nobody waits for it any more.
    """

    sequence: SimSequence
    put_s: float
    done: Callable[[float, float], None]
    taken_s: float | None = None
    ended: bool = False


class PrefillPool:
    """All prefill workers and their queue.

    Attributes:
        workers: those there are; whoever makes them has `stepped` called after each of their steps.
    """

    def __init__(self, clock: Clock, delay_s: float) -> None:
        """Begin without workers."""
        self.workers: dict[str, Worker] = {}
        self._clock = clock
        self._delay_s = delay_s
        self._queue: deque[Job] = deque()
        self._budgets: dict[str, Budget] = {}
        self._asking: deque[str] = deque()  # workers with room, the one that asked first first
        self._running: dict[SimSequence, tuple[Job, str]] = {}

    def hire(self, worker: Worker) -> None:
        """Add a worker."""
        self.workers[worker.name] = worker
        self._budgets[worker.name] = Budget(PrefillSettings().max_batched_tokens)
        self._asking.append(worker.name)

    def depth(self) -> int:
        """Return how many jobs nobody has taken."""
        return len(self._queue)

    def age_s(self) -> float:
        """Return how old the oldest of them is."""
        return self._clock.now_s - self._queue[0].put_s if self._queue else 0.0

    def put(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)
        self._clock.at(self._clock.now_s + self._delay_s, self._hand_out)

    def call_off(self, job: Job) -> None:
        """Drop a job that nobody waits for any more, wherever it is."""
        job.ended = True
        if job.taken_s is None:
            self._queue.remove(job)
        elif job.sequence in self._running:
            _, name = self._running.pop(job.sequence)
            self.workers[name].scheduler.finish(job.sequence)
            self._freed(name, job)

    def stepped(self, grown: list[SimSequence]) -> None:
        """Take in which sequences a prefill worker has computed."""
        for sequence in grown:
            job, name = self._running.pop(sequence)
            job.ended = True
            now_s, taken_s = self._clock.now_s, job.taken_s or 0.0
            told = partial(job.done, taken_s - job.put_s, now_s - taken_s)
            self._clock.at(now_s + self._delay_s, told)
            self._freed(name, job)

    def _freed(self, name: str, job: Job) -> None:
        budget = self._budgets[name]
        was_open = budget.open
        budget.ended(job.sequence.prompt_tokens)
        if budget.open and not was_open:
            self._asking.append(name)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._queue and self._asking:
            name, job = self._asking.popleft(), self._queue.popleft()
            job.taken_s = self._clock.now_s
            self._running[job.sequence] = job, name
            budget = self._budgets[name]
            budget.began(job.sequence.prompt_tokens)
            if budget.open:
                self._asking.append(name)
            self.workers[name].add(job.sequence)


class RemotePrefill:
    """One decode worker's dealings with the pool.

    Attributes:
        waiting: requests whose prompts are elsewhere now.
        prefilled: how many prompts prefill workers have computed for it.
    """

    def __init__(
        self, worker: Worker, pool: PrefillPool, prompts: SharedPrompts, rules: Disagg, clock: Clock, block_size: int
    ) -> None:
        """Know nothing yet of how long things take.

        Args:
            worker: the decode worker.
            pool: the prefill workers.
            prompts: what all share.
            rules: when a prompt goes elsewhere.
            clock: when it is.
            block_size: tokens a KV block.
        """
        self.waiting = 0
        self.prefilled = 0
        self._worker = worker
        self._pool = pool
        self._prompts = prompts
        self._rules = rules
        self._clock = clock
        self._block_size = block_size
        self._speeds = Speeds()
        self._loading: dict[SimSequence, tuple[int, float]] = {}  # tokens prefilled elsewhere, since when they are loaded

    def add(self, sequence: SimSequence, job_of: Callable[[], SimSequence]) -> None:
        """Take in a request: at once, or when its prompt was prefilled elsewhere, or is late.

        Args:
            sequence: the request.
            job_of: makes the sequence of its prefill job.
        """
        now = self._situation(sequence)
        if not place(now, self._rules, self._speeds).remote:
            self._worker.add(sequence)
            return
        self.waiting += 1
        start_s = self._clock.now_s
        job = Job(job_of(), start_s, partial(self._done, sequence, now.uncached_tokens, start_s))
        self._pool.put(job)
        self._look(job, sequence, start_s)

    def first_token(self, sequence: SimSequence) -> None:
        """Learn from a first token, where its prompt was prefilled elsewhere."""
        if sequence in self._loading:
            tokens, since_s = self._loading.pop(sequence)
            self._speeds.loaded(tokens, self._clock.now_s - since_s)

    def _situation(self, sequence: SimSequence) -> Situation:
        blocks = sequence.prompt_hashes(self._block_size)
        near_tokens = self._worker.held.leading(blocks) * self._block_size
        if sequence.prompt_tokens - near_tokens > self._rules.max_local_prefill_tokens:
            near_tokens = max(near_tokens, self._prompts.tokens(blocks))
        load = self._worker.load()
        return Situation(
            sequence.prompt_tokens,
            near_tokens,
            prefill_workers=len(self._pool.workers),
            queue_depth=self._pool.depth(),
            queue_age_s=self._pool.age_s(),
            running_requests=load.running_requests,
            waiting_requests=load.waiting_requests,
        )

    def _done(self, sequence: SimSequence, tokens: int, start_s: float, queued_s: float, prefill_s: float) -> None:
        self.waiting -= 1
        self.prefilled += 1
        now_s = self._clock.now_s
        self._speeds.prefilled(tokens, prefill_s, queued_s, now_s - start_s)
        self._loading[sequence] = tokens, now_s
        self._worker.add(sequence)

    def _look(self, job: Job, sequence: SimSequence, start_s: float) -> None:
        """Compute here after all what has been waited for long enough; else look again later."""
        if job.ended:
            return
        if given_up(self._clock.now_s - start_s, self._rules, taken=job.taken_s is not None):
            self._pool.call_off(job)
            self.waiting -= 1
            self._worker.add(sequence)
        else:
            self._clock.at(self._clock.now_s + _LOOK_S, partial(self._look, job, sequence, start_s))
