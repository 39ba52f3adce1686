"""A fixed time for a list of measurements: what no longer fits is left out; results are on disk as they come."""

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import machine


class SkippedError(Exception):
    """A piece cannot be measured here; the text says why."""


class Budget:
    """So many seconds from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_s = clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left, never less than 0."""
        return max(0.0, self._end_s - self._clock())

    def fits(self, seconds: float) -> bool:
        """Return whether something that takes so long can still be done."""
        return seconds <= self.left_s


@dataclass(frozen=True)
class Piece:
    """One measurement.

    Attributes:
        name: in the results, a path such as ``routing/6.0/kv``.
        cost_s: how long it takes, at the most; the budget goes by it.
        measure: returns its figures, plain data.
    """

    name: str
    cost_s: float
    measure: Callable[[], Any]


@dataclass
class Journal:
    """The results so far, written to a file at each change.

    Attributes:
        path: of the JSON file; None writes none.
        facts: what a reader needs to judge the figures.
        results: by piece.
        not_measured: why, by piece.
    """

    path: Path | None
    facts: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    _machine: dict[str, Any] = field(default_factory=machine)

    def write(self) -> None:
        """Replace the file by what is known now; a reader sees the old or the new one, never half."""
        if self.path is None:
            return
        known = {"machine": self._machine, **self.facts, "results": self.results, "not_measured": self.not_measured}
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(known, indent=1) + "\n")
        beside.replace(self.path)


def fitting(pieces: Sequence[Piece], seconds: float) -> list[Piece]:
    """Return those that fit into `seconds`, the first ones first."""
    taken = []
    for piece in pieces:
        if piece.cost_s <= seconds:
            seconds -= piece.cost_s
            taken.append(piece)
    return taken


def carry_out(pieces: Sequence[Piece], budget: Budget, journal: Journal, say: Callable[[str], None] = print) -> None:
    """Measure `pieces` in their order; one that no longer fits is left out, and a shorter one after it still gets its turn.

    A piece that fails costs its own figures only.
    """
    journal.write()
    for piece in pieces:
        if not budget.fits(piece.cost_s):
            journal.not_measured[piece.name] = f"needs {piece.cost_s:.0f} s, {budget.left_s:.0f} s were left"
        else:
            began = time.monotonic()
            try:
                journal.results[piece.name] = piece.measure()
            except SkippedError as error:
                journal.not_measured[piece.name] = str(error)
            except Exception as error:  # noqa: BLE001 - whatever one piece dies of, the machine is there for the next one
                journal.not_measured[piece.name] = f"failed: {type(error).__name__}: {str(error)[-1500:]}"
                say(traceback.format_exc())
            said = journal.not_measured.get(piece.name, "done")
            say(f"[{piece.name}] {said} ({time.monotonic() - began:.1f} s, {budget.left_s:.0f} s left)")
        journal.write()
