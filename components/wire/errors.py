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
    REQUEST_TIMEOUT = "request_timeout"
    CONFLICT = "conflict"
    BODY_TOO_LARGE = "body_too_large"
    MALFORMED_BODY = "malformed_body"
    OVERLOADED = "overloaded"
    NO_WORKER = "no_worker"
    WORKER_LOST = "worker_lost"
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
    ErrorCode.MALFORMED_BODY: 422,
    ErrorCode.OVERLOADED: 429,
    ErrorCode.CANCELLED: 499,
    ErrorCode.INTERNAL: 500,
    ErrorCode.NO_WORKER: 503,
    ErrorCode.WORKER_LOST: 503,
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
    """Nothing is at this path."""

    code = ErrorCode.NOT_FOUND


class MethodNotAllowedError(PenstockError):
    """The path exists, but not for this HTTP method."""

    code = ErrorCode.METHOD_NOT_ALLOWED


class RequestTimeoutError(PenstockError):
    """The client began to send a request and did not end in time."""

    code = ErrorCode.REQUEST_TIMEOUT


class ConflictError(PenstockError):
    """What is asked for does not go with what is there: a name in use, a state that does not allow it."""

    code = ErrorCode.CONFLICT


class BodyTooLargeError(PenstockError):
    """The request body exceeds the server's limit."""

    code = ErrorCode.BODY_TOO_LARGE


class MalformedBodyError(PenstockError):
    """The worker controller's body has not the fields, or the types, that it must have."""

    code = ErrorCode.MALFORMED_BODY


class OverloadedError(PenstockError):
    """The server holds as many requests as it takes; try again later."""

    code = ErrorCode.OVERLOADED


class NoWorkerError(PenstockError):
    """No worker is ready to take the request."""

    code = ErrorCode.NO_WORKER


class WorkerLostError(PenstockError):
    """The worker died, vanished or fell silent while it held the request."""

    code = ErrorCode.WORKER_LOST


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
        RequestTimeoutError,
        ConflictError,
        BodyTooLargeError,
        MalformedBodyError,
        OverloadedError,
        NoWorkerError,
        WorkerLostError,
        DeadlineExceededError,
        CancelledError,
    )
}


def from_reply(reply: ErrorReply) -> PenstockError:
    """Return the exception that `reply` describes."""
    return _BY_CODE[reply.code](reply.message, param=reply.param, retry_after_s=reply.retry_after_s)
