"""A worker in virtual time: a simulated engine that steps whenever it has work, and what it tells of itself.

Knows no router and no trace.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from components.engine.sim_kv import KvPending
from components.engine.sim_scheduler import SimScheduler
from components.engine.sim_sequence import SimSequence
from components.engine.sim_shared import Chunks, SharedPrompts
from components.engine.sim_step import Step
from components.engine.sim_timing import Timing
from components.simulate.clock import Clock
from components.simulate.scenario import Scenario
from components.wire.kv import KvBatch
from components.wire.process import WorkerLoad, WorkerStatus
from components.worker.kv_held import HeldBlocks

MODEL = "trace"
INCARNATION = "life"
"""Nobody dies here."""


@dataclass(slots=True)
class _Run:
    """Steps under way that are alike."""

    step: Step
    begin_s: float
    end_s: float = 0.0


class Worker:
    """One engine.

    Attributes:
        name: unique in the fleet.
        scheduler: the engine's.
        held: the KV blocks it has told of.
        busy_s: how long it has computed so far.
    """

    def __init__(
        self,
        name: str,
        scenario: Scenario,
        timing: Timing,
        clock: Clock,
        stepped: Callable[["Worker", Step], None],
        chunks: Chunks | None = None,
    ) -> None:
        """Begin idle.

        Args:
            name: unique in the fleet.
            scenario: what it is.
            timing: how long its steps take.
            clock: when it is.
            stepped: called at the end of each step, which it must complete.
            chunks: the shared cache.
        """
        self.name = name
        self.held = HeldBlocks()
        self.busy_s = 0.0
        self.scheduler = SimScheduler(
            timing,
            blocks=scenario.kv_blocks,
            block_size=scenario.block_size,
            max_running_requests=scenario.max_running_requests,
            max_batched_tokens=scenario.max_batched_tokens,
            shared=SharedPrompts(chunks, scenario.block_size) if chunks else None,
        )
        self._scenario = scenario
        self._clock = clock
        self._stepped = stepped
        self._timing = timing
        self._run: _Run | None = None
        self._pending = KvPending(chunks)
        self._seq = -1

    def add(self, sequence: SimSequence) -> None:
        """Take in a request."""
        self.scheduler.add(sequence, self._clock.now_s)
        if self._run is not None:
            self._shorten(self._run)
        self._wait()

    def load(self) -> WorkerLoad:
        """Return how busy it is."""
        scheduler = self.scheduler
        return WorkerLoad(len(scheduler.running), scheduler.waiting_requests, scheduler.kv_usage)

    def status(self, store: str, elsewhere: int = 0) -> WorkerStatus:
        """Return what it tells of itself.

        Args:
            store: the LMCache server it shares KV through; empty without one.
            elsewhere: requests that wait for a remote prefill.
        """
        scenario, load = self._scenario, self.load()
        load = replace(load, waiting_requests=load.waiting_requests + elsewhere)
        max_model_len = scenario.kv_blocks * scenario.block_size
        return WorkerStatus(MODEL, max_model_len, scenario.block_size, scenario.kv_blocks, load, store=store)

    def batch(self, step: Step | None = None) -> KvBatch | None:
        """Return what there is to tell of its KV after `step`, or at any time; None when that is nothing."""
        if step is not None:
            self._pending.add(step.events, step.shared)
        self._pending.look(self._clock.now_s)
        update = self._pending.take()
        if update is None:
            return None
        self._seq += 1
        return KvBatch(self.name, INCARNATION, self._seq, [self.held.apply(change) for change in update.changes])

    def _wait(self) -> None:
        arrival_s = self.scheduler.next_arrival_s()
        if self._run is None and arrival_s is not None:
            self._clock.at(max(arrival_s, self._clock.now_s), self._begin)

    def _begin(self) -> None:
        if self._run is not None:
            return
        step = self.scheduler.schedule(self._clock.now_s)
        if step is None:
            self._wait()
            return
        step.times = self.scheduler.repeats(step)
        self._run = run = _Run(step, self._clock.now_s)
        self._end_later(run)
        self._shorten(run)

    def _shorten(self, run: _Run) -> None:
        """End a run of steps with the first that ends when somebody has arrived."""
        arrival_s = self.scheduler.next_arrival_s()
        if run.step.times == 1 or arrival_s is None or arrival_s > run.end_s:
            return
        taken_s = partial(self._timing.run_s, run.step.work)
        times = 1 + bisect_left(range(1, run.step.times), arrival_s - run.begin_s, key=taken_s)
        if times < run.step.times:
            run.step.times = times
            self._end_later(run)

    def _end_later(self, run: _Run) -> None:
        step = run.step
        taken_s = step.duration_s if step.times == 1 else self._timing.run_s(step.work, step.times)
        run.end_s = run.begin_s + taken_s
        self._clock.at(run.end_s, partial(self._end, run, step.times))

    def _end(self, run: _Run, times: int) -> None:
        if run.step.times != times:
            return  # it was shortened, and has ended
        self.busy_s += run.end_s - run.begin_s
        self._run = None
        self._stepped(self, run.step)
        self._begin()
