"""What people are shown."""

import io
import json
import shlex

from rich.console import Console

from components.launch.devices import Machine
from components.launch.plan import make_plan
from components.launch.state import GraphPhase, GraphState, ProcessRecord
from components.launch.views import Progress, graph_view, plan_table, processes_table, welcome
from components.launch.watch import Phase
from tests.unit.launch.test_plan import graph


def state(phase: GraphPhase, **phases: Phase) -> GraphState:
    """Return a state of a graph whose processes stand as told."""
    processes = tuple(ProcessRecord(name, "decode", phase, f"is {phase.value}") for name, phase in phases.items())
    return GraphState("agg", "r", 1, 1.0, phase, "http://127.0.0.1:8181", "demo", 0.0, 3.21, processes=processes)


def test_progress_tells_each_change_once() -> None:
    """Without a terminal there is one line for each change of a process, and none for a repetition."""
    output = io.StringIO()
    progress = Progress(Console(file=output))
    progress.show(state(GraphPhase.STARTING, a=Phase.STARTING, b=Phase.STARTING))
    progress.show(state(GraphPhase.STARTING, a=Phase.STARTING, b=Phase.STARTING))
    progress.show(state(GraphPhase.STARTING, a=Phase.READY, b=Phase.STARTING))
    lines = [line.split(" s  ")[1] for line in output.getvalue().splitlines()]
    assert [line.split() for line in lines] == [
        ["a", "starting", "is", "starting"],
        ["b", "starting", "is", "starting"],
        ["a", "ready", "is", "ready"],
    ]


def test_the_curl_line_is_one_shell_command() -> None:
    """The line parses as a command with valid JSON; with a key it presents the key by its variable, not its value."""
    text = welcome(state(GraphPhase.READY), with_key=True)
    line = next(line for line in text.splitlines() if "curl" in line)
    words = shlex.split(line)
    assert words[:2] == ["curl", "http://127.0.0.1:8181/v1/chat/completions"]
    assert "Authorization: Bearer $PENSTOCK_API_KEY" in words
    assert json.loads(words[-1])["model"] == "demo"
    assert "Authorization" not in welcome(state(GraphPhase.READY), with_key=False)


def test_the_plan_shows_devices() -> None:
    """GPUs and cores are listed with the process that gets them."""
    output = io.StringIO()
    gpus = make_plan(graph({"tensor_parallel_size": 2}), Machine(gpus=("0", "1")))
    cores = make_plan(graph(decode={"replicas": 2}), Machine(cpus=(0, 1), vllm_on_cpu=True))
    for plan in (gpus, cores):
        Console(file=output, width=150).print(plan_table(plan))
    assert "GPU 0, 1" in output.getvalue()
    assert "CPU 1" in output.getvalue()


def test_trust_is_shown_where_a_router_tells_of_it() -> None:
    """A column beside each worker's load; without a router there is none."""

    def shown(trusts: dict[str, str]) -> str:
        output = io.StringIO()
        graph_now = state(GraphPhase.READY, **{"decode-0": Phase.READY, "router-0": Phase.READY})
        Console(file=output, width=200).print(processes_table(graph_view(graph_now, trusts)))
        return output.getvalue()

    header, worker, router = shown({"decode-0": "degraded"}).splitlines()[1:]
    assert header.split()[-1] == "trust"
    assert worker.split()[-1] == "degraded"
    assert router.split()[-1] == "-"
    assert "trust" not in shown({})
