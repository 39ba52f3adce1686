"""The calls of the last while, by their event ids, for /check_finish."""

import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from components.cache_controller.contract import EventStatus
from components.wire.errors import InvalidRequestError, PenstockError

_KEPT = 10_000


class Events:
    """What became of each call; the oldest are forgotten first."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._events: OrderedDict[str, EventStatus] = OrderedDict()

    @contextmanager
    def call(self, kind: str, event_id: str | None) -> Iterator[str]:
        """Yield the event id of a call that lasts as long as this context.

        Args:
            kind: what is called; made-up ids begin with it, as LMCache's do.
            event_id: the caller's own; None makes one up.

        Raises:
            InvalidRequestError: a call of this id is running.
        """
        name = event_id or f"{kind}{secrets.token_hex(16)}"
        former = self._events.get(name)
        if former is not None and former.status == "running":
            raise InvalidRequestError("a call with this event_id is still running", param="event_id")
        self._keep(EventStatus(name, "running"))
        try:
            yield name
        except BaseException as error:
            text = error.message if isinstance(error, PenstockError) else "the call was given up"
            self._keep(EventStatus(name, "failed", text))
            raise
        self._keep(EventStatus(name, "finished"))

    def status(self, event_id: str) -> EventStatus | None:
        """Return how a call is doing; None when it is not known (any more)."""
        return self._events.get(event_id)

    def _keep(self, event: EventStatus) -> None:
        self._events[event.event_id] = event
        self._events.move_to_end(event.event_id)
        while len(self._events) > self._kept:
            self._events.popitem(last=False)
