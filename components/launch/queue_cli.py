"""``penstock queue …``: how a graph's work queues stand, and what to do with jobs that nobody could do.

Running a job queue (``serve``) is added by `cli`, which knows how to run things.
"""

import sys
import time
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from components.bus.dead_letters import DeadLetters
from components.graph.load import GraphError, load_graph
from components.launch.graph_bus import GraphBus, ask_graph
from components.launch.state import GraphState, StateFolder
from components.launch.target import Name, fail, one_state
from components.launch.views import make_table
from components.wire.queueing import DeadLetter
from components.worker.prefill_queue import QUEUE, open_prefill_queue

_OF_SERVE = frozenset({"--host", "--port", "--nats", "--name", "--set", "--dry-run"})


class _WithDefaults(TyperGroup):
    """``penstock queue`` runs a job queue (``serve``); ``penstock queue NAME`` is ``penstock queue show NAME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; of a graph named like a command say ``show NAME``."""
        if not args or args[0].partition("=")[0] in _OF_SERVE:
            args = ["serve", *args]
        elif args[0] not in self.commands and args[0] != "--help":
            args = ["show", *args]
        return super().parse_args(ctx, args)


queue_app = typer.Typer(
    cls=_WithDefaults,
    help="Run a job queue (`penstock queue`); show a graph's work queues, and jobs that nobody could do.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="As `penstock queue dead` shows it.")]


class LaneView(msgspec.Struct, frozen=True):
    """One lane of one queue, as ``penstock queue show --json`` shows it.

    Attributes:
        queue: its name.
        lane: the part of it; prefill jobs have one a host, `all` where the graph runs on one.
        waiting: jobs nobody has.
        under_way: jobs taken and not ended.
        oldest_age_s: age of the oldest job of the whole queue.
        idle_takers: those that wait for a job at this moment.
        dead_letters: jobs of the whole queue that were given up.
    """

    queue: str
    lane: str
    waiting: int
    under_way: int
    oldest_age_s: float
    idle_takers: int
    dead_letters: int


class DeadView(msgspec.Struct, frozen=True):
    """One job that was given up, as ``penstock queue dead --json`` shows it; see `DeadLetter`."""

    id: str
    queue: str
    lane: str
    reason: str
    deliveries: int
    age_s: float
    dead_s: float


@queue_app.command()
def show(name: Name = None, as_json: AsJson = False) -> None:
    """Show what waits, what is under way and how old it is."""
    lanes = ask_graph(_state(name), see_lanes)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(lanes), indent=2))
        return
    _print(lanes_table(lanes))
    if any(lane.dead_letters for lane in lanes):
        typer.echo("\n`penstock queue dead` lists the dead letters: jobs that were given up")


@queue_app.command()
def dead(
    name: Name = None,
    count: Annotated[int, typer.Option("-n", help="How many at most.", min=1)] = 100,
    as_json: AsJson = False,
) -> None:
    """List the jobs that were given up, oldest first, with the reason."""
    now_s = time.time()
    letters = ask_graph(_state(name), lambda connected: list_letters(connected, count))
    views = [dead_view(letter, now_s) for letter in letters]
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(views), indent=2))
    elif views:
        _print(dead_table(views))
    else:
        typer.echo("no dead letters")


@queue_app.command()
def redrive(job_id: JobId, name: Name = None) -> None:
    """Put a job that was given up back into its queue, as new."""
    state = _state(name)
    if not ask_graph(state, lambda connected: redrive_letter(connected, job_id)):
        fail(f"graph {state.graph} has no dead letter of job {job_id}", exit_code=1)
    typer.echo(f"{job_id} is in its queue again")


@queue_app.command()
def drop(job_id: JobId, name: Name = None) -> None:
    """Delete the dead letter of a job, for good."""
    state = _state(name)
    if not ask_graph(state, lambda connected: drop_letter(connected, job_id)):
        fail(f"graph {state.graph} has no dead letter of job {job_id}", exit_code=1)
    typer.echo(f"{job_id} is gone")


def _state(name: str | None) -> GraphState:
    """Return the state of a graph that has work queues, or end with what is wrong."""
    state = one_state(name)
    try:
        graph = load_graph(StateFolder(state.graph).graph_file)
    except GraphError as error:
        fail(str(error), exit_code=1)
    if not graph.disaggregated:
        fail(f"graph {state.graph} has no prefill workers, and so no work queue", exit_code=1)
    return state


async def see_lanes(connected: GraphBus) -> list[LaneView]:
    """Return how each lane of the prefill queue stands: of every host that has taken from it, and of this one."""
    bus, subjects, graph = connected.bus, connected.subjects, connected.graph
    own = await open_prefill_queue(bus, subjects, graph)
    dead_letters = await own.dead.count()
    views = []
    for lane in await own.lanes():
        queue = await open_prefill_queue(bus, subjects, graph, lane)
        state = await queue.ask_state()
        views.append(
            LaneView(QUEUE, lane, state.waiting, state.under_way, state.oldest_age_s, state.idle_takers, dead_letters)
        )
    return views


async def _dead_letters(connected: GraphBus) -> DeadLetters:
    return (await open_prefill_queue(connected.bus, connected.subjects, connected.graph)).dead


async def list_letters(connected: GraphBus, most: int) -> list[DeadLetter]:
    """Return up to `most` dead letters, oldest first."""
    return await (await _dead_letters(connected)).list(most)


async def redrive_letter(connected: GraphBus, job_id: str) -> bool:
    """Put a job back into its queue; returns False when it has no dead letter."""
    return await (await _dead_letters(connected)).redrive(job_id)


async def drop_letter(connected: GraphBus, job_id: str) -> bool:
    """Delete a dead letter; returns False when there is none."""
    return await (await _dead_letters(connected)).drop(job_id)


def dead_view(letter: DeadLetter, now_unix_s: float) -> DeadView:
    """Return what people need of a dead letter; the job's data, which is a prompt, is none of it."""
    age_s, dead_s = now_unix_s - letter.put_unix_s, now_unix_s - letter.died_unix_s
    return DeadView(letter.id, QUEUE, letter.lane, letter.reason, letter.deliveries, max(age_s, 0.0), max(dead_s, 0.0))


def lanes_table(lanes: list[LaneView]) -> Table:
    """Return how lanes stand."""
    table = make_table("queue", "lane", "waiting", "under way", "oldest", "idle takers", "dead letters")
    for lane in lanes:
        oldest = f"{lane.oldest_age_s:.1f} s" if lane.oldest_age_s else "-"
        counts = (str(lane.waiting), str(lane.under_way), oldest, str(lane.idle_takers), str(lane.dead_letters))
        table.add_row(lane.queue, lane.lane, *counts)
    return table


def dead_table(letters: list[DeadView]) -> Table:
    """Return dead letters, a line each."""
    table = make_table("job", "queue", "lane", "deliveries", "put", "given up", "reason")
    for each in letters:
        put, died = f"{each.age_s:.0f} s ago", f"{each.dead_s:.0f} s ago"
        table.add_row(each.id, each.queue, each.lane, str(each.deliveries), put, died, each.reason)
    return table


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
