"""Jobs and workers as HTTP clients see them. Pure."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from components.jobs.book import Worker
from components.jobs.frames import Id, Mode
from components.jobs.held import Held
from components.wire.jobs import Job, JobRecord, JobStatus


class JobView(msgspec.Struct, frozen=True):
    """A job.

    Attributes:
        attempts: how often it was given to a worker.
        progress: 0 to 1, as its worker says.
        detail: likewise, for a person.
    """

    id: str
    config_id: str
    mode: Mode
    status: JobStatus
    payload: msgspec.Raw | None
    result: msgspec.Raw | None
    error: str | None
    attempts: int
    created_at: str
    finished_at: str | None = None
    worker_id: str | None = None
    progress: float | None = None
    detail: str | None = None


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /jobs.

    Attributes:
        payload: the chat job; its fields are its worker's affair.
        mode: transient jobs are kept in memory only.
        config_id: which workers may have it; default: all.
        id: to find it by; default: a new one.
        job_type: put into the payload, where it is not there already.
    """

    payload: msgspec.Raw
    mode: Mode = "persisted"
    config_id: Id | None = None
    id: Id | None = None
    job_type: str | None = None


class Heartbeat(msgspec.Struct, frozen=True):
    """The body of POST /api/heartbeats."""

    instance_id: Id
    queue_id: str
    status: str
    error_message: str | None = None


class WorkerView(msgspec.Struct, frozen=True):
    """A worker, by its connection and by its heartbeats.

    Attributes:
        connected: whether it has a connection; what follows from it is null otherwise.
        status: by its last heartbeat; null when there was none.
        heartbeat_age_s: how long ago that was.
    """

    worker_id: str
    connected: bool
    config_id: str | None = None
    capacity: int | None = None
    running: list[str] | None = None
    paused: bool | None = None
    draining: bool | None = None
    silent: bool | None = None
    queue_id: str | None = None
    status: str | None = None
    error_message: str | None = None
    heartbeat_age_s: float | None = None


def held_view(held: Held, payload: bytes) -> JobView:
    """Return a job that is in this process."""
    assignment, job = held.assignment, held.job
    return JobView(
        job.id,
        job.config_id,
        held.mode,
        JobStatus.PENDING if held.waits else JobStatus.RUNNING,
        raw(payload),
        None,
        None,
        held.attempts - 1 if held.waits else held.attempts,
        timestamp(job.created_unix_s),
        worker_id=assignment.worker_id if assignment else None,
        progress=assignment.progress if assignment else None,
        detail=assignment.detail if assignment else None,
    )


def record_view(record: JobRecord, payload: bytes, result: bytes, mode: Mode = "persisted") -> JobView:
    """Return a finished job."""
    job = record.job
    return JobView(
        job.id,
        job.config_id,
        mode,
        record.status,
        raw(payload),
        raw(result),
        record.error,
        record.attempts,
        timestamp(job.created_unix_s),
        timestamp(record.finished_unix_s),
        record.worker_id or None,
    )


def pending_view(job: Job, payload: bytes, attempts: int) -> JobView:
    """Return a job that waits in the store."""
    created = timestamp(job.created_unix_s)
    return JobView(job.id, job.config_id, "persisted", JobStatus.PENDING, raw(payload), None, None, attempts, created)


def worker_view(name: str, worker: Worker | None, heartbeat: tuple[Heartbeat, float] | None, now_s: float) -> WorkerView:
    """Return a worker; `heartbeat` is its last one, and when it came."""
    fields: dict[str, Any] = {}
    if worker is not None:
        fields |= {
            "config_id": worker.config_id,
            "capacity": worker.capacity,
            "running": list(worker.running),
            "paused": worker.paused,
            "draining": worker.draining,
            "silent": worker.silent,
        }
    if heartbeat is not None:
        beat, at_s = heartbeat
        fields |= {
            "queue_id": beat.queue_id,
            "status": beat.status,
            "error_message": beat.error_message,
            "heartbeat_age_s": round(now_s - at_s, 3),
        }
    return WorkerView(name, worker is not None, **fields)


def raw(data: bytes) -> msgspec.Raw | None:
    """Return JSON text to be put into JSON as it is; None for nothing."""
    return msgspec.Raw(data) if data else None


def timestamp(unix_s: float) -> str:
    """Return a moment in UTC, such as ``2026-11-21T12:00:00.000Z``."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
