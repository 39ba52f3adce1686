"""Virtual time never goes back, and keeps the order of what was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.simulate.clock import Clock


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50))
def test_order(times_s: list[int]) -> None:
    """What is due first happens first; of equals, what was asked for first."""
    clock, seen = Clock(), list[tuple[float, int]]()
    for number, time_s in enumerate(times_s):
        clock.at(time_s, lambda number=number: seen.append((clock.now_s, number)))  # type: ignore[misc]
    clock.run(lambda: len(seen) == len(times_s))
    assert seen == sorted((time_s, number) for number, time_s in enumerate(times_s))


def test_the_past_is_refused() -> None:
    """Nothing can be asked of a time that is over."""
    clock, done = Clock(), list[bool]()
    clock.at(2.0, lambda: done.append(True))
    clock.run(lambda: bool(done))
    with pytest.raises(ValueError, match="is over"):
        clock.at(1.0, done.clear)
