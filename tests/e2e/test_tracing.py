"""A request's trace: one span a step, from every process it passed, at an OpenTelemetry collector."""

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.launched import Launched, free_port
from tests.support.otlp import Collector, SeenSpan, collector

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STEPS = {
    "POST /v1/completions": ("penstock-processor", ""),
    "route": ("penstock-processor", "POST /v1/completions"),
    "generate": ("penstock-decode", "POST /v1/completions"),
    "prefill elsewhere": ("penstock-decode", "generate"),
    "prefill": ("penstock-prefill", "prefill elsewhere"),
    "compute": ("penstock-prefill", "prefill"),
    "store": ("penstock-prefill", "prefill"),
}
"""Who takes a step, and as part of which."""


@contextmanager
def launched(tmp_path: Path, endpoint: str) -> Iterator[Launched]:
    """Run a graph that sends its spans to `endpoint`; long prompts always go to the prefill worker."""
    settings = {
        "telemetry.otlp_endpoint": endpoint,
        "components.decode.disagg.always": "true",
        **{setting: str(free_port()) for setting in ("router.http_port", "lmcache.port", "lmcache.http_port")},
    }
    graph = Launched.up(tmp_path, "graphs/disagg_router_sim.yaml", *(f"{path}={value}" for path, value in settings.items()))
    try:
        yield graph.wait_ready(60)
    finally:
        graph.close()
    assert graph.left_over(wait_s=5) == []


def test_every_step_of_a_request_is_in_its_trace(tmp_path: Path) -> None:
    """The client's own trace goes on through three processes; what it said is in none of it."""
    with collector() as collected, launched(tmp_path, collected.endpoint) as graph:
        _complete(graph, "secret " * 1500, f"00-{TRACE}-{PARENT}-01")
        spans = _wait_for(collected, TRACE)
    assert {name: (span.service, _parent(spans, span)) for name, span in spans.items()} == STEPS
    assert spans["POST /v1/completions"].parent_id == PARENT
    assert spans["POST /v1/completions"].attributes["penstock.status"] == 200
    assert spans["generate"].attributes["penstock.outcome"] == "finished"
    assert spans["generate"].attributes["penstock.output_tokens"] == 3
    assert spans["prefill elsewhere"].attributes["penstock.outcome"] == "done"
    assert spans["prefill"].duration_s >= spans["compute"].duration_s > 0
    assert "secret" not in str(collected.spans)


def test_a_collector_that_is_away_costs_nothing_but_spans(tmp_path: Path) -> None:
    """Answers come as ever, and the graph ends by itself when told to."""
    with launched(tmp_path, f"http://127.0.0.1:{free_port()}") as graph:
        for _ in range(3):
            _complete(graph, "hello " * 1500)
        assert graph.run("down", graph.name).returncode == 0
        assert graph.program.wait(60) == 0
        assert "kill" not in graph.output


def _complete(graph: Launched, prompt: str, traceparent: str = "") -> None:
    body = json.dumps({"model": "demo", "prompt": prompt, "max_tokens": 3, "ignore_eos": True}).encode()
    headers = {"Content-Type": "application/json", "traceparent": traceparent}
    with urllib.request.urlopen(urllib.request.Request(f"{graph.url}/v1/completions", body, headers), timeout=60) as answer:
        assert answer.status == 200


def _wait_for(collected: Collector, trace_id: str) -> dict[str, SeenSpan]:
    deadline = time.monotonic() + 20
    while len(spans := collected.of(trace_id)) < len(STEPS) and time.monotonic() < deadline:
        time.sleep(0.05)
    return spans


def _parent(spans: dict[str, SeenSpan], span: SeenSpan) -> str:
    """Return the name of the span that `span` belongs to, empty when it is in none of ours."""
    return next((name for name, other in spans.items() if other.span_id == span.parent_id), "")
