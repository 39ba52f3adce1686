"""What the queue does with what workers say: results and errors are recorded once, leases renewed, stale words refused.

An outcome counts when it comes from the last worker that was given the job, under the fence token of that assignment, and is
the first: the record is written only where there is none. The worker is told when it is written, not before.
"""

import logging
import time
from typing import Protocol

import msgspec

from components.bus.client import BusError
from components.jobs.book import Worker
from components.jobs.claims import RecordedError, RepeatedError, StaleError, resolve
from components.jobs.dispatch import Dispatch
from components.jobs.frames import (
    ABSENT,
    MAX_INLINE_BYTES,
    AssignedJob,
    Drain,
    Error,
    Fence,
    Frame,
    FromWorker,
    JobAck,
    JobChunk,
    JobError,
    JobProgress,
    JobRelease,
    JobResult,
    JobResultRef,
    JobRevoked,
    Pause,
    Register,
    Registered,
    Resume,
)
from components.jobs.held import Held
from components.jobs.metrics import Metrics
from components.jobs.outcomes import Outcomes, result_name
from components.jobs.store import Store
from components.wire.errors import WorkerFailedError
from components.wire.jobs import JobRecord, JobStatus

log = logging.getLogger(__name__)

_MAX_ERROR_CHARS = 4000


Receipt = JobAck | JobResultRef


class Link(Protocol):
    """A worker's connection."""

    base_url: str

    def send(self, frame: Frame) -> None:
        """Send `frame` after those before it; lost when the connection is."""
        ...

    def close(self, reason: str) -> None:
        """End the connection."""
        ...


class JobService:
    """The words of workers.

    Attributes:
        dispatch: hands out jobs.
        outcomes: records how they end.
    """

    def __init__(self, store: Store, lease_s: float, metrics: Metrics) -> None:
        self.dispatch: Dispatch  # each needs the other; who makes both sets it
        self._store = store
        self._lease_s = lease_s
        self._metrics = metrics
        self._links: dict[str, Link] = {}
        self._closing = False
        self.outcomes = Outcomes(store, metrics)

    # -- workers come and go

    async def register(self, link: Link, frame: Register) -> Worker:
        """Take in a worker; an older connection of the same id is closed.

        Raises:
            BusError: JetStream is away; it may try again.
        """
        if (older := self._links.pop(frame.worker_id, None)) is not None:
            older.send(Error(f"worker {frame.worker_id} has registered on another connection; this one is closed"))
            older.close("registered on another connection")
            self.dispatch.leave(frame.worker_id)
        worker = Worker(frame.worker_id, frame.config_id, frame.capacity, silent=True)  # no jobs before those it has
        self._links[worker.id] = link
        try:
            await self.dispatch.join(worker)
            link.send(Registered(self._lease_s))
            for running in frame.running:
                await self._about(worker, link, running.job_id, running.fence_token)
        except BaseException:  # its connection ends, or it must try again; nobody else would forget it
            self.left(link, worker)
            raise
        worker.silent = False
        log.info("a worker is here", extra={"worker": worker.id, "config": worker.config_id, "capacity": worker.capacity})
        self.dispatch.wake()
        return worker

    def left(self, link: Link, worker: Worker) -> None:
        """Forget a worker whose connection has ended, unless it has come back on another."""
        if self._links.get(worker.id) is link:
            del self._links[worker.id]
            if not self._closing:
                self.dispatch.leave(worker.id)
            log.info("a worker is gone", extra={"worker": worker.id})

    def close(self) -> None:
        """End all connections. Workers keep their jobs, and tell the next queue of them."""
        self._closing = True
        for link in list(self._links.values()):
            link.close("the queue stops")

    # -- what the dispatch does

    def push(self, worker: Worker, held: Held) -> None:
        """Send a worker its job."""
        link, assignment = self._links.get(worker.id), held.assignment
        if link is None or assignment is None:
            return
        query = f"worker_id={worker.id}&fence_token={assignment.fence}"
        where = f"{link.base_url}/jobs/{held.job.id}"
        inline = held.job.payload_object is None and len(held.job.payload) <= MAX_INLINE_BYTES
        frame = AssignedJob(
            held.job.id,
            held.mode,
            held.job.config_id,
            assignment.fence,
            msgspec.Raw(held.job.payload) if inline else ABSENT,
            None if inline else f"{where}/payload?{query}",
            f"{where}/result?{query}",
            held.call is not None and held.call.stream,
        )
        link.send(frame)

    def revoke(self, worker_id: str, job_id: str, reason: str) -> None:
        """Tell a worker that a job is its no more."""
        if (link := self._links.get(worker_id)) is not None:
            link.send(JobRevoked(job_id, reason))

    async def bury(self, job_id: str, reason: str) -> None:
        """Record that the store gives a job up."""
        await self.outcomes.bury(job_id, reason)

    # -- what workers say

    async def hear(self, link: Link, worker: Worker, frame: FromWorker) -> None:
        """Do what a frame asks for; what is wrong with it is answered."""
        if worker.silent:
            worker.silent = False
            self.dispatch.wake()
        match frame:
            case Register():
                link.send(Error("already registered on this connection"))
            case Drain() | Pause() | Resume():
                worker.draining = worker.draining or isinstance(frame, Drain)
                worker.paused = isinstance(frame, Pause)
                self.dispatch.wake()
            case _:
                held = await self._about(worker, link, frame.job_id, frame.fence_token)
                if held is not None:
                    await self._act(link, worker, held, frame)

    async def _about(self, worker: Worker, link: Link, job_id: str, fence: Fence) -> Held | None:
        """Return the job a frame is about; None when it was answered already."""
        try:
            return await resolve(self.dispatch, self._store, worker, job_id, str(fence))
        except RepeatedError:
            return None
        except RecordedError:
            link.send(JobAck(job_id, fence))
        except StaleError as error:
            self._metrics.refused.inc()
            link.send(Error(f"job {job_id[:100]}: {error}"))
            link.send(JobRevoked(job_id[:200], str(error)))
        except BusError as error:
            link.send(Error(f"job {job_id[:100]}: cannot be looked up now, send it again: {error}"))
        return None

    async def _act(self, link: Link, worker: Worker, held: Held, frame: FromWorker) -> None:
        assignment = held.assignment
        if assignment is None:
            return
        self.dispatch.book.renew(assignment, time.monotonic())
        match frame:
            case JobProgress():
                assignment.progress = frame.progress if frame.progress is not None else assignment.progress
                assignment.detail = (frame.status_message or "")[:200] or assignment.detail
            case JobChunk():
                if held.call is not None and held.call.stream:
                    held.begun = True
                    held.call.chunks.put_nowait(bytes(frame.chunk))
            case JobRelease():
                self.dispatch.take_back(assignment, f"given back: {frame.reason[:200]}")
            case JobResult() | JobError():
                self._end(worker, held, JobAck(held.job.id, assignment.fence), frame)
            case JobResultRef():
                await self._finish_by_reference(link, worker, held, assignment.fence)
            case _:
                raise AssertionError(frame)

    def _end(self, worker: Worker, held: Held, receipt: Receipt, frame: JobResult | JobError) -> None:
        failed = frame.error[:_MAX_ERROR_CHARS] if isinstance(frame, JobError) else None
        result = bytes(frame.result) if isinstance(frame, JobResult) else b""
        if held.mode == "transient":
            outcome = result if failed is None else WorkerFailedError(f"the worker answers: {failed}")
            self._settle(worker, held, receipt, outcome)
        else:
            status = JobStatus.COMPLETED if failed is None else JobStatus.FAILED
            self._finish(worker, held, receipt, status, result, error=failed)

    async def _finish_by_reference(self, link: Link, worker: Worker, held: Held, fence: str) -> None:
        name = result_name(held.job.id, fence)
        if not await self._store.objects.has(name):
            link.send(Error(f"job {held.job.id}: its result has not been uploaded"))
        elif held.mode == "transient":
            self._settle(worker, held, JobResultRef(held.job.id, fence), await self._store.objects.get(name) or b"")
            await self._store.objects.delete(name)
        else:
            self._finish(worker, held, JobResultRef(held.job.id, fence), JobStatus.COMPLETED, stored_as=name)

    def _settle(self, worker: Worker, held: Held, receipt: Receipt, outcome: bytes | WorkerFailedError) -> None:
        """Give a transient job's outcome to its caller."""
        self.dispatch.finished(held)
        self._metrics.finished(JobStatus.COMPLETED if isinstance(outcome, bytes) else JobStatus.FAILED)
        held.settle(outcome)
        self.dispatch.forget(held)
        self._acknowledge(worker.id, receipt)

    def _finish(
        self,
        worker: Worker,
        held: Held,
        receipt: Receipt,
        status: JobStatus,
        result: bytes = b"",
        stored_as: str | None = None,
        error: str | None = None,
    ) -> None:
        """Free the worker's slot at once; then record a persisted job's outcome, tell the worker, and unqueue the job."""
        self.dispatch.finished(held)
        record = JobRecord(
            job=held.job,
            status=status,
            attempts=held.attempts,
            finished_unix_s=time.time(),
            result_object=stored_as,
            error=error,
            fence_token=str(receipt.fence_token),
            worker_id=worker.id,
        )

        async def conclude() -> None:
            await self.outcomes.record(record, result)
            self._acknowledge(worker.id, receipt)
            await self.outcomes.unqueue(held)
            self.dispatch.forget(held)

        self.dispatch.record(conclude())

    def _acknowledge(self, worker_id: str, receipt: Receipt) -> None:
        if (link := self._links.get(worker_id)) is not None:
            link.send(receipt)
