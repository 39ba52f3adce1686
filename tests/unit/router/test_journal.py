"""Tests for the journal of decisions: newest first, and bounded."""

from components.router.journal import Entry, Journal


def entry(number: int) -> Entry:
    """A decision."""
    return Entry(f"r{number}", float(number), "decode-0", 70, 2, 2, 0, 6, 1.5, 3, "exact", 80.0)


def test_the_last_ones_come_newest_first() -> None:
    """And no more than asked for."""
    journal = Journal()
    for number in range(10):
        journal.write(entry(number))
    assert [each.request_id for each in journal.last(3)] == ["r9", "r8", "r7"]
    assert len(list(journal.last(200))) == 10


def test_old_decisions_make_room() -> None:
    """It never grows beyond its bound; what fell out is not found any more."""
    journal = Journal()
    for number in range(40_000):
        journal.write(entry(number))
    assert len(list(journal.last(100_000))) == 16_384
    assert journal.find("r0") is None
    assert journal.find("r39999") is not None
