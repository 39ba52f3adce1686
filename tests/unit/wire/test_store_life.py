"""When what an LMCache server held is gone, by what its process says, or no longer says."""

import pytest

from components.wire.process import ProcessState, ProcessStatus
from components.wire.store_life import StoreLife

READY, STARTING, STOPPED, FAILED = ProcessState.READY, ProcessState.STARTING, ProcessState.STOPPED, ProcessState.FAILED


def hear(life: StoreLife, *words: tuple[str, ProcessState]) -> list[bool]:
    """Return after which of these statuses, one a second, the KV is gone."""
    statuses = [ProcessStatus("lmcache-0", "lmcache", incarnation, 1, "host", state) for incarnation, state in words]
    return [life.hear(status, float(second)) for second, status in enumerate(statuses)]


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        ([("a", READY), ("a", READY)], [False, False]),
        ([("a", STARTING), ("a", READY)], [True, False]),
        ([("a", READY), ("b", READY), ("b", READY)], [False, True, False]),
        ([("a", READY), ("a", STOPPED), ("b", STARTING), ("b", READY)], [False, True, True, False]),
        ([("a", READY), ("b", STARTING), ("a", FAILED), ("b", READY)], [False, True, False, False]),
        ([("a", STOPPED), ("a", STOPPED)], [False, False]),
    ],
)
def test_a_new_life_or_the_end_of_one(words: list[tuple[str, ProcessState]], gone: list[bool]) -> None:
    """The last word of a former life comes too late to matter."""
    assert hear(StoreLife(), *words) == gone


def test_silence_counts_once() -> None:
    """Unless we could not hear; the same life may go on afterwards, with what is stored from then on."""
    life = StoreLife()
    assert not life.fell_silent(100.0, 3.0)
    hear(life, ("a", READY))
    assert not life.fell_silent(3.0, 3.0)
    life.excuse(3.5)
    assert not life.fell_silent(6.5, 3.0)
    assert [life.fell_silent(6.6, 3.0), life.fell_silent(20.0, 3.0)] == [True, False]
    life.excuse(30.0)
    assert not life.fell_silent(40.0, 3.0)
    assert hear(life, ("a", READY)) == [False]
