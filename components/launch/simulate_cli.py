"""``penstock simulate``: reads flags, runs the fleets they name, shows one table. The work is `simulate`'s."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from components.launch.target import fail
from components.launch.views import make_table
from components.router.policies import POLICIES
from components.simulate.outcome import Slo
from components.simulate.scenario import Scenario, ScenarioError, grid
from components.simulate.simulation import simulate as run_scenario
from components.simulate.table import Row, as_json, told_apart
from components.simulate.trace import Request, TraceError, cut, read_trace

_DEFAULTS = Scenario()


def _list(help_text: str) -> Any:
    return typer.Option(metavar="VALUE[,VALUE…]", help=help_text)


def simulate(
    trace: Annotated[Path, typer.Argument(metavar="TRACE.jsonl", help="Requests in Mooncake's format.")],
    speed: Annotated[str, _list("The trace's requests come so many times as fast.")] = "1",
    seconds: Annotated[float | None, typer.Option(help="Only the trace's first so many seconds.", min=0.001)] = None,
    requests: Annotated[int | None, typer.Option(help="At most so many requests.", min=1)] = None,
    workers: Annotated[str, _list("Decode workers.")] = str(_DEFAULTS.workers),
    policy: Annotated[str, _list("How they are chosen: kv, approximate, round_robin, random, least_loaded.")] = "kv",
    block_size: Annotated[str, _list("Tokens a KV block.")] = str(_DEFAULTS.block_size),
    kv_blocks: Annotated[str, _list("KV blocks of each engine.")] = str(_DEFAULTS.kv_blocks),
    timing: Annotated[str, _list("Timing tables: built-in ones, or JSON files.")] = _DEFAULTS.timing,
    seed: Annotated[int, typer.Option(help="Of all chance; the same arguments give the same figures.")] = 0,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="A request counts as served well within so much.", min=0)] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Likewise, for each further token.", min=0)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there; - for standard output.")] = None,
) -> None:
    """Say what a fleet would make of a trace: simulated engines behind the real router, in virtual time.

    Options that take several values, separated by commas, give a table of all combinations.
    """
    try:
        whole = read_trace(trace)
        scenarios = grid(
            Scenario(seed=seed),
            {
                "timing": _texts(timing),
                "workers": _integers("workers", workers),
                "block_size": _integers("block-size", block_size),
                "kv_blocks": _integers("kv-blocks", kv_blocks),
                "policy": _policies(policy),
            },
        )
        speeds = _positive("speed", speed)
    except (TraceError, ScenarioError) as error:
        fail(str(error))
    slo = Slo(slo_ttft_ms, slo_tpot_ms)
    rows: list[Row] = []
    try:
        with _bar() as bar:
            for factor in speeds:
                kept = cut(whole, factor, seconds, requests)
                rows += [_run(bar, f"{trace.stem} x {factor:g}", kept, scenario, slo) for scenario in scenarios]
    except ScenarioError as error:
        fail(str(error))
    _show(rows, json_file)


def _run(bar: Progress, name: str, requests: Sequence[Request], scenario: Scenario, slo: Slo) -> Row:
    task = bar.add_task(f"{name}, {scenario.workers} workers, {scenario.policy}", total=len(requests))
    outcome = run_scenario(requests, scenario, lambda ended: bar.update(task, completed=ended))
    bar.remove_task(task)
    return Row(name, scenario, outcome.figures(slo))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


_COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("prefix reuse", lambda row: f"{row.figures.reuse_ratio:.3f}"),
    ("TTFT ms: mean", lambda row: f"{row.figures.ttft_mean_ms:,.0f}"),
    ("p50", lambda row: f"{row.figures.ttft_p50_ms:,.0f}"),
    ("p99", lambda row: f"{row.figures.ttft_p99_ms:,.0f}"),
    ("TPOT ms: mean", lambda row: f"{row.figures.tpot_mean_ms:,.1f}"),
    ("p99", lambda row: f"{row.figures.tpot_p99_ms:,.1f}"),
    ("E2E ms: mean", lambda row: f"{row.figures.e2e_mean_ms:,.0f}"),
    ("output tokens/s", lambda row: f"{row.figures.output_tokens_per_s:,.0f}"),
    ("busy", lambda row: f"{row.figures.busy_ratio:.0%}"),
]


def table_of(rows: Sequence[Row]) -> Table:
    """Return the table people see: what tells the rows apart, then the figures."""
    fields = told_apart(rows)
    several_traces = len({row.trace for row in rows}) > 1
    columns = list(_COLUMNS)
    if rows[0].figures.within_slo_ratio is not None:
        columns.append(("within SLO", lambda row: f"{row.figures.within_slo_ratio or 0:.1%}"))
    heads = [*(["trace"] if several_traces else []), *(field.replace("_", " ") for field in fields)]
    table = make_table(*heads, *(head for head, _ in columns))
    for row in rows:
        names = [*([row.trace] if several_traces else []), *(str(getattr(row.scenario, field)) for field in fields)]
        table.add_row(*names, *(cell(row) for _, cell in columns))
    return table


def _show(rows: Sequence[Row], json_file: Path | None) -> None:
    if json_file == Path("-"):
        typer.echo(json.dumps(as_json(rows), indent=1))
        return
    first = rows[0]
    typer.echo(f"{first.trace}, {first.figures.requests:,} requests, {first.scenario.workers} workers")
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table_of(rows))
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(rows), indent=1) + "\n")


def _texts(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _integers(name: str, text: str) -> list[int]:
    try:
        values = [int(word) for word in text.split(",")]
    except ValueError:
        raise ScenarioError(f"--{name}: must be whole numbers, separated by commas, not {text!r}") from None
    if min(values) < 1:
        raise ScenarioError(f"--{name}: must be at least 1")
    return values


def _positive(name: str, text: str) -> list[float]:
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        raise ScenarioError(f"--{name}: must be numbers, separated by commas, not {text!r}") from None
    if not all(0 < value < float("inf") for value in values):
        raise ScenarioError(f"--{name}: must be more than 0")
    return values


def _policies(text: str) -> list[str]:
    names = _texts(text)
    for name in names:
        if name not in POLICIES:
            raise ScenarioError(f"--policy: no policy is called {name!r}; there are {', '.join(POLICIES)}")
    return names
