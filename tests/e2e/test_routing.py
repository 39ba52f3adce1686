"""What a user of a routed graph sees; each scenario with simulated engines, the router in the processor, and real vLLM."""

import json
import os
import random
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from components.launch.state import GraphState
from components.launch.watch import Phase
from tests.support.launched import Launched, free_port

ROUTED = [
    pytest.param(("agg_router_sim",), id="sim"),
    pytest.param(("agg_router_sim", "router.embedded=true"), id="sim-embedded"),
    pytest.param(("agg_router",), id="vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(300)]),
]
BLOCK_SIZE = 32


class Routed(Launched):
    """A graph with a router.

    Attributes:
        router_port: where its first router answers queries.
        router_process: the name of the process that it runs in.
    """

    router_port = 0
    router_process = ""

    @classmethod
    def start(cls, folder: Any, graph: str, *settings: str) -> "Routed":
        """Launch it on free ports."""
        port = free_port()
        launched = cls.up(folder, f"graphs/{graph}.yaml", f"router.http_port={port}", "router.replicas=1", *settings)
        assert isinstance(launched, Routed)
        launched.router_port = port
        launched.router_process = "processor-0" if "router.embedded=true" in settings else "router-0"
        return launched

    def ask(self, prompt: list[int], **fields: Any) -> tuple[dict[str, str], int]:
        """Complete a prompt of token ids; returns penstock's headers and how many tokens the engine reused."""
        body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True} | fields
        headers, answer = self._post(f"{self.url}/v1/completions", body)
        details = answer["usage"].get("prompt_tokens_details") or {"cached_tokens": 0}
        return headers, int(details["cached_tokens"])

    def explain(self, prompt: list[int]) -> Any:
        """Return what the router would do with a prompt."""
        return self._post(f"http://127.0.0.1:{self.router_port}/explain", {"token_ids": prompt})[1]

    def query(self, path: str) -> str:
        """Return the body of a router's query."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.router_port}{path}", timeout=10) as response:
            text: str = response.read().decode()
            return text

    def settled(self) -> None:
        """Wait until the router has taken in all events: the blocks it knows of have not changed for a while."""
        before, since_s = "", time.monotonic()
        while time.monotonic() - since_s < 0.5:
            now = str(sorted((each["name"], each["seq"]) for each in json.loads(self.query("/workers"))["workers"]))
            if now != before:
                before, since_s = now, time.monotonic()
            time.sleep(0.05)

    def _post(self, url: str, body: Any) -> tuple[dict[str, str], Any]:
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return headers, json.load(response)


@pytest.fixture(scope="module", params=ROUTED)
def routed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    """A routed graph, launched once for all scenarios."""
    launched = Routed.start(tmp_path_factory.mktemp("state"), *request.param)
    try:
        launched.wait_ready(240)
        wait_for_trust(launched)
        yield launched
    finally:
        launched.close()
    assert launched.left_over(wait_s=0) == []


def wait_for_trust(graph: Routed, wait_s: float = 20) -> None:
    """Wait until the router knows all of what every worker holds."""
    expected = sum(process.component == "decode" for process in graph.state.processes)
    deadline = time.monotonic() + wait_s
    while True:
        trusts = [each["trust"] for each in json.loads(graph.query("/workers"))["workers"]]
        if trusts == ["exact"] * expected:
            return
        assert time.monotonic() < deadline, trusts
        time.sleep(0.1)


def prompt_of(tokens: int, seed: int) -> list[int]:
    """A prompt of random token ids, none of them special."""
    rng = random.Random(seed)
    return [rng.randint(100, 250) for _ in range(tokens)]


def test_every_part_is_a_process_one_can_see(routed: Routed) -> None:
    """`penstock ps` lists processor, router and workers, and how far each worker's events are trusted."""
    (view,) = routed.ps()
    components = Counter(row.component for row in view.processes)
    assert components["processor"] == 1
    assert components["router"] == (routed.router_process == "router-0")
    assert components["decode"] >= 2
    assert {row.trust for row in view.processes if row.component == "decode"} == {"exact"}
    assert "exact" in routed.run("ps").stdout


def test_a_prefix_goes_to_its_worker_and_distinct_ones_spread(routed: Routed) -> None:
    """Each conversation stays where it began; conversations are many places."""
    went: Counter[str] = Counter()
    for seed in range(12):
        prompt = prompt_of(300, seed)
        first, _ = routed.ask(prompt)
        went[first["x-penstock-worker"]] += 1
        routed.settled()
        again, cached = routed.ask(prompt + prompt_of(40, seed + 1000))
        assert again["x-penstock-worker"] == first["x-penstock-worker"]
        assert int(again["x-penstock-overlap-blocks"]) >= 9
        assert cached >= 9 * BLOCK_SIZE
    assert len(went) >= 2


def test_predicted_overlap_is_what_the_engines_reuse(routed: Routed) -> None:
    """A randomized run of growing conversations: block for block, request by request, and in the sum of the counters."""
    rng = random.Random(4)
    talks = [prompt_of(rng.randint(20, 200), 7000 + number) for number in range(8)]
    before = engine_hits(routed)
    reused = 0
    for step in range(40):
        talk = rng.randrange(len(talks))
        if rng.random() < 0.2:
            talks[talk] = talks[rng.randrange(len(talks))][: rng.randint(1, 200)] + prompt_of(50, 9000 + step)
        headers, cached = routed.ask(talks[talk], max_tokens=1 + step % 7)
        assert cached == int(headers["x-penstock-overlap-blocks"]) * BLOCK_SIZE, step
        reused += cached
        talks[talk] = talks[talk] + prompt_of(rng.randint(5, 90), 8000 + step)
        routed.settled()
    assert reused > 0
    deadline = time.monotonic() + 5
    while engine_hits(routed) - before != reused and time.monotonic() < deadline:
        time.sleep(0.2)
    assert engine_hits(routed) - before == reused


def engine_hits(graph: Routed) -> float:
    """Return the sum of the engines' own counters of reused prompt tokens."""
    with urllib.request.urlopen(f"{graph.url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


def test_the_router_explains_itself(routed: Routed) -> None:
    """By HTTP and by command; what it says is what it does."""
    prompt = prompt_of(200, 5)
    went, _ = routed.ask(prompt)
    routed.settled()
    answer = routed.explain(prompt)
    assert answer["choice"]["worker"] == went["x-penstock-worker"]
    assert answer["choice"]["overlap_blocks"] == 6
    assert len(answer["candidates"]) == sum(process.component == "decode" for process in routed.state.processes)
    for words, expected in (
        (("workers",), "exact"),
        (("explain", "The river runs"), "milliseconds"),
        (("explain", "--chat", "Hello"), "→"),
        (("decisions",), went["x-penstock-worker"]),
        (("stats",), "device"),
    ):
        done = routed.run("router", *words)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    assert json.loads(routed.run("router", "decisions", "--json").stdout)["decisions"][0]["worker"]
    assert "penstock_router_decisions_total" in routed.query("/metrics")
    with urllib.request.urlopen(f"{routed.url}/metrics", timeout=10) as response:
        assert 'penstock_router_decisions_total{policy="kv",process="router-0"}' in response.read().decode()


def test_a_killed_router_comes_back_and_knows(routed: Routed) -> None:
    """Requests go on without one of its own process; the supervisor starts it again, and it asks for what workers hold."""
    prompt = prompt_of(320, 6)
    went, _ = routed.ask(prompt)
    record = next(process for process in routed.state.processes if process.name == routed.router_process)
    assert record.pid
    os.kill(record.pid, signal.SIGKILL)
    if routed.router_process == "router-0":
        time.sleep(0.3)
        headers, _ = routed.ask(prompt_of(100, 7))
        assert headers["x-penstock-policy"] == "fallback"

    def is_back(state: GraphState) -> bool:
        now = next(process for process in state.processes if process.name == routed.router_process)
        return now.pid not in (None, record.pid) and now.phase is Phase.READY

    routed.until(is_back)
    wait_for_trust(routed)
    again, cached = routed.ask(prompt)
    deadline = time.monotonic() + 5
    while again["x-penstock-policy"] == "fallback" and time.monotonic() < deadline:
        time.sleep(0.2)
        again, cached = routed.ask(prompt)
    assert (again["x-penstock-policy"], again["x-penstock-worker"]) == ("kv", went["x-penstock-worker"])
    assert cached == int(again["x-penstock-overlap-blocks"]) * BLOCK_SIZE == 9 * BLOCK_SIZE
