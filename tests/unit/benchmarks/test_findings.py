"""Statistics and goals of `benchmarks.findings`."""

import pytest

from benchmarks.findings import Goal, number, ratio_of, spread_of, text_of


def test_a_spread_is_median_and_ends() -> None:
    """The median of an even number of rounds lies between the middle two."""
    spread = spread_of([4.0, 1.0, 3.0, 2.0])
    assert (spread.median, spread.least, spread.most, spread.count) == (2.5, 1.0, 4.0, 4)


def test_a_ratio_compares_rounds_with_their_own_rounds() -> None:
    """A machine twice as slow in one round slows both sides, and leaves the ratio."""
    assert ratio_of([10, 5, 10], [5, 2.5, 5]) == 2
    assert ratio_of([10, 10], [0, 5]) == 2
    assert ratio_of([1], []) is None


@pytest.mark.parametrize(
    ("value", "sense", "reached"),
    [
        (2.0, "at least", True),
        (1.9, "at least", False),
        (2.0, "at most", True),
        (2.1, "at most", False),
        (None, "at most", None),
    ],
)
def test_a_goal_is_reached_missed_or_unknown(value: float | None, sense: str, reached: bool | None) -> None:
    """The bound itself is reached."""
    assert Goal("what", value, sense, 2.0).reached is reached  # type: ignore[arg-type]  # the parameters are strings


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (99.44, "99.4"), (1.234, "1.23"), (0.01234, "0.0123"), (0.998, "0.998"), (0.0, "0.00")],
)
def test_a_number_has_about_three_digits(value: float, text: str) -> None:
    """Neither more than was measured, nor less than is needed."""
    assert number(value) == text


def test_samples_as_a_table_shows_them() -> None:
    """One round has no spread, and none no figure."""
    assert text_of([]) == "-"
    assert text_of([5.0]) == "5.00"
    assert text_of([5.0, 7.0, 6.0]) == "6.00 (5.00 to 7.00)"
