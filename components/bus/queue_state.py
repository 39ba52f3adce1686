"""How a lane of a queue stands: as the server said, and as this process knows better since. No I/O, no clock."""

import msgspec
from msgspec.structs import replace


class QueueState(msgspec.Struct, frozen=True):
    """How a lane stands.

    Attributes:
        waiting: jobs nobody has.
        under_way: jobs under a lease, or about to be delivered again.
        oldest_age_s: age of the oldest job of the whole queue, 0 when there is none.
        idle_takers: takers that wait for a job at this moment.
    """

    waiting: int
    under_way: int
    oldest_age_s: float
    idle_takers: int


class LastSeen:
    """The state of a lane when it was last looked at, and what this process did to it, or heard of it, since."""

    def __init__(self) -> None:
        self._state: QueueState | None = None
        self._at_s = 0.0

    def saw(self, state: QueueState, now_s: float) -> None:
        """Take in how the server says it stands."""
        self._state, self._at_s = state, now_s

    def put(self) -> None:
        """A job was put."""
        self._more(1)

    def taken(self) -> None:
        """A job that waited was taken."""
        self._more(-1)

    def recent(self, now_s: float, patience_s: float) -> QueueState | None:
        """Return it; None when the last look is longer ago than `patience_s`."""
        return None if now_s - self._at_s > patience_s else self._state

    def _more(self, jobs: int) -> None:
        if self._state is not None:
            self._state = replace(self._state, waiting=max(self._state.waiting + jobs, 0))
