"""What submitters ask of the queue: take a job, tell how it stands, hold a call until it is done, redrive the dead."""

import asyncio
import secrets
import time
from collections import OrderedDict

import msgspec

from components.bus.client import BusError, TooLongError
from components.bus.jetstream import QueueFullError
from components.jobs.book import ANY
from components.jobs.calls import Calls, new_call
from components.jobs.held import Held
from components.jobs.metrics import Metrics
from components.jobs.service import JobService
from components.jobs.store import Store
from components.jobs.views import JobView, Submission, held_view, pending_view, record_view
from components.wire.errors import (
    BodyTooLargeError,
    ConflictError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    NoWorkerError,
    OverloadedError,
    PenstockError,
)
from components.wire.jobs import JobRecord, JobStatus

_RETRY_AFTER_S = 1.0
_REMEMBERED = 1000


class Submitters:
    """The queue as its submitters see it.

    Attributes:
        calls: those who wait on the line.
    """

    def __init__(self, store: Store, service: JobService, metrics: Metrics, hold_timeout_s: float) -> None:
        self._store = store
        self._outcomes = service.outcomes
        self._dispatch = service.dispatch
        self._metrics = metrics
        self.calls = Calls(service.dispatch, metrics, hold_timeout_s)
        self._hold_timeout_s = hold_timeout_s
        self._transient: OrderedDict[str, JobView] = OrderedDict()

    async def submit(self, submission: Submission) -> JobView:
        """Take a job; a persisted one is stored durably when this returns.

        Raises:
            PenstockError: it is refused, or the store is away; the text says which.
        """
        payload = _payload(submission)
        job_id = submission.id or secrets.token_hex(16)
        config_id = submission.config_id or ANY
        if submission.id is not None and await self._known(job_id):
            raise ConflictError(f"a job {job_id} was submitted before; GET /jobs/{job_id} tells how it stands", param="id")
        if submission.mode == "transient":
            return self._submit_transient(job_id, config_id, payload)
        try:
            job = await self._store.submit(job_id, config_id, time.time(), payload)
        except QueueFullError as error:
            raise OverloadedError(f"the queue is full: {error}", retry_after_s=_RETRY_AFTER_S) from error
        except TooLongError as error:
            raise BodyTooLargeError(str(error)) from error
        except BusError as error:
            raise away(error) from error
        if job is None:
            raise ConflictError(f"a job {job_id} was submitted before; GET /jobs/{job_id} tells how it stands", param="id")
        self._metrics.submitted.labels("persisted").inc()
        return pending_view(job, payload, 0)

    def _submit_transient(self, job_id: str, config_id: str, payload: bytes) -> JobView:
        call = new_call(stream=False)
        held = self.calls.enter(job_id, config_id, payload, call)
        view = held_view(held, payload)
        self._transient[job_id] = view
        while len(self._transient) > _REMEMBERED:
            self._transient.popitem(last=False)
        call.answer.add_done_callback(lambda answer: self._remember(held, payload, answer))
        deadline = asyncio.get_running_loop().call_later(self._hold_timeout_s, self._time_out, held)
        call.answer.add_done_callback(lambda _: deadline.cancel())
        return view

    def _time_out(self, held: Held) -> None:
        self._dispatch.withdraw(held, "its time is over")
        held.settle(DeadlineExceededError(f"no result within {self._hold_timeout_s:g} s"))

    def _remember(self, held: Held, payload: bytes, answer: "asyncio.Future[bytes]") -> None:
        if held.job.id not in self._transient:
            return
        error = answer.exception()
        record = JobRecord(
            held.job,
            JobStatus.FAILED if error else JobStatus.COMPLETED,
            held.attempts,
            time.time(),
            error=str(error) if error else None,
        )
        self._transient[held.job.id] = record_view(record, payload, b"" if error else answer.result(), "transient")
        self._outcomes.announce(held.job.id)

    # -- how jobs stand

    async def look(self, job_id: str, wait_s: float = 0.0) -> JobView:
        """Return a job with its payload and result, once it is finished or `wait_s` seconds are over.

        Raises:
            NotFoundError: there is none, or it is kept no longer.
        """
        view = await self._look(job_id)
        if wait_s > 0 and view.status not in {JobStatus.COMPLETED, JobStatus.FAILED}:
            await self._outcomes.wait(job_id, wait_s)
            view = await self._look(job_id)
        return view

    async def _look(self, job_id: str) -> JobView:
        try:
            for _ in range(2):  # it may move from the queue to the records between two looks
                if (view := self._transient.get(job_id)) is not None:
                    held = self._dispatch.held.get(job_id)
                    return held_view(held, held.job.payload) if held else view
                if (held := self._dispatch.held.get(job_id)) is not None and not held.outcome_fence:
                    return held_view(held, await self._store.payload(held.job))
                if (record := await self._store.records.get(job_id)) is not None:
                    return record_view(record, await self._store.payload(record.job), await self._store.result(record))
                if (stored := await self._store.unfinished(job_id)) is not None:
                    payload = await self._store.payload(stored.message)
                    return pending_view(stored.message, payload, self._dispatch.attempts(job_id))
        except BusError as error:
            raise away(error) from error
        raise NotFoundError(f"there is no job {job_id}", param="id")

    async def statuses(self, job_ids: list[str]) -> dict[str, JobStatus | None]:
        """Return how many jobs stand, None for those that are not there; costs a round trip each."""
        try:
            return {job_id: await self._status(job_id) for job_id in job_ids}
        except BusError as error:
            raise away(error) from error

    async def _status(self, job_id: str) -> JobStatus | None:
        for _ in range(2):  # as above
            if (held := self._dispatch.held.get(job_id)) is not None and not held.outcome_fence:
                return JobStatus.PENDING if held.waits else JobStatus.RUNNING
            if (view := self._transient.get(job_id)) is not None:
                return view.status
            if (record := await self._store.records.get(job_id)) is not None:
                return record.status
            if await self._store.unfinished(job_id):
                return JobStatus.PENDING
        return None

    async def list(self, status: JobStatus | None, most: int) -> list[JobView]:
        """Return up to `most` jobs without payloads and results: the newest finished ones, and the oldest others."""
        views: list[JobView] = []
        try:
            if status in {None, JobStatus.RUNNING, JobStatus.PENDING}:
                views += [held_view(held, b"") for held in self._dispatch.held.values()]
                here = {view.id for view in views}
                stored = [each.message for each in await self._store.queue.browse.oldest(most)]
                views += [pending_view(job, b"", self._dispatch.attempts(job.id)) for job in stored if job.id not in here]
            if status in {None, JobStatus.COMPLETED, JobStatus.FAILED}:
                done = [record_view(record, b"", b"") for record in await self._store.records.newest(most)]
                finished = {view.id for view in done}
                views = [view for view in views if view.id not in finished] + done
        except BusError as error:
            raise away(error) from error
        return [view for view in views if status in {None, view.status}][:most]

    async def _known(self, job_id: str) -> bool:
        try:
            await self._look(job_id)
        except NotFoundError:
            return False
        return True

    # -- the dead

    async def redrive(self, job_id: str) -> None:
        """Put a job that failed after too many attempts back into the queue, as new.

        Raises:
            NotFoundError: it has no dead letter.
        """
        try:
            letters = [letter.id for letter in await self._store.queue.dead.list(10_000)]
            if job_id in letters:
                await self._store.records.delete(job_id)
            if not await self._store.queue.dead.redrive(job_id):
                raise NotFoundError(f"job {job_id} has no dead letter", param="id")
        except BusError as error:
            raise away(error) from error

    async def drop(self, job_id: str) -> None:
        """Delete the dead letter of a job; its record stays.

        Raises:
            NotFoundError: it has no dead letter.
        """
        try:
            if not await self._store.queue.dead.drop(job_id):
                raise NotFoundError(f"job {job_id} has no dead letter", param="id")
        except BusError as error:
            raise away(error) from error


def away(error: BusError) -> PenstockError:
    """Return a failure of the store as its client shall see it."""
    return NoWorkerError(f"the queue's store does not answer: {error}", retry_after_s=_RETRY_AFTER_S)


def _payload(submission: Submission) -> bytes:
    """Return the payload to store.

    Raises:
        InvalidRequestError: it is no object.
    """
    payload = bytes(submission.payload)
    if not payload.lstrip().startswith(b"{"):
        raise InvalidRequestError("payload: must be an object", param="payload")
    if submission.job_type is not None:
        fields = msgspec.json.decode(payload)
        payload = msgspec.json.encode({"job_type": submission.job_type} | fields)
    return payload
