"""Hands jobs to workers as soon as there are both, and takes them back when a lease ends or a worker is lost.

The store's lease on a job is renewed here for as long as this process has the job; the worker's lease is the book's, and
is renewed by the worker. A persisted job that is taken back goes to the store, which counts its attempts; a transient one
waits again, and fails to its caller after too many.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

from components.bus.client import BusError
from components.bus.delivery import Delivery
from components.bus.work_queue import WorkQueue
from components.jobs.book import ANY, Assignment, Book, Worker
from components.jobs.held import Held
from components.jobs.metrics import Metrics
from components.jobs.store import Store
from components.wire.errors import WorkerFailedError
from components.wire.jobs import Job

log = logging.getLogger(__name__)

_TAKE_S = 5.0
_CLOSE_S = 2.0
_SWEEP_S = 0.1
_MOST_AT_ONCE = 256
_DELAY_S = 0.05
_LONGEST_DELAY_S = 5.0


class Voice(Protocol):
    """What the dispatch has said to others."""

    def push(self, worker: Worker, held: Held) -> None:
        """Send a worker the job it has got; must not wait."""
        ...

    def revoke(self, worker_id: str, job_id: str, reason: str) -> None:
        """Tell a worker that it has lost a job; must not wait."""
        ...

    async def bury(self, job_id: str, reason: str) -> None:
        """Record that the store gives a job up."""
        ...


class Lane:
    """The jobs of one config that wait in this process, and where more come from."""

    def __init__(self, config_id: str, source: WorkQueue[Job]) -> None:
        self.config_id = config_id
        self.source = source
        self.waiting: deque[Held] = deque()
        self.wake = asyncio.Event()


class Dispatch:
    """The queue's hands.

    Attributes:
        book: workers and assignments.
        held: every job that this process has, by id.
    """

    def __init__(
        self,
        store: Store,
        book: Book,
        max_attempts: int,
        metrics: Metrics,
        voice: Voice,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Prepare.

        Args:
            store: persisted jobs.
            book: to be filled.
            max_attempts: for transient jobs; the store counts the others'.
            metrics: counts.
            voice: tells workers.
            tasks: owns the pumps.
        """
        self.book = book
        self.held: dict[str, Held] = {}
        self._store = store
        self._max_attempts = max_attempts
        self._metrics = metrics
        self._voice = voice
        self._tasks = tasks
        self._lanes: dict[str, Lane] = {}
        self._pumps: list[asyncio.Task[None]] = []
        self._endings: set[asyncio.Task[None]] = set()
        self._attempts: dict[str, int] = {}

    async def join(self, worker: Worker) -> None:
        """Take in a worker; the jobs it may have come to it from now on.

        Raises:
            BusError: JetStream is away.
        """
        for config_id in (ANY, worker.config_id):
            if config_id not in self._lanes:
                source = self._store.queue if config_id == ANY else await self._store.lane(config_id)
                source.on_dead(self._voice.bury)
                self._open(Lane(config_id, source))
        self.book.join(worker)

    def leave(self, worker_id: str) -> None:
        """Forget a worker; what it had goes back to be done by others."""
        for assignment in self.book.leave(worker_id):
            self.take_back(assignment, "the worker's connection was lost")

    def wake(self) -> None:
        """Hand out what can be: something has changed."""
        for lane in self._lanes.values():
            self._hand_out(lane)
            lane.wake.set()

    def enter(self, held: Held) -> None:
        """Let a transient job wait for a worker; its lane must be served."""
        self.held[held.job.id] = held
        lane = self._lanes[held.job.config_id]
        lane.waiting.append(held)
        self._hand_out(lane)

    def withdraw(self, held: Held, reason: str) -> None:
        """Drop a transient job that nobody waits for any more."""
        if self.held.get(held.job.id) is held:
            del self.held[held.job.id]
        if held.assignment is not None:
            self.book.end(held.assignment)
            self._voice.revoke(held.assignment.worker_id, held.job.id, reason)
        self._unqueue(held)
        self.wake()

    def adopt(self, worker: Worker, held: Held, fence: str) -> Assignment:
        """Leave a job with the worker that has it already, from before a connection or this process was lost."""
        self._unqueue(held)
        self.held[held.job.id] = held
        held.assignment = self.book.assign(worker, held.job.id, fence, time.monotonic())
        return held.assignment

    def take_back(self, assignment: Assignment, reason: str) -> None:
        """End an assignment whose job is not done; another worker may have it at once."""
        self.book.end(assignment)
        held = self.held.get(assignment.job_id)
        if held is None or held.assignment is not assignment:
            return
        held.assignment = None
        log.info("a job goes back", extra={"job": held.job.id, "worker": assignment.worker_id, "reason": reason})
        self._metrics.taken_back.inc()
        if held.mode == "persisted":
            del self.held[held.job.id]
            self._attempts[held.job.id] = held.attempts
            self.record(self._release(held))
        elif held.begun or held.attempts >= self._max_attempts:
            del self.held[held.job.id]
            held.settle(WorkerFailedError(f"the job was lost after {held.attempts} attempts: {reason}"))
        else:
            held.attempts += 1
            self._lanes[held.job.config_id].waiting.appendleft(held)
        self.wake()

    def finished(self, held: Held) -> None:
        """Free the slot of a job whose outcome is known; the next one takes it at once."""
        self._unqueue(held)
        if held.assignment is not None:
            held.outcome_fence = held.assignment.fence
            self.book.end(held.assignment)
            held.assignment = None
        self.wake()

    def forget(self, held: Held) -> None:
        """Drop a job whose outcome is recorded."""
        self._attempts.pop(held.job.id, None)
        if self.held.get(held.job.id) is held:
            del self.held[held.job.id]

    def attempts(self, job_id: str) -> int:
        """Return how often a job that waits in the store was given to a worker, as far as this process knows."""
        return self._attempts.get(job_id, 0)

    async def watch(self) -> None:
        """Take back what has expired, and keep the store's leases; for ever."""
        renewed_s = time.monotonic()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = time.monotonic()
            for assignment in self.book.expired(now_s):
                worker = self.book.workers[assignment.worker_id]
                worker.silent = True
                self._metrics.expired.inc()
                self._voice.revoke(worker.id, assignment.job_id, "its lease has ended")
                self.take_back(assignment, "its lease has ended")
            if now_s - renewed_s >= self._store.limits.lease_s / 4:
                renewed_s = now_s
                await self._keep_leases()

    async def close(self) -> None:
        """Take no more, and give back what waits; for when all workers have left."""
        for pump in self._pumps:
            pump.cancel()
        for lane in self._lanes.values():
            await lane.source.close()
        waiting = [held for held in self.held.values() if held.waits and held.mode == "persisted"]
        await asyncio.gather(*[self._release(held) for held in waiting])
        if self._endings:
            await asyncio.wait(self._endings, timeout=_CLOSE_S)

    def record(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which ends a job; `close` waits for it."""
        task = self._tasks.create_task(work)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    def _open(self, lane: Lane) -> None:
        self._lanes[lane.config_id] = lane
        self._pumps.append(self._tasks.create_task(self._pump(lane)))

    async def _pump(self, lane: Lane) -> None:
        """Take from the store what can be handed out, for ever."""
        while True:
            lane.wake.clear()
            self._hand_out(lane)
            free = self.book.free(lane.config_id)
            if free == 0 or lane.waiting:
                await lane.wake.wait()
                continue
            for delivery in await lane.source.take(min(free, _MOST_AT_ONCE), _TAKE_S):
                await self._receive(lane, delivery)

    async def _receive(self, lane: Lane, delivery: Delivery[Job]) -> None:
        job = delivery.message
        if (held := self.held.get(job.id)) is not None:  # we have it, and the store's lease on it was lost for a moment
            held.delivery = delivery
            return
        if delivery.delivery > 1:
            try:
                if await self._store.records.get(job.id) is not None:
                    await delivery.done()
                    return
            except BusError as error:
                log.warning("cannot look a job up", extra={"job": job.id, "error": str(error)})
                return
            if job.id in self.held:
                return
        held = Held(job, "persisted", delivery.number, delivery.delivery, delivery)
        self.held[job.id] = held
        lane.waiting.append(held)
        self._hand_out(lane)

    def _hand_out(self, lane: Lane) -> None:
        while lane.waiting and (worker := self.book.pick(lane.config_id)) is not None:
            held = lane.waiting.popleft()
            fence = self._store.fences.make(held.job.id, worker.id, held.number, held.attempts)
            held.assignment = self.book.assign(worker, held.job.id, fence, time.monotonic())
            self._metrics.assigned(held)
            self._voice.push(worker, held)

    def _unqueue(self, held: Held) -> None:
        lane = self._lanes.get(held.job.config_id)
        if lane is not None and held in lane.waiting:
            lane.waiting.remove(held)

    async def _release(self, held: Held) -> None:
        if held.delivery is None:
            return  # adopted: the store delivers it when the lease of whoever had it before ends
        try:
            await held.delivery.release(_delay_s(held.attempts))
        except BusError as error:  # the end of the store's lease does the same
            log.info("cannot give a job back at once", extra={"job": held.job.id, "error": str(error)})

    async def _keep_leases(self) -> None:
        for held in list(self.held.values()):
            if held.delivery is None:
                continue
            try:
                await held.delivery.in_progress()
            except BusError as error:
                log.debug("cannot renew", extra={"job": held.job.id, "error": str(error)})


def _delay_s(attempts: int) -> float:
    """Return how long a job waits that was given back so often: not at all at first, then ever longer."""
    return 0.0 if attempts < 2 else min(_LONGEST_DELAY_S, _DELAY_S * 2 ** min(attempts, 10))
