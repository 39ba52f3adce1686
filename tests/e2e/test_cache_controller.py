"""A cache controller in front of a running disaggregated graph: what LMCache holds is listed, found and cleared.

And what the graph's own router makes of it.
"""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from components.launch.state import GraphState
from components.launch.watch import Phase
from tests.support.launched import ROOT, Launched, free_port

PROMPT = [5 + (7 * index) % 700 for index in range(1000)]
CHUNK, BLOCK = 64, 32
SERVER = "disagg_router-lmcache-0"
FULL = len(PROMPT) // CHUNK * CHUNK

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]


class Cached(Launched):
    """A disaggregated graph of which all reuse comes through LMCache, and a cache controller beside it.

    Attributes:
        router_port: where the graph's router answers queries.
        server_port: where its LMCache server answers HTTP.
        controller_port: where the controller answers.
        controller: its process.
    """

    router_port = 0
    server_port = 0
    controller_port = 0
    controller: subprocess.Popen[bytes] | None = None

    def start_controller(self) -> None:
        """Start the command, and wait until it answers."""
        self.controller_port = self.controller_port or free_port()
        words = ("cache-controller", "--port", str(self.controller_port), "--monitor-port", str(free_port()))
        words += ("--set", f"reply_port={free_port()}", "--set", f"heartbeat_port={free_port()}")
        self.controller = subprocess.Popen(self.argv(*words), cwd=ROOT, env=self.environment)
        wait_until(self.reachable)

    def stop_controller(self) -> None:
        """End it as Ctrl-C does."""
        if self.controller is not None:
            self.controller.send_signal(signal.SIGINT)
            assert self.controller.wait(20) == 0

    def reachable(self) -> bool:
        """Whether the controller answers."""
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.controller_port}/ready", timeout=5).close()
        except OSError:
            return False
        return True

    def post(self, path: str, port: int | None = None, **body: Any) -> Any:
        """Call the controller."""
        url = f"http://127.0.0.1:{port or self.controller_port}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def workers(self) -> list[dict[str, Any]]:
        """Return all workers."""
        listed: list[dict[str, Any]] = self.post("/query_worker_info", instance_id="all")["worker_infos"]
        return listed

    def held(self) -> dict[str, Any]:
        """Return what /lookup finds of the prompt."""
        layout: dict[str, Any] = self.post("/lookup", tokens=PROMPT)["layout_info"]
        return layout

    def predicted(self) -> int:
        """Return how many tokens of the prompt a decode worker can load, as the router believes."""
        (candidate,) = self.post("/explain", self.router_port, token_ids=PROMPT)["candidates"]
        return int(candidate["fetch_blocks"]) * BLOCK

    def reused(self, prompt: list[int] = PROMPT) -> int:
        """Serve a prompt; return how much of it an engine did not compute."""
        body = {"model": "demo", "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
        return int(self.post("/v1/completions", self.port, **body)["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cached]:
    """The graph with its controller, which is there before the graph serves, and finds it by itself."""
    ports = {name: free_port() for name in ("router.http_port", "lmcache.port", "lmcache.http_port")}
    launched = Cached.up(
        tmp_path_factory.mktemp("state"),
        "graphs/disagg_router.yaml",
        *(f"{name}={port}" for name, port in ports.items()),
        "lmcache.l1_gb=0.03",
        "components.decode.replicas=1",
        "components.decode.engine.enable_prefix_caching=false",
        "components.decode.disagg.max_local_prefill_tokens=2000",
    )
    assert isinstance(launched, Cached)
    launched.router_port, launched.server_port = ports["router.http_port"], ports["lmcache.http_port"]
    try:
        launched.start_controller()
        assert launched.workers() == []
        launched.wait_ready(240)
        wait_until(lambda: len(launched.workers()) == 2)
        yield launched
        launched.stop_controller()
    finally:
        if launched.controller is not None and launched.controller.poll() is None:
            launched.controller.kill()
        launched.close()


def wait_until(what: Any, timeout_s: float = 60) -> float:
    """Wait until `what` returns something true, and return how long that took."""
    began_s = time.monotonic()
    while not what():
        assert time.monotonic() < began_s + timeout_s
        time.sleep(0.05)
    return time.monotonic() - began_s


def is_ready_again(state: GraphState) -> bool:
    """Whether a decode worker that died is back."""
    worker = next(process for process in state.processes if process.name == "decode-0")
    return worker.restarts > 0 and worker.phase is Phase.READY


def test_a_served_prompt_is_found_and_clear_makes_the_next_one_compute(graph: Cached) -> None:
    """The engines are listed; the graph's own counter says what LMCache saved, before and after /clear."""
    assert {each["instance_id"] for each in graph.workers()} == {SERVER}
    assert [each["worker_id"] for each in graph.workers()] == [0, 1]
    assert graph.held() == {}
    assert graph.reused() == 0
    wait_until(lambda: graph.held() == {SERVER: ["l1", FULL]})
    assert graph.reused() >= FULL - CHUNK
    assert graph.post("/clear", instance_id=SERVER, location="l1")["num_tokens"] >= FULL
    assert graph.held() == {}
    assert graph.reused() == 0
    wait_until(lambda: graph.held() == {SERVER: ["l1", FULL]})


def test_the_router_follows_what_lmcache_loses(graph: Cached) -> None:
    """By /clear and by eviction, before any request finds out; what is stored again counts again."""
    graph.reused()
    wait_until(lambda: graph.predicted() == FULL)
    graph.post("/clear", instance_id=SERVER, location="l1")
    cleared_s = wait_until(lambda: graph.predicted() == 0)
    assert graph.reused() == 0
    wait_until(lambda: graph.predicted() == FULL)
    others = iter(range(1, 100))

    def evicted() -> bool:
        step = next(others)
        graph.reused([5 + (step + 11 * index) % 700 for index in range(2000)])
        return graph.held() == {}

    wait_until(evicted, timeout_s=120)
    evicted_s = wait_until(lambda: graph.predicted() == 0)
    print(f"the router followed /clear after {cleared_s:.2f} s, eviction after {evicted_s:.2f} s")  # noqa: T201 for the log
    assert graph.reused() == 0
    wait_until(lambda: graph.reused() == FULL)  # a full server may refuse what it is given
    wait_until(lambda: graph.predicted() == FULL)


def test_nobody_needs_the_coordinator(graph: Cached) -> None:
    """It dies, and requests are served and the router follows as before; soon it is back, and knows what came meanwhile."""
    wait_until(lambda: graph.reused() == FULL)
    wait_until(lambda: graph.predicted() == FULL)
    wait_until(lambda: all(process.phase is Phase.READY for process in graph.state.processes))
    pid = next(process.pid for process in graph.state.processes if process.name == "coordinator-0")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    graph.post("/cache/clear", graph.server_port, tier="l1")
    wait_until(lambda: graph.predicted() == 0)
    assert graph.reused() == 0
    wait_until(lambda: graph.predicted() == FULL)
    wait_until(lambda: graph.held() == {SERVER: ["l1", FULL]}, timeout_s=120)
    wait_until(lambda: all(process.phase is Phase.READY for process in graph.state.processes))


def test_people_may_ask_too(graph: Cached) -> None:
    """`penstock cache` shows the same, and example and command say what is wrong when nobody answers."""
    graph.reused()
    wait_until(graph.held)
    url = ("--url", f"http://127.0.0.1:{graph.controller_port}")
    shown = graph.run("cache", "workers", *url)
    assert SERVER in shown.stdout, shown.stderr
    found = graph.run("cache", "lookup", ",".join(map(str, PROMPT)), *url, "--json")
    assert json.loads(found.stdout)["matches"][0]["matched_tokens"] == FULL
    pinned = graph.run("cache", "pin", SERVER, ",".join(map(str, PROMPT)), "l1", *url)
    assert pinned.stdout == f"pinned {FULL} tokens\n", pinned.stderr
    cleared = graph.run("cache", "clear", SERVER, "l1", *url)
    assert cleared.stdout.startswith("cleared ")
    missing = graph.run("cache", "clear", "nobody", *url)
    assert missing.returncode == 1
    assert "no instance of this name" in missing.stderr
    away = graph.run("cache", "workers", "--url", f"http://127.0.0.1:{free_port()}")
    assert away.returncode == 1
    assert "no cache controller answers" in away.stderr
    example = [graph.argv()[0], "examples/query_worker_info.py", SERVER, url[1]]
    done = subprocess.run(example, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert SERVER in done.stdout


def test_a_restarted_controller_and_a_restarted_engine_are_no_loss(graph: Cached) -> None:
    """A new controller knows all at once; an engine that died is replaced in the list."""
    graph.reused()
    wait_until(graph.held)
    graph.stop_controller()
    graph.start_controller()
    wait_until(graph.held)
    before = max(each["registration_time"] for each in graph.workers())
    pid = next(process.pid for process in graph.state.processes if process.name == "decode-0")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: max(each["registration_time"] for each in graph.workers()) > before, timeout_s=200)
    graph.until(is_ready_again, 200)
    assert graph.held() == {SERVER: ["l1", FULL]}
    assert graph.reused() >= FULL - CHUNK
