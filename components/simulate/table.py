"""What-if tables: several fleets under several traces, what tells them apart, and what each gave. Pure data."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from components.simulate.outcome import Figures
from components.simulate.scenario import Scenario, value_at, varying


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


class Column(msgspec.Struct, frozen=True):
    """One figure as people see it."""

    title: str
    cell: Callable[[Figures], str]


COLUMNS = [
    Column("prefix reuse", lambda figures: f"{figures.reuse_ratio:.3f}"),
    Column("TTFT ms: mean", lambda figures: f"{figures.ttft_mean_ms:,.0f}"),
    Column("p50", lambda figures: f"{figures.ttft_p50_ms:,.0f}"),
    Column("p99", lambda figures: f"{figures.ttft_p99_ms:,.0f}"),
    Column("TPOT ms: mean", lambda figures: f"{figures.tpot_mean_ms:,.1f}"),
    Column("p99", lambda figures: f"{figures.tpot_p99_ms:,.1f}"),
    Column("E2E ms: mean", lambda figures: f"{figures.e2e_mean_ms:,.0f}"),
    Column("output tokens/s", lambda figures: f"{figures.output_tokens_per_s:,.0f}"),
    Column("busy", lambda figures: f"{figures.busy_ratio:.0%}"),
]
REMOTE = Column("remote prefills", lambda figures: f"{figures.remote_prefills:,}")
WITHIN = Column("within SLO", lambda figures: f"{figures.within_slo_ratio or 0:.1%}")


def columns(rows: Sequence[Row]) -> list[Column]:
    """Return the figures worth a column."""
    more = [REMOTE] if any(row.scenario.prefill_workers for row in rows) else []
    return [*COLUMNS, *more, *([WITHIN] if rows[0].figures.within_slo_ratio is not None else [])]


def fields(rows: Sequence[Row]) -> list[str]:
    """Return the settings that tell rows apart, by their paths; the policy is always among them."""
    differing = varying([row.scenario for row in rows])
    return differing if "policy" in differing else [*differing, "policy"]


def labels(row: Row, paths: Sequence[str]) -> list[str]:
    """Return a row's values of settings."""
    return [str(value_at(row.scenario, path)) for path in paths]


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as they are written for programs."""
    return [
        {"trace": row.trace, "scenario": msgspec.to_builtins(row.scenario), "figures": msgspec.to_builtins(row.figures)}
        for row in rows
    ]
