"""What can happen to a supervisor; it handles one of these at a time."""

from dataclasses import dataclass

from components.graph.schema import Nats
from components.launch.child import Child
from components.wire.process import ProcessStatus


@dataclass(frozen=True)
class Started:
    """A process exists."""

    name: str
    child: Child


@dataclass(frozen=True)
class Died:
    """A process is gone; without an exit code it never came to be.

    Attributes:
        exit_code: negative for a signal.
        last_line: the last line of its log, or why it could not be started.
    """

    name: str
    exit_code: int | None
    last_line: str


@dataclass(frozen=True)
class NatsUp:
    """The embedded server listens."""

    settings: Nats


@dataclass(frozen=True)
class Joined:
    """We hear what the processes say; they may start."""


@dataclass(frozen=True)
class Failed:
    """The launch cannot succeed."""

    reason: str


@dataclass(frozen=True)
class StopAsked:
    """Somebody wants the graph to stop; asked twice, at once."""


@dataclass(frozen=True)
class Tick:
    """A little time has passed."""


Event = Started | Died | NatsUp | Joined | ProcessStatus | Failed | StopAsked | Tick
