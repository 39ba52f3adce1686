"""Engines of a worker controller that join a running graph: they serve its requests at once, and leave it drained."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.controller import controller, until
from tests.support.launched import Launched

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def test_a_decode_engine_joins_and_leaves(tmp_path: Path) -> None:
    """Its requests are served by the newcomer, too; one that runs when it is told to leave is finished."""
    graph = Launched.up(tmp_path, "graphs/agg.yaml", "decode.replicas=1", "decode.engine.max_model_len=1024")
    try:
        graph.wait_ready(240)
        with controller(tmp_path, "--graph", graph.name, state=tmp_path) as made:
            answer = made.call("POST", "/engines", {"engine_uuid": "joiner", "role": "decode"})
            assert answer.status_code == 200, answer.text
            assert (answer.json()["api_url"], answer.json()["port"]) == (graph.url, None)
            until(lambda: "decode-joiner" in {worker_of(graph) for _ in range(4)})
            with httpx.stream("POST", f"{graph.url}/v1/completions", json=long_request(), timeout=120) as stream:
                lines = stream.iter_lines()
                next(lines)
                with subprocess.Popen(
                    [sys.executable, "-m", "components.launch", "engines", "delete", "joiner", "--controller", made.url]
                ) as leaving:
                    events = [line for line in lines if line.startswith("data: {")]
                    assert leaving.wait(60) == 0
            assert json.loads(events[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
            made.wait_free()
            assert {worker_of(graph) for _ in range(4)} == {"decode-0"}
            wrong = made.call("POST", "/engines", {"engine_uuid": "x", "role": "prefill"})
            assert (wrong.status_code, "prefill" in wrong.text) == (400, True)
    finally:
        graph.close()


def long_request() -> dict[str, Any]:
    """Return a request that takes a while."""
    return {"model": "demo", "prompt": "Hello", "max_tokens": 600, "ignore_eos": True, "stream": True}


def worker_of(graph: Launched) -> str:
    """Return which worker answers a short request."""
    body = {"model": "demo", "prompt": "Hello", "max_tokens": 2}
    return str(httpx.post(f"{graph.url}/v1/completions", json=body, timeout=60).headers["x-penstock-worker"])
