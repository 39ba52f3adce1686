"""A graph with a prefill worker, simulated and real, seen and changed by its commands."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator

import pytest

from components.launch.state import GraphState
from components.launch.watch import Phase
from tests.support.launched import Launched, free_port

pytestmark = pytest.mark.timeout(400)

BOTH = [
    pytest.param("disagg_router_sim", id="sim"),
    pytest.param("disagg_router", id="vllm", marks=pytest.mark.vllm),
]


@pytest.fixture(scope="module", params=BOTH)
def disagg(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """Two decode workers and one prefill worker that takes every prompt of more than 200 tokens."""
    ports = [f"{setting}={free_port()}" for setting in ("router.http_port", "lmcache.port", "lmcache.http_port")]
    rules = ("decode.disagg.max_local_prefill_tokens=200", "decode.disagg.always=true")
    launched = Launched.up(tmp_path_factory.mktemp("state"), f"graphs/{request.param}.yaml", *ports, *rules)
    try:
        yield launched.wait_ready(240)
    finally:
        launched.close()
    assert launched.left_over(wait_s=0) == []


def view(graph: Launched, *words: str) -> dict[str, dict[str, object]]:
    """Return what `penstock disagg … --json` says of each decode worker."""
    done = graph.run("disagg", *words, "--json")
    assert done.returncode == 0, done.stderr
    return {each["worker"]: each for each in json.loads(done.stdout)}


def test_what_became_of_long_prompts(disagg: Launched) -> None:
    """Counted by reason and outcome over both workers, with what it cost; short prompts are not asked about."""
    client = disagg.client()
    for number in range(4):
        prompt = [(7 * number + place * place) % 800 + 20 for place in range(600)]
        client.completions.create(model="demo", prompt=prompt, max_tokens=2)
    client.completions.create(model="demo", prompt=list(range(50, 100)), max_tokens=2)
    views = view(disagg).values()
    assert sum(sum(each["placements"].values()) for each in views) == 4  # type: ignore[attr-defined]
    done = sum(each["remote_prefills"].get("done", 0) for each in views)  # type: ignore[attr-defined]
    assert done == sum(each["overhead"]["count"] for each in views) > 0  # type: ignore[index]
    shown = disagg.run("disagg").stdout
    for words in ("max_local_prefill_tokens", "decode-0", "decode-1", "pays", "done", " ms"):
        assert words in shown


def test_rules_change_while_it_runs_and_outlive_a_worker(disagg: Launched) -> None:
    """Every worker says what it goes by now, and one that starts again goes by it too."""
    views = view(disagg, "max_local_prefill_tokens=3000", "max_wait_s=7")
    assert {
        name: (each["rules"]["max_local_prefill_tokens"], each["rules"]["max_wait_s"]) for name, each in views.items()
    } == {  # type: ignore[index]
        "decode-0": (3000, 7.0),
        "decode-1": (3000, 7.0),
    }
    pid = disagg.row("decode-1").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    disagg.until(lambda state: restarted(state, pid), wait_s=120)
    rules = view(disagg)["decode-1"]["rules"]
    assert (rules["max_local_prefill_tokens"], rules["max_wait_s"]) == (3000, 7.0)  # type: ignore[index]


def restarted(state: GraphState, pid: int) -> bool:
    """Whether decode-1 is ready again as another process."""
    worker = next(process for process in state.processes if process.name == "decode-1")
    return worker.phase is Phase.READY and worker.pid not in {None, pid}


@pytest.mark.parametrize("change", ["max_queue_depth=0", "max_wait_s=-1", "always=perhaps", "max_queue_deepness=3"])
def test_nonsense_changes_nothing(disagg: Launched, change: str) -> None:
    """One line with the path of the setting, exit code 2."""
    before = view(disagg)
    done = disagg.run("disagg", disagg.name, change)
    assert done.returncode == 2
    assert done.stderr.startswith(f"components.decode.disagg.{change.partition('=')[0]}: ")
    assert len(done.stderr.splitlines()) == 1
    assert {name: each["rules"] for name, each in view(disagg).items()} == {
        name: each["rules"] for name, each in before.items()
    }


def test_the_queue_is_seen_by_command_and_by_metrics(disagg: Launched) -> None:
    """One lane, empty, with a prefill worker that waits; the same figures stand on the page for Prometheus."""
    [lane] = json.loads(disagg.run("queue", "--json").stdout)
    assert (lane["queue"], lane["lane"], lane["waiting"], lane["dead_letters"]) == ("prefill", "all", 0, 0)
    assert "prefill  all" in disagg.run("queue", disagg.name).stdout
    assert disagg.run("queue", "dead").stdout == "no dead letters\n"
    missing = disagg.run("queue", "redrive", "no-such-job")
    assert (missing.returncode, missing.stderr) == (1, f"graph {disagg.name} has no dead letter of job no-such-job\n")
    deadline = time.monotonic() + 30
    wanted = 'penstock_prefill_queue_waiting{lane="all",process="prefill-0"} 0.0'
    while wanted not in page(disagg):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def page(graph: Launched) -> str:
    """Return what Prometheus reads."""
    with urllib.request.urlopen(f"{graph.url}/metrics", timeout=30) as response:
        text: str = response.read().decode()
        return text


def test_a_graph_without_prefill_workers_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In one line, exit code 1."""
    graph = Launched.up(tmp_path_factory.mktemp("state"), "graphs/agg_sim.yaml")
    try:
        graph.wait_ready(60)
        for words in (["disagg"], ["queue", "show"], ["queue", "dead"]):
            done = graph.run(*words)
            assert done.returncode == 1
            assert done.stderr.startswith("graph agg_sim has no prefill workers")
    finally:
        graph.close()
