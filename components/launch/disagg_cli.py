"""``penstock disagg``: by which rules decode workers leave prompts to others, what came of it, and how to change them."""

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
import typer
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from components.bus.member import Nothing
from components.graph.load import GraphError, change_disagg, dump_graph, load_graph
from components.graph.schema import Disagg
from components.graph.yaml_text import YamlTextError, read_yaml
from components.launch.graph_bus import GraphBus, ask_graph
from components.launch.state import GraphState, StateFolder
from components.launch.target import fail, one_state
from components.launch.views import make_table
from components.launch.watch import Phase
from components.telemetry.metrics import samples
from components.wire.prefill import DisaggChange, DisaggRules
from components.wire.process import MetricSample, MetricsReply

_ANSWER_S = 2.0
_PLACED, _ENDED, _OVERHEAD = (
    "penstock_placements_total",
    "penstock_remote_prefills_total",
    "penstock_remote_prefill_overhead_seconds",
)


class Overhead(msgspec.Struct, frozen=True):
    """What remote prefills took beyond the computing, in seconds.

    Attributes:
        count: how many.
        mean_s: exact; None when there were none.
        p50_s: read off a histogram, so about right.
    """

    count: int = 0
    mean_s: float | None = None
    p50_s: float | None = None


class WorkerView(msgspec.Struct, frozen=True):
    """One decode worker, as ``penstock disagg --json`` shows it.

    Attributes:
        worker: its name.
        rules: by which it goes; None when it did not answer.
        error: why it refused a change, or did not answer.
        placements: long prompts since it started, by the reason why they were prefilled where they were.
        remote_prefills: jobs it put, by how they ended.
        overhead: what they cost.
    """

    worker: str
    rules: dict[str, Any] | None
    error: str
    placements: dict[str, int]
    remote_prefills: dict[str, int]
    overhead: Overhead


def disagg(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] [RULE=VALUE]…", help="Such as max_local_prefill_tokens=1000.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show when decode workers leave prompts to prefill workers and what came of it; change the rules while they serve."""
    names = [word for word in words or [] if "=" not in word]
    if len(names) > 1:
        fail(f"one graph at a time, not {', '.join(names)}; a rule is RULE=VALUE")
    changes = _changes([word for word in words or [] if "=" in word])
    state = one_state(names[0] if names else None)
    _refuse_without_prefill(state)
    views = ask_graph(state, lambda connected: _ask(connected, changes))
    if changes and not all(view.error for view in views):
        _keep(state, changes)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(views), indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else 200, markup=False)
        console.print(rules_table(views))
        console.print()
        console.print(prompts_table(views))
        for view in views:
            if view.error:
                typer.echo(f"{view.worker}: {view.error}", err=True)
    if not views:
        fail(f"graph {state.graph}: no decode worker answers", exit_code=1)
    if any(view.error for view in views):
        sys.exit(1)


def _changes(words: Sequence[str]) -> dict[str, Any]:
    """Return rules and their new values, or end with what is wrong with them before anybody hears of them."""
    changes: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            changes[name] = read_yaml(value)
        except YamlTextError as error:
            fail(f"{word[:100]}: the value {error}")
    try:
        change_disagg(Disagg(), changes)
    except GraphError as error:
        fail(str(error))
    return changes


def _refuse_without_prefill(state: GraphState) -> None:
    try:
        graph = load_graph(StateFolder(state.graph).graph_file)
    except GraphError as error:
        fail(str(error), exit_code=1)
    if not graph.disaggregated:
        fail(f"graph {state.graph} has no prefill workers: every decode worker prefills its own prompts", exit_code=1)


async def _ask(connected: GraphBus, changes: dict[str, Any]) -> list[WorkerView]:
    bus, subjects = connected.bus, connected.subjects
    here = [p for p in connected.state.processes if p.component == "decode" and p.phase is Phase.READY]
    elsewhere = connected.graph.host != ""  # then nobody here knows how many there are
    rules = await bus.gather(
        subjects.disagg(), DisaggChange(changes), DisaggRules, _ANSWER_S, sys.maxsize if elsewhere else len(here)
    )
    everybody = (
        sys.maxsize if elsewhere else sum(p.pid is not None and p.component != "nats" for p in connected.state.processes)
    )
    metrics = await bus.gather(subjects.scrape(), Nothing(), MetricsReply, _ANSWER_S, everybody)
    return worker_views([process.name for process in here], rules, metrics)


def _keep(state: GraphState, changes: dict[str, Any]) -> None:
    """Have workers that start again on this machine go by the new rules too."""
    folder = StateFolder(state.graph)
    graph = load_graph(folder.graph_file)
    if decode := graph.components.decode:
        decode = replace(decode, disagg=change_disagg(decode.disagg, changes))
        folder.write_graph(dump_graph(replace(graph, components=replace(graph.components, decode=decode))))


def worker_views(here: Sequence[str], rules: Iterable[DisaggRules], metrics: Iterable[MetricsReply]) -> list[WorkerView]:
    """Return what is known of each decode worker, by name: those that answered, and those `here` that did not."""
    answers = {each.worker: each for each in rules}
    scraped = {each.process: each for each in metrics}
    views = []
    for name in sorted({*here, *answers}):
        answer, metric = answers.get(name), scraped.get(name, MetricsReply(name, []))
        error = "did not answer" if answer is None else answer.error.message if answer.error else ""
        views.append(
            WorkerView(
                name,
                answer.rules if answer else None,
                error,
                _by_label(metric, _PLACED, "reason"),
                _by_label(metric, _ENDED, "outcome"),
                overhead(samples(metric, _OVERHEAD)),
            )
        )
    return views


def _by_label(metric: MetricsReply, name: str, label: str) -> dict[str, int]:
    found = {sample.labels[label]: int(sample.value) for sample in samples(metric, name)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def overhead(histogram: Iterable[MetricSample]) -> Overhead:
    """Return the count, mean and median of a Prometheus histogram; the median by straight lines between its bounds."""
    count, total_s, bounds = 0, 0.0, []
    for sample in histogram:
        if sample.name.endswith("_count"):
            count = int(sample.value)
        elif sample.name.endswith("_sum"):
            total_s = sample.value
        elif sample.name.endswith("_bucket"):
            bounds.append((float(sample.labels["le"]), sample.value))
    return Overhead(count, total_s / count, _median(sorted(bounds), count)) if count else Overhead()


def _median(bounds: Sequence[tuple[float, float]], count: int) -> float | None:
    lower, below = 0.0, 0.0
    for bound, up_to in bounds:
        if up_to >= count / 2:
            within = (count / 2 - below) / (up_to - below) if up_to > below else 1.0
            return lower if bound == float("inf") else lower + (bound - lower) * within
        lower, below = bound, up_to
    return None


def rules_table(views: Iterable[WorkerView]) -> Table:
    """Return the rules in force, a line a worker."""
    names = Disagg.__struct_fields__
    table = make_table("worker", *names)
    for view in views:
        table.add_row(view.worker, *(_plain((view.rules or {}).get(name)) for name in names))
    return table


def prompts_table(views: Iterable[WorkerView]) -> Table:
    """Return what became of long prompts, a line a worker."""
    table = make_table("worker", "long prompts", "remote prefills", "overhead p50", "mean")
    for view in views:
        took = view.overhead
        table.add_row(
            view.worker, _counts(view.placements), _counts(view.remote_prefills), _ms(took.p50_s), _ms(took.mean_s)
        )
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s * 1e3:.1f} ms"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
