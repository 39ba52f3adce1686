"""What became of calls."""

import pytest

from components.cache_controller.events import Events
from components.wire.errors import InvalidRequestError, NotFoundError


def test_calls_run_finish_and_fail() -> None:
    """By the caller's id, or by one that is made up."""
    events = Events()
    with events.call("Clear", None) as event_id:
        assert event_id.startswith("Clear")
        assert (running := events.status(event_id)) is not None
        assert running.status == "running"
        with pytest.raises(InvalidRequestError, match="still running"), events.call("Clear", event_id):
            pass
    assert (finished := events.status(event_id)) is not None
    assert finished.status == "finished"
    with pytest.raises(NotFoundError), events.call("Clear", "mine"):
        raise NotFoundError("nobody")
    failed = events.status("mine")
    assert failed is not None
    assert (failed.status, failed.error) == ("failed", "nobody")


def test_old_calls_are_forgotten() -> None:
    """The oldest first."""
    events = Events(kept=2)
    for name in "abc":
        with events.call("Lookup", name):
            pass
    assert [name for name in "abc" if events.status(name)] == ["b", "c"]
