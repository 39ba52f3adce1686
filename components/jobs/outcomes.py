"""How jobs end: one record each, written where there is none; and those who wait for it."""

import asyncio
import logging
import time

import msgspec

from components.bus.client import BusError
from components.jobs.book import ANY
from components.jobs.held import Held
from components.jobs.metrics import Metrics
from components.jobs.store import Store
from components.wire.jobs import Job, JobRecord, JobStatus

log = logging.getLogger(__name__)

_RETRY_S = 0.5


class Outcomes:
    """The ends of jobs."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}

    async def record(self, record: JobRecord, result: bytes) -> None:
        """Write a record, with its result, however long JetStream is away; an earlier record of the job stays."""
        while True:
            try:
                kept, name = await self._store.keep_result(result_name(record.job.id, record.fence_token), result)
                whole = msgspec.structs.replace(record, result=kept, result_object=name or record.result_object)
                if await self._store.records.create(record.job.id, whole):
                    self._metrics.finished(record.status)
                break
            except BusError as error:
                log.warning("cannot record an outcome yet", extra={"job": record.job.id, "error": str(error)})
                await asyncio.sleep(_RETRY_S)
        self.announce(record.job.id)

    async def unqueue(self, held: Held) -> None:
        """Take a job that is recorded off the work queue."""
        try:
            if held.delivery is not None:
                await held.delivery.done()
            else:
                await self._store.queue.browse.remove(held.number)
        except BusError as error:  # it comes again, and its record is found
            log.info("cannot take a finished job off the queue", extra={"job": held.job.id, "error": str(error)})

    async def bury(self, job_id: str, reason: str) -> None:
        """Record that a job has failed: the store gives it up.

        Raises:
            BusError: JetStream is away; the store will try again.
        """
        stored = await self._store.unfinished(job_id)
        job = stored.message if stored else Job(job_id, ANY, time.time())
        attempts = self._store.limits.max_deliver
        record = JobRecord(job, JobStatus.FAILED, attempts, time.time(), error=reason)
        if await self._store.records.create(job_id, record):
            self._metrics.finished(JobStatus.FAILED)
        self.announce(job_id)

    def announce(self, job_id: str) -> None:
        """Wake those who wait for the outcome of a job."""
        for waiter in self._waiters.pop(job_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, job_id: str, wait_s: float) -> None:
        """Wait until the outcome of a job is recorded, at most `wait_s` seconds."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(job_id, []).append(waiter)
        try:
            async with asyncio.timeout(wait_s):
                await waiter
        except TimeoutError:
            return
        finally:
            waiters = self._waiters.get(job_id, [])
            if waiter in waiters:
                waiters.remove(waiter)
                if not waiters:
                    del self._waiters[job_id]


def result_name(job_id: str, fence: str) -> str:
    """Return the name of the object that holds a long result of one assignment."""
    return f"result-{job_id}-{fence}"
