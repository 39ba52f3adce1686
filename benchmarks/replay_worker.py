"""Simulated engines in a virtual clock, and what they tell of themselves. Knows no router and no trace."""

import heapq
from collections.abc import Callable
from functools import partial

import msgspec

from components.engine.kv_changes import KvChanges
from components.engine.sim_cache import BlockStored
from components.engine.sim_scheduler import SimScheduler
from components.engine.sim_sequence import SimSequence
from components.engine.sim_step import Step
from components.engine.sim_timing import load_timing
from components.router.cost import CostSettings
from components.wire.kv import KvBatch
from components.wire.messages import WorkerLoad, WorkerStatus

INCARNATION = "life"
"""No engine dies here."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What the fleet is; the sizes are those of an 8B model on an H200, and of the peer's replay.

    Attributes:
        workers: engines.
        timing: the engines' timing table.
        block_size: tokens a KV block.
        kv_blocks: of each engine.
        max_running_requests: of each engine.
        max_batched_tokens: of each engine, in a step.
        delay_s: from an engine's step until the router knows of it.
        costs: the router's constants.
        seed: of the policies' chance.
    """

    workers: int = 8
    timing: str = "h200-8b"
    block_size: int = 64
    kv_blocks: int = 16_384
    max_running_requests: int = 256
    max_batched_tokens: int = 8192
    delay_s: float = 0.001
    costs: CostSettings = CostSettings()
    seed: int = 0


class Clock:
    """Virtual time: what is due happens in order; equals in the order they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do `action` at `time_s`."""
        self._asked += 1
        heapq.heappush(self._due, (time_s, self._asked, action))

    def run(self, done: Callable[[], bool]) -> None:
        """Let time pass until `done`."""
        while not done():
            self.now_s, _, action = heapq.heappop(self._due)
            action()


class Worker:
    """One engine, stepping whenever it has work."""

    def __init__(self, name: str, setup: Setup, clock: Clock, stepped: Callable[["Worker", Step], None]) -> None:
        """Begin idle.

        Args:
            name: unique in the fleet.
            setup: what it is.
            clock: when it is.
            stepped: called at the end of each step, which it must complete.
        """
        self.name = name
        self._batches = 0
        self._setup = setup
        self._clock = clock
        self._stepped = stepped
        self._busy = False
        self.scheduler = SimScheduler(
            load_timing(setup.timing),
            blocks=setup.kv_blocks,
            block_size=setup.block_size,
            max_running_requests=setup.max_running_requests,
            max_batched_tokens=setup.max_batched_tokens,
        )

    def add(self, sequence: SimSequence) -> None:
        """Take in a request."""
        self.scheduler.add(sequence, self._clock.now_s)
        self._wait()

    def status(self) -> WorkerStatus:
        """Return what a worker tells of itself."""
        scheduler, setup = self.scheduler, self._setup
        load = WorkerLoad(len(scheduler.running), scheduler.waiting_requests, scheduler.kv_usage)
        return WorkerStatus("trace", setup.kv_blocks * setup.block_size, setup.block_size, setup.kv_blocks, load)

    def batch(self, step: Step) -> KvBatch:
        """Return a step's events as this worker's next batch."""
        changes = KvChanges()
        for event in step.events:
            if isinstance(event, BlockStored):
                changes.stored([event.block_hash], event.parent_hash)
            else:
                changes.removed([event.block_hash])
        self._batches += 1
        return KvBatch(self.name, INCARNATION, self._batches - 1, changes.take())

    def _wait(self) -> None:
        arrival_s = self.scheduler.next_arrival_s()
        if not self._busy and arrival_s is not None:
            self._clock.at(max(arrival_s, self._clock.now_s), self._begin)

    def _begin(self) -> None:
        if self._busy:
            return
        step = self.scheduler.schedule(self._clock.now_s)
        if step is None:
            self._wait()
            return
        self._busy = True
        self._clock.at(self._clock.now_s + step.duration_s, partial(self._end, step))

    def _end(self, step: Step) -> None:
        self._busy = False
        self._stepped(self, step)
        self._begin()
