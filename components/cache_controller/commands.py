"""What a worker can be told to do, and what can go wrong when it is told."""

from dataclasses import dataclass

from components.wire.errors import BadGatewayError, DeadlineExceededError


@dataclass(frozen=True)
class ClearCommand:
    """Drop everything at a location."""

    location: str


@dataclass(frozen=True)
class PinCommand:
    """Keep tokens from being evicted."""

    location: str
    tokens: list[int]


@dataclass(frozen=True)
class CompressCommand:
    """Compress tokens, or undo it; None means all."""

    location: str
    method: str
    tokens: list[int] | None
    undo: bool


@dataclass(frozen=True)
class MoveCommand:
    """Send tokens to a peer; None means all."""

    location: str
    peer_url: str
    peer_location: str
    tokens: list[int] | None
    copy: bool


@dataclass(frozen=True)
class HealthCommand:
    """Say how you are."""


Command = ClearCommand | PinCommand | CompressCommand | MoveCommand | HealthCommand


class WorkerUnreachableError(BadGatewayError):
    """Nobody listens where the worker should be."""


class WorkerFailedError(BadGatewayError):
    """The worker answers that it cannot."""


class WorkerSilentError(DeadlineExceededError):
    """The worker's process is there and does not answer."""
