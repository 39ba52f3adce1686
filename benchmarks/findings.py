"""What a piece of the benchmark found: figures with their spread, and goals with whether they are reached. Pure data."""

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """One measured quantity.

    Attributes:
        name: what was measured, under which load.
        unit: of the samples.
        samples: one value a round, by subject; penstock first.
    """

    name: str
    unit: str
    samples: dict[str, list[float]]


class Goal(msgspec.Struct, frozen=True):
    """One thing that must be reached.

    Attributes:
        name: what.
        value: what was measured; None where it could not be.
        sense: whether `value` may be above or below `bound`.
        bound: the goal.
        unit: of both.
        why_not: where it is not reached or not measured, the reason.
    """

    name: str
    value: float | None
    sense: Literal["at least", "at most"]
    bound: float
    unit: str = ""
    why_not: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None where nothing was measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.sense == "at least" else self.value <= self.bound


class Findings(msgspec.Struct, frozen=True):
    """What one piece found.

    Attributes:
        figures: for the table.
        goals: for the judgement.
        notes: what a reader must know, such as peers that were not there.
    """

    figures: list[Figure]
    goals: list[Goal] = []
    notes: list[str] = []


class Outcome(msgspec.Struct, frozen=True):
    """How one piece ended.

    Attributes:
        piece: its name.
        command: what was run.
        took_s: how long it took, in seconds.
        findings: what it found; None when it failed, or was not run.
        failure: why there are none.
        machine: as `benchmarks.report` tells it.
        raw: what the piece itself wrote down.
    """

    piece: str
    command: str
    took_s: float = 0.0
    findings: Findings | None = None
    failure: str = ""
    machine: dict[str, object] = {}
    raw: dict[str, object] = {}


class Spread(msgspec.Struct, frozen=True):
    """A median and what lies around it."""

    median: float
    least: float
    most: float
    count: int


def spread_of(samples: Sequence[float]) -> Spread:
    """Return the spread of `samples`, of which there is at least one."""
    return Spread(statistics.median(samples), min(samples), max(samples), len(samples))


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the median over rounds of our figure divided by theirs of the same round; None without rounds in common."""
    pairs = [mine / other for mine, other in zip(ours, theirs, strict=False) if other]
    return statistics.median(pairs) if pairs else None


def number(value: float) -> str:
    """Return `value` with about three digits, as tables show it."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 or not value else 3 if size >= 0.1 else 4
    return f"{value:,.{digits}f}"


def text_of(samples: Sequence[float]) -> str:
    """Return ``median (min to max)`` of `samples`."""
    if not samples:
        return "-"
    spread = spread_of(samples)
    if spread.count == 1:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.least)} to {number(spread.most)})"
