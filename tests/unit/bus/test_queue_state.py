"""What is known of a queue between two looks at it."""

from components.bus.queue_state import LastSeen, QueueState


def test_own_puts_and_what_was_heard_count_at_once() -> None:
    """The next look replaces them; a job that was taken is never counted below none."""
    seen = LastSeen()
    seen.put()
    assert seen.recent(0.0, 1.0) is None
    seen.saw(QueueState(1, 0, 0.0, 0), 5.0)
    seen.put()
    assert seen.recent(5.5, 1.0) == QueueState(2, 0, 0.0, 0)
    for _ in range(3):
        seen.taken()
    assert seen.recent(5.5, 1.0) == QueueState(0, 0, 0.0, 0)
    seen.saw(QueueState(4, 2, 1.0, 0), 6.0)
    assert seen.recent(6.5, 1.0) == QueueState(4, 2, 1.0, 0)


def test_what_is_too_old_is_not_known() -> None:
    """However much was put since."""
    seen = LastSeen()
    seen.saw(QueueState(1, 0, 0.0, 0), 5.0)
    seen.put()
    assert seen.recent(6.1, 1.0) is None
