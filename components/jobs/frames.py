"""The frames between a queue and its workers: JSON text, told apart by `type`. What is marked ours is in no document.

A receiver ignores keys it does not know; a frame of an unknown type is answered with an `Error`.
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

MAX_INLINE_BYTES = 262_144  # longer payloads and results travel by HTTP, and the frame holds a reference

Id = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:@-]+$")]
Fence = str | int
Mode = Literal["transient", "persisted"]


ABSENT = msgspec.Raw(b"null")
"""In the place of a payload that travels by reference; it is left out of the text."""


class Frame(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type"):
    """Root of all frames."""


class Running(msgspec.Struct, frozen=True):
    """A job that a worker has at hand while it registers, from before its connection was lost."""

    job_id: str
    fence_token: Fence


class Register(Frame, frozen=True, tag="register"):
    """A worker's first frame: who it is, which jobs it takes, how many at a time, and which it runs already (ours)."""

    worker_id: Id
    config_id: Id
    capacity: Annotated[int, Meta(ge=1, le=10_000)] = 1
    running: list[Running] = []


class JobResult(Frame, frozen=True, tag="job_result"):
    """A job is done."""

    job_id: str
    fence_token: Fence
    result: msgspec.Raw


class JobResultRef(Frame, frozen=True, tag="job_result_ref"):
    """A job is done, and its result was PUT to `result_upload_url`; sent back, the queue has it."""

    job_id: str
    fence_token: Fence


class JobError(Frame, frozen=True, tag="job_error"):
    """A job cannot be done; it would not help to try again."""

    job_id: str
    fence_token: Fence
    error: str


class JobProgress(Frame, frozen=True, tag="job_progress"):
    """A job goes on: renews its lease."""

    job_id: str
    fence_token: Fence
    progress: Annotated[float, Meta(ge=0, le=1)] | None = None
    status_message: str | None = None


class JobChunk(Frame, frozen=True, tag="job_chunk"):
    """The next OpenAI chunk of a job that somebody reads as a stream (ours)."""

    job_id: str
    fence_token: Fence
    chunk: msgspec.Raw


class JobRelease(Frame, frozen=True, tag="job_release"):
    """A job is given back unfinished; somebody else may try (ours)."""

    job_id: str
    fence_token: Fence
    reason: str = ""


class Drain(Frame, frozen=True, tag="drain"):
    """No more jobs; the running ones are finished."""


class Pause(Frame, frozen=True, tag="pause"):
    """No more jobs until `Resume`."""


class Resume(Frame, frozen=True, tag="resume"):
    """Jobs again."""


class Registered(Frame, frozen=True, tag="registered"):
    """The queue has the worker (ours): results are acknowledged, and who is silent for `lease_s` seconds loses its jobs."""

    lease_s: float


class AssignedJob(Frame, frozen=True, tag="job"):
    """A job to run.

    Attributes:
        payload: the job itself; absent when it must be fetched.
        payload_url: where to fetch a long one.
        result_upload_url: where to PUT a long result.
        stream: somebody reads the chunks as they come (ours).
    """

    job_id: str
    mode: Mode
    config_id: str
    fence_token: Fence
    payload: msgspec.Raw = ABSENT
    payload_url: str | None = None
    result_upload_url: str | None = None
    stream: bool = False


class JobRevoked(Frame, frozen=True, tag="job_revoked"):
    """The job is no longer the worker's: stop it, and send nothing more of it."""

    job_id: str
    reason: str


class JobAck(Frame, frozen=True, tag="job_ack"):
    """The queue has stored the result or error of a job (ours)."""

    job_id: str
    fence_token: Fence


class Error(Frame, frozen=True, tag="error"):
    """What was wrong with the last frame; the connection goes on."""

    message: str


FromWorker = Register | JobResult | JobResultRef | JobError | JobProgress | JobChunk | JobRelease | Drain | Pause | Resume
FromQueue = AssignedJob | JobRevoked | JobResultRef | JobAck | Registered | Error

F = TypeVar("F")

_encoder = msgspec.json.Encoder()
_from_worker: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
_from_queue: msgspec.json.Decoder[FromQueue] = msgspec.json.Decoder(FromQueue)


class FrameError(ValueError):
    """A text is no frame; the message says why, without its content."""


def encode(frame: Frame) -> str:
    """Return `frame` as text."""
    return _encoder.encode(frame).decode()


def from_worker(text: str) -> FromWorker:
    """Return the frame a worker sent.

    Raises:
        FrameError: it is none.
    """
    return _decode(text, _from_worker)


def from_queue(text: str) -> FromQueue:
    """Return the frame a queue sent.

    Raises:
        FrameError: it is none.
    """
    return _decode(text, _from_queue)


def _decode(text: str, decoder: "msgspec.json.Decoder[F]") -> F:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise FrameError(f"not a frame of this protocol: {error}") from None
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise FrameError("not JSON") from None
