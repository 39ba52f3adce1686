"""``penstock simulate``: reads flags, runs the fleets they name, shows one table. The work is `simulate`'s."""

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from components.launch.target import fail
from components.launch.views import make_table
from components.simulate.generate import Kind, Traffic, generate
from components.simulate.outcome import Slo
from components.simulate.plots import PlotError, plot
from components.simulate.plots import check as check_plots
from components.simulate.scenario import Scenario, ScenarioError, grid
from components.simulate.simulation import check
from components.simulate.simulation import simulate as run_scenario
from components.simulate.table import Row, as_json, columns, fields, labels
from components.simulate.trace import Request, TraceError, cut, read_trace, write_trace

_DEFAULTS = Scenario()
_TRAFFIC = Traffic(kind=Kind.SESSIONS, requests=2000, rate=10.0)


def _several(help_text: str) -> Any:
    return typer.Option(metavar="VALUE[,VALUE…]", help=help_text)


def simulate(
    trace: Annotated[Path | None, typer.Argument(metavar="[TRACE.jsonl]", help="Requests in Mooncake's format.")] = None,
    make: Annotated[Kind | None, typer.Option("--generate", help="Make traffic up instead.")] = None,
    rate: Annotated[float, typer.Option(help="Made up: requests a second.", min=0.001)] = _TRAFFIC.rate,
    input_tokens: Annotated[int, typer.Option(help="Made up: of a prompt, on average.", min=2)] = _TRAFFIC.input_tokens,
    output_tokens: Annotated[int, typer.Option(help="Made up: of an answer, on average.", min=1)] = _TRAFFIC.output_tokens,
    save_trace: Annotated[Path | None, typer.Option(help="Write the requests there, as a trace.")] = None,
    speed: Annotated[str, _several("Requests come so many times as fast.")] = "1",
    seconds: Annotated[float | None, typer.Option(help="Only the first so many seconds.", min=0.001)] = None,
    requests: Annotated[int | None, typer.Option(help="At most so many requests; made up: 2000.", min=1)] = None,
    workers: Annotated[str, _several("Decode workers; 6+2: and two prefill workers.")] = str(_DEFAULTS.workers),
    policy: Annotated[str, _several("kv, approximate, round_robin, random, least_loaded.")] = _DEFAULTS.policy,
    block_size: Annotated[str, _several("Tokens a KV block.")] = str(_DEFAULTS.block_size),
    kv_blocks: Annotated[str, _several("KV blocks of each engine.")] = str(_DEFAULTS.kv_blocks),
    lmcache_gb: Annotated[str, _several("Memory of an LMCache server that all share, in GiB; 0: none.")] = "0",
    timing: Annotated[str, _several("Timing tables of engines: built-in ones, or JSON files.")] = _DEFAULTS.timing,
    more: Annotated[
        list[str],
        typer.Option("--set", metavar="SETTING=VALUE[,VALUE…]", help="Any other setting, such as router.decode_weight."),
    ] = [],  # noqa: B006 typer copies it
    seed: Annotated[int, typer.Option(help="Of all chance; the same arguments give the same figures.")] = 0,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="Show how many requests began so soon.", min=0)] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="And went on so fast, a token.", min=0)] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw the table there, as SVG.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there; - for standard output.")] = None,
) -> None:
    """Say what fleets would make of traffic: simulated engines behind the real router, in virtual time.

    Options that take several values, separated by commas, give a table of all combinations.
    """
    dimensions = {
        "timing": timing,
        "lmcache_gb": lmcache_gb,
        "workers": workers,
        "block_size": block_size,
        "kv_blocks": kv_blocks,
        **dict(_split(setting) for setting in more),
        "policy": policy,
    }
    for file in (save_trace, json_file, plot_file):
        if file is not None and not file.parent.is_dir():
            fail(f"{file}: there is no folder {file.parent}")
    try:
        if plot_file is not None:
            check_plots()
        fleets = grid(Scenario(seed=seed), {path: values.split(",") for path, values in dimensions.items()})
        speeds = _speeds(speed)
        if make is not None and trace is None:
            count = requests or _TRAFFIC.requests
            name = f"{make.value}, {rate:g}/s"
            whole = generate(
                Traffic(
                    kind=make,
                    requests=count,
                    rate=rate,
                    input_tokens=input_tokens,
                    output_tokens=output_tokens,
                    seed=seed,
                )
            )
        elif trace is not None and make is None:
            name, whole = trace.stem, read_trace(trace)
        else:
            fail("name a trace, or --generate one")
        if save_trace is not None:
            write_trace(save_trace, whole)
        traffic = {f"{name} x {factor:g}": cut(whole, factor, seconds, requests) for factor in speeds}
        rows = _run(traffic, fleets, Slo(slo_ttft_ms, slo_tpot_ms))
        _show(rows, json_file)
        if plot_file is not None:
            plot(rows, plot_file)
    except (TraceError, ScenarioError, PlotError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")


def _run(traffic: Mapping[str, Sequence[Request]], fleets: Sequence[Scenario], slo: Slo) -> list[Row]:
    """Run every fleet under every traffic, with a bar for each run and one for all."""
    for requests, fleet in itertools.product(traffic.values(), fleets):
        check(requests, fleet)  # nothing is simulated in vain
    rows = []
    with _bar() as bar:
        whole = bar.add_task("all", total=sum(map(len, traffic.values())) * len(fleets))
        for name, requests in traffic.items():
            for fleet in fleets:
                task = bar.add_task(f"{name}, {fleet.workers} workers, {fleet.policy}", total=len(requests))
                outcome = run_scenario(requests, fleet, lambda ended, task=task: bar.update(task, completed=ended))  # type: ignore[misc]
                bar.remove_task(task)
                bar.advance(whole, len(requests))
                rows.append(Row(name, fleet, outcome.figures(slo)))
    return rows


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


def table_of(rows: Sequence[Row]) -> Table:
    """Return the table people see: what tells the rows apart, then the figures."""
    paths, shown = fields(rows), columns(rows)
    several = len({row.trace for row in rows}) > 1
    heads = [*(["traffic"] if several else []), *(path.replace("_", " ") for path in paths)]
    table = make_table(*heads, *(column.title for column in shown))
    for row in rows:
        names = [*([row.trace] if several else []), *labels(row, paths)]
        table.add_row(*names, *(column.cell(row.figures) for column in shown))
    return table


def _show(rows: Sequence[Row], json_file: Path | None) -> None:
    if json_file == Path("-"):
        typer.echo(json.dumps(as_json(rows), indent=1))
        return
    first = rows[0]
    typer.echo(f"{first.trace}: {first.figures.requests:,} requests, timing {first.scenario.timing}")
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table_of(rows))
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(rows), indent=1) + "\n")


def _split(setting: str) -> tuple[str, str]:
    path, equals, values = setting.partition("=")
    if not equals:
        fail(f"--set: must be SETTING=VALUE, not {setting!r}")
    return path, values


def _speeds(text: str) -> list[float]:
    try:
        speeds = [float(word) for word in text.split(",")]
    except ValueError:
        fail(f"--speed: must be numbers, separated by commas, not {text!r}")
    if not all(0 < speed < float("inf") for speed in speeds):
        fail("--speed: must be more than 0")
    return speeds
