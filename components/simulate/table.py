"""What-if tables: several fleets under several traces, and which of their fields tell them apart. Pure data."""

from collections.abc import Sequence
from typing import Any

import msgspec

from components.simulate.outcome import Figures
from components.simulate.scenario import Scenario


class Row(msgspec.Struct, frozen=True):
    """One run.

    Attributes:
        trace: what was asked of the fleet, in words.
        scenario: the fleet.
        figures: what came of it.
    """

    trace: str
    scenario: Scenario
    figures: Figures


def told_apart(rows: Sequence[Row]) -> list[str]:
    """Return the scenarios' fields that differ between rows, in their order; the policy is always among them."""
    fields = [field for field in Scenario.__struct_fields__ if field not in {"router", "disagg"}]
    return [field for field in fields if field == "policy" or len({getattr(row.scenario, field) for row in rows}) > 1]


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as they are written for programs."""
    return [
        {"trace": row.trace, "scenario": msgspec.to_builtins(row.scenario), "figures": msgspec.to_builtins(row.figures)}
        for row in rows
    ]
