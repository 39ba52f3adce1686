"""Whose a job is: what a worker's fence token proves, and what becomes of a job that only its worker still knows of."""

import logging

from components.jobs.book import Worker
from components.jobs.dispatch import Dispatch
from components.jobs.held import Held
from components.jobs.store import Store

log = logging.getLogger(__name__)


class StaleError(Exception):
    """A claim is about a job that is not its worker's, or not any more; the text says why."""


class RepeatedError(Exception):
    """A claim is about a job whose outcome is being recorded; the acknowledgement is on its way."""


class RecordedError(Exception):
    """A claim is about a job whose outcome is recorded already."""


async def resolve(dispatch: Dispatch, store: Store, worker: Worker, job_id: str, fence: str) -> Held:
    """Return the job that `worker` has under `fence`; one from before a lost connection or process is adopted.

    Raises:
        StaleError: it has not, or not any more.
        RepeatedError: its outcome is being recorded.
        RecordedError: its outcome is recorded.
        BusError: the store cannot be asked.
    """
    held = dispatch.held.get(job_id)
    if held is not None and not held.waits:
        assignment = held.assignment
        if assignment is not None and assignment.fence == fence and assignment.worker_id == worker.id:
            return held
        if assignment is not None:
            raise StaleError("stale fence token: the job was given to another worker since")
        if held.outcome_fence == fence:
            raise RepeatedError
    signed = store.fences.read(fence, job_id, worker.id)
    if signed is None:
        raise StaleError("this fence token was not made for this job and worker")
    record = await store.records.get(job_id)
    if record is not None:
        if record.fence_token == fence:
            raise RecordedError
        raise StaleError("stale fence token: the job is finished")
    return await _adopt(dispatch, store, worker, job_id, fence, signed)


async def _adopt(dispatch: Dispatch, store: Store, worker: Worker, job_id: str, fence: str, signed: tuple[int, int]) -> Held:
    number, attempt = signed
    stored = None if number == 0 else await store.unfinished(job_id)
    held = dispatch.held.get(job_id)
    if held is not None and held.waits and held.mode == "persisted":
        dispatch.adopt(worker, held, fence)
        return held
    if held is not None or stored is None or stored.number != number or attempt < dispatch.attempts(job_id):
        raise StaleError("stale fence token: the job is not this worker's any more")
    held = Held(stored.message, "persisted", number, attempt)
    dispatch.adopt(worker, held, fence)
    log.info("adopted a job", extra={"job": job_id, "worker": worker.id})
    return held
