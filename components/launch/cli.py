"""The ``penstock`` command. Reads flags, prints results; the work is `launch`'s."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.console import Console

from components.graph.keys import ENVIRONMENT as API_KEY
from components.graph.load import GraphError, dump_graph, load_graph
from components.graph.schema import Graph
from components.launch.bench_cli import bench
from components.launch.cache_cli import cache_app, cache_controller
from components.launch.controller_cli import controller, engines_app
from components.launch.disagg_cli import disagg
from components.launch.flags import ServeFlags, engine_args_from, graph_from_flags, without_option
from components.launch.jobs_cli import job_worker, jobs_app, queue_graph
from components.launch.launch import LaunchError, prepare, run_here, run_in_background, stop_graph
from components.launch.plan import Plan
from components.launch.queue_cli import queue_app
from components.launch.router_cli import router_app, trusts
from components.launch.simulate_cli import simulate
from components.launch.state import GraphPhase, GraphState, StateFolder, all_states, as_it_is
from components.launch.target import Name, fail, is_there, one_state
from components.launch.views import Progress, graph_view, plan_table, processes_table, welcome

app = typer.Typer(
    name="penstock",
    help="Serve large language models as a graph of small processes, launched from one YAML.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(router_app, name="router")
app.add_typer(engines_app, name="engines")
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(controller)
app.command()(simulate)
app.add_typer(queue_app, name="queue")
app.command()(disagg)
app.add_typer(jobs_app, name="jobs")
app.command("job-worker")(job_worker)
app.add_typer(cache_app, name="cache")
app.command(name="cache-controller")(cache_controller)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(bench)

GraphFile = Annotated[Path, typer.Argument(metavar="GRAPH.yaml", help="The graph, such as graphs/agg.yaml.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Change a setting; may be repeated.")]


@app.command()
def up(
    graph_file: GraphFile,
    overrides: Overrides = [],  # noqa: B006 typer copies it
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Return when all is ready; go on in the background.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and start nothing.")] = False,
) -> None:
    """Start a graph, show its progress, and stop it at Ctrl-C."""
    plan = plan_or_fail(_load(graph_file, overrides))
    if dry_run:
        show_plan(plan)
    elif detach:
        settings = [word for override in overrides for word in ("--set", override)]
        _run_detached(plan, ["up", str(graph_file.absolute()), *settings])
    else:
        run_in_foreground(plan)


@app.command()
def check(graph_file: GraphFile, overrides: Overrides = []) -> None:  # noqa: B006 typer copies it
    """Print the processes, ports and devices of a graph, and start nothing."""
    show_plan(plan_or_fail(_load(graph_file, overrides)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="`demo`, a folder, or a Hugging Face model id.")] = "demo",
    served_model_name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None,
    decode_workers: Annotated[int, typer.Option(help="Engines.")] = 1,
    prefill_workers: Annotated[int, typer.Option(help="Engines that prefill prompts for them; 0: none.", min=0)] = 0,
    prefill_tp: Annotated[
        int | None, typer.Option(help="GPUs a prefill worker; default: as a decode worker.", min=1)
    ] = None,
    conditional_disagg: Annotated[
        bool, typer.Option("--conditional-disagg", help="Only long prompts go to prefill workers, and only while it pays.")
    ] = False,
    max_local_prefill_length: Annotated[
        int | None, typer.Option(help="Conditional: prompts with more uncached tokens are long; default 512.")
    ] = None,
    max_prefill_queue_size: Annotated[
        int | None, typer.Option(help="Conditional: with so many jobs waiting, decode workers prefill; default 8.")
    ] = None,
    router: Annotated[str, typer.Option(help="How workers are chosen: kv, approximate, round_robin, … or none.")] = "none",
    engine: Annotated[str, typer.Option(help="vllm, or sim for a simulated one.")] = "vllm",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port of the OpenAI endpoint.")] = 8181,
    api_key: Annotated[str | None, typer.Option(help=f"Clients must present it; or set {API_KEY}.")] = None,
    name: Annotated[str | None, typer.Option(help="The graph's name; default: serve-<port>.")] = None,
    overrides: Overrides = [],  # noqa: B006 typer copies it
    print_graph: Annotated[bool, typer.Option("--print-graph", help="Print the graph as YAML and start nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and start nothing.")] = False,
) -> None:
    """Start a graph made from flags. Other flags go to the engines: --max-num-seqs 8."""
    if api_key is not None:
        _hide(api_key)
    try:
        flags = ServeFlags(
            model=model,
            name=name,
            served_model_name=served_model_name,
            decode_workers=decode_workers,
            prefill_workers=prefill_workers,
            prefill_tp=prefill_tp,
            conditional_disagg=conditional_disagg,
            max_local_prefill_length=max_local_prefill_length,
            max_prefill_queue_size=max_prefill_queue_size,
            router=None if router == "none" else router,
            engine=engine,
            host=host,
            http_port=http_port,
            engine_args=engine_args_from(context.args),
            overrides=tuple(overrides),
        )
        graph = graph_from_flags(flags)
    except (GraphError, ValueError) as error:
        fail(str(error))
    if print_graph:
        typer.echo(dump_graph(graph), nl=False)
    elif dry_run:
        show_plan(plan_or_fail(graph))
    else:
        run_in_foreground(plan_or_fail(graph))


@queue_app.command("serve")
def serve_jobs(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port for submitters and workers.")] = 8788,
    nats: Annotated[str, typer.Option(help="A NATS server with JetStream of yours; default: one of its own.")] = "embedded",
    name: Annotated[str, typer.Option(help="Keeps several queues apart; its jobs stay under this name.")] = "queue",
    overrides: Overrides = [],  # noqa: B006 typer copies it
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and start nothing.")] = False,
) -> None:
    """Run a job queue alone; workers come from elsewhere. In a graph it is `components.jobs`."""
    try:
        graph = queue_graph(name, host, port, nats, overrides)
    except GraphError as error:
        fail(str(error))
    plan = plan_or_fail(graph)
    if dry_run:
        show_plan(plan)
    else:
        run_in_foreground(plan)


def _hide(api_key: str) -> NoReturn:
    """Become the same command with the key in the environment: everybody on the machine can read command lines."""
    if not api_key.strip(" ,"):
        fail("--api-key: must not be empty")
    environment = {**os.environ, API_KEY: api_key}
    os.execve(sys.executable, without_option(sys.orig_argv, "--api-key"), environment)  # noqa: S606 this very command


@app.command()
def down(name: Name = None) -> None:
    """Stop a graph, letting running requests finish. A graph that has ended already is no mistake."""
    if name and (last := StateFolder(name).read()) and not is_there(last):
        typer.echo(f"graph {name} is not running")
        return
    state = one_state(name)
    try:
        graceful = stop_graph(state)
    except LaunchError as error:
        fail(str(error), error.exit_code)
    typer.echo(f"{state.graph} is stopped" if graceful else f"{state.graph} is stopped; its processes had to be killed")


@app.command()
def ps(
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the processes of running graphs, and what they do. Ends with 1, but for --json, if a supervisor was killed."""
    states = [one_state(name)] if name else [state for state in all_states() if is_there(state)]
    views = [graph_view(as_it_is(state), trusts(state.graph)) for state in states]
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(views), indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 200)
    for state, view in zip(states, views, strict=True):
        if not state.running:
            typer.echo(f"graph {state.graph}: its supervisor was killed; `penstock down {state.graph}` tidies up", err=True)
        console.print(processes_table(view))
    if not views:
        typer.echo("no graph is running")
    if not all(state.running for state in states):
        sys.exit(1)


@app.command()
def logs(
    name: Name = None,
    process: Annotated[str | None, typer.Argument(metavar="[PROCESS]", help="Such as decode-0; default: all.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", help="How many of the last lines.")] = 100,
) -> None:
    """Show what processes wrote, also of a graph that has ended."""
    states = all_states()
    known = [state.graph for state in states]
    here = [state.graph for state in states if is_there(state)] or known
    if name and name not in known and process is None and len(here) == 1:
        name, process = here[0], name
    graph = name or one_state(None).graph
    folder = StateFolder(graph)
    found = {file.stem: file for file in sorted(folder.path.glob("logs/*.log"))}
    if not found or (process and process not in found):
        fail(f"{process or graph}: no such log; there are: {', '.join(found or known) or 'none'}")
    files = [found[process]] if process else list(found.values())
    sys.stdout.flush()
    os.execvp("tail", ["tail", "-n", str(lines), *(["-F"] if follow else []), *map(str, files)])  # noqa: S606, S607


def run_in_foreground(plan: Plan) -> None:
    """Run `plan` until Ctrl-C or SIGTERM, telling how it goes."""
    progress = Progress(Console(stderr=True))
    ready = False

    def show(state: GraphState) -> None:
        nonlocal ready
        progress.show(state)
        if state.phase is GraphPhase.READY and not ready:
            ready = True
            typer.echo(_welcome(plan, state))
            typer.echo(f"Ctrl-C stops it. Elsewhere: penstock ps, penstock logs {state.graph}, penstock down {state.graph}")
            sys.stdout.flush()

    try:
        run_here(plan, show)
    except LaunchError as error:
        fail(str(error), error.exit_code)
    finally:
        progress.close()
    typer.echo(f"{plan.graph.part} is stopped", err=True)
    sys.exit(0 if ready else 130)


def _run_detached(plan: Plan, command: list[str]) -> None:
    progress = Progress(Console(stderr=True))
    try:
        state = run_in_background(plan, command, progress.show)
    except LaunchError as error:
        fail(str(error), error.exit_code)
    finally:
        progress.close()
    typer.echo(_welcome(plan, state))
    typer.echo(f"It runs in the background. penstock ps, penstock logs {state.graph}, penstock down {state.graph}")


def _welcome(plan: Plan, state: GraphState) -> str:
    jobs = plan.graph.components.jobs
    queue = f"\n{state.graph} takes jobs at http://{jobs.http_host}:{jobs.http_port}/jobs" if jobs and jobs.replicas else ""
    if plan.graph.only_queues:
        return f"{queue}; it is ready after {state.ready_after_s or 0:.1f} s\n"
    return welcome(state, with_key=API_KEY in os.environ) + (f"{queue}\n" if queue else "")


def plan_or_fail(graph: Graph) -> Plan:
    """Return the checked plan of `graph`, or end with what is wrong."""
    try:
        return prepare(graph)
    except LaunchError as error:
        fail(str(error), error.exit_code)


def show_plan(plan: Plan) -> None:
    """Print `plan`."""
    Console(width=None if sys.stdout.isatty() else 200).print(plan_table(plan))


def _load(graph_file: Path, overrides: list[str]) -> Graph:
    try:
        return load_graph(graph_file, overrides)
    except GraphError as error:
        fail(str(error))


def main() -> None:
    """Run the command."""
    app()
