"""What is kept of a chat job: in its work queue until it is finished, and as a record from then on."""

from enum import StrEnum

from components.wire.messages import Message


class JobStatus(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class Job(Message, frozen=True):
    """A job as it waits in its queue.

    Attributes:
        id: unique.
        config_id: which workers may have it.
        created_unix_s: when it was submitted.
        payload: JSON text, as submitted; empty when `payload_object` is set.
        payload_object: name of the stored object that holds a long payload.
    """

    id: str
    config_id: str
    created_unix_s: float
    payload: bytes = b""
    payload_object: str | None = None


class JobRecord(Message, frozen=True):
    """A finished job.

    Attributes:
        job: as it was submitted.
        status: completed or failed.
        attempts: how often it was given to a worker.
        finished_unix_s: when.
        result: JSON text, as the worker sent it; empty when it failed, or `result_object` is set.
        result_object: name of the stored object that holds a long result.
        error: why it failed.
        fence_token: of the assignment that finished it; a result sent again with it is known.
        worker_id: who finished it.
    """

    job: Job
    status: JobStatus
    attempts: int
    finished_unix_s: float
    result: bytes = b""
    result_object: str | None = None
    error: str | None = None
    fence_token: str = ""
    worker_id: str = ""


class FenceKey(Message, frozen=True):
    """What a queue signs fence tokens with, so that it knows its own again after a restart."""

    key: bytes
