"""Every error that crosses a process boundary, and the HTTP status each code becomes.

An error raised in one process travels as `ErrorReply` and is raised again, as the same class, in the other. Texts never
hold prompt content.
"""

from enum import StrEnum
from typing import ClassVar

import msgspec


class ErrorCode(StrEnum):
    """What went wrong, for programs."""

    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_API_KEY = "invalid_api_key"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LARGE = "body_too_large"
    UNPROCESSABLE = "unprocessable"
    OVERLOADED = "overloaded"
    WORKER_FAILED = "worker_failed"
    BAD_GATEWAY = "bad_gateway"
    NO_WORKER = "no_worker"
    WORKER_LOST = "worker_lost"
    ENGINE_DIED = "engine_died"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


HTTP_STATUS: dict[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.INVALID_API_KEY: 401,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.REQUEST_TIMEOUT: 408,
    ErrorCode.CONFLICT: 409,
    ErrorCode.BODY_TOO_LARGE: 413,
    ErrorCode.UNPROCESSABLE: 422,
    ErrorCode.OVERLOADED: 429,
    ErrorCode.CANCELLED: 499,
    ErrorCode.INTERNAL: 500,
    ErrorCode.WORKER_FAILED: 502,
    ErrorCode.BAD_GATEWAY: 502,
    ErrorCode.NO_WORKER: 503,
    ErrorCode.WORKER_LOST: 503,
    ErrorCode.ENGINE_DIED: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}


class ErrorReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error on the wire; as the answer to a request it carries the NATS header ``Penstock-Error``.

    Attributes:
        code: the class of error.
        message: for a person; without prompt content.
        param: the request field at fault, as the client named it.
        retry_after_s: when trying again may help, in seconds.
    """

    code: ErrorCode
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class PenstockError(Exception):
    """Root of all errors that may reach a client; subclasses fix the code."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def reply(self) -> ErrorReply:
        """Return this error as it travels."""
        return ErrorReply(self.code, self.message, self.param, self.retry_after_s)


class InvalidRequestError(PenstockError):
    """The request's content is at fault; sending it again changes nothing."""

    code = ErrorCode.INVALID_REQUEST


class ContextLengthExceededError(InvalidRequestError):
    """Prompt and requested output do not fit the model's context."""

    code = ErrorCode.CONTEXT_LENGTH_EXCEEDED


class InvalidApiKeyError(PenstockError):
    """No key, or one the server does not know."""

    code = ErrorCode.INVALID_API_KEY


class ModelNotFoundError(PenstockError):
    """The named model is not served here."""

    code = ErrorCode.MODEL_NOT_FOUND


class NotFoundError(PenstockError):
    """Nothing is at this path, or has this name."""

    code = ErrorCode.NOT_FOUND


class MethodNotAllowedError(PenstockError):
    """The path exists, but not for this HTTP method."""

    code = ErrorCode.METHOD_NOT_ALLOWED


class ConflictError(PenstockError):
    """What the request would make is there already, or does not stand as the request takes it to."""

    code = ErrorCode.CONFLICT


class WorkerFailedError(PenstockError):
    """The worker that had the request answered that it cannot do it."""

    code = ErrorCode.WORKER_FAILED


class RequestTimeoutError(PenstockError):
    """The client began to send a request and did not end in time."""

    code = ErrorCode.REQUEST_TIMEOUT


class BodyTooLargeError(PenstockError):
    """The request body exceeds the server's limit."""

    code = ErrorCode.BODY_TOO_LARGE


class UnprocessableError(PenstockError):
    """The body is JSON, but its fields are not of the types that the route takes."""

    code = ErrorCode.UNPROCESSABLE


class OverloadedError(PenstockError):
    """The server holds as many requests as it takes; try again later."""

    code = ErrorCode.OVERLOADED


class BadGatewayError(PenstockError):
    """A process that this server had to ask cannot be reached, or failed."""

    code = ErrorCode.BAD_GATEWAY


class NoWorkerError(PenstockError):
    """No worker is ready to take the request."""

    code = ErrorCode.NO_WORKER


class WorkerLostError(PenstockError):
    """The worker died, vanished or fell silent while it held the request."""

    code = ErrorCode.WORKER_LOST


class EngineDiedError(WorkerLostError):
    """The worker's engine died while it held the request, perhaps because of it."""

    code = ErrorCode.ENGINE_DIED


class DeadlineExceededError(PenstockError):
    """The request's time was over before its answer was complete."""

    code = ErrorCode.DEADLINE_EXCEEDED


class CancelledError(PenstockError):
    """The request was cancelled by its client."""

    code = ErrorCode.CANCELLED


_BY_CODE: dict[ErrorCode, type[PenstockError]] = {
    cls.code: cls
    for cls in (
        PenstockError,
        InvalidRequestError,
        ContextLengthExceededError,
        InvalidApiKeyError,
        ModelNotFoundError,
        NotFoundError,
        MethodNotAllowedError,
        ConflictError,
        WorkerFailedError,
        RequestTimeoutError,
        BodyTooLargeError,
        UnprocessableError,
        OverloadedError,
        BadGatewayError,
        NoWorkerError,
        WorkerLostError,
        EngineDiedError,
        DeadlineExceededError,
        CancelledError,
    )
}


def from_reply(reply: ErrorReply) -> PenstockError:
    """Return the exception that `reply` describes."""
    return _BY_CODE[reply.code](reply.message, param=reply.param, retry_after_s=reply.retry_after_s)
