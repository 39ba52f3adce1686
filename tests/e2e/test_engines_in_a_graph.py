"""Engines of a worker controller that join a running graph: they serve its requests at once, and leave it drained."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.controller import Controller, controller, until
from tests.support.launched import Launched, free_port
from tests.support.mixed_load import Answer, Prompt, ask_all, mixed_prompts
from tests.support.nats import nats_server

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


async def test_a_prefill_engine_joins_and_leaves(tmp_path: Path) -> None:
    """A graph without prefill workers gets one while it serves, and loses it while jobs wait: every client gets its text."""
    folder = tmp_path / "nats"
    folder.mkdir()
    async with nats_server(folder) as nats:
        ports = [f"{setting}={free_port()}" for setting in ("lmcache.port", "lmcache.http_port")]
        settings = ["prefill.replicas=0", "decode.replicas=1", "decode.disagg.always=true", "lmcache.l1_gb=0.5"]
        graph = Launched.up(tmp_path, "graphs/disagg.yaml", f"nats={nats.url}", *settings, *ports)
        try:
            graph.wait_ready(240)
            with controller(tmp_path, "--graph", graph.name, state=tmp_path) as made:
                await help_for_a_while(graph, made)
            assert json.loads(graph.run("queue", "dead", graph.name, "--json").stdout) == []
        finally:
            graph.close()


async def help_for_a_while(graph: Launched, made: Controller) -> None:
    """The life of the prefill engine; the rank it had is the same process afterwards."""
    before = [rank["pid"] for rank in made.workers()]
    answer = made.call("POST", "/engines", {"engine_uuid": "helper", "role": "prefill"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["api_url"], answer.json()["port"]) == (graph.url, None)
    prompts = long_prompts(seed=10, count=8)
    helped = texts(await ask_all(graph.url, prompts, 2))
    assert graph.metric("penstock_prefill_jobs_total", outcome="done") >= 4  # a job may be late on a busy machine
    assert graph.metric("penstock_remote_prefills_total", outcome="done") >= 4
    flood = long_prompts(seed=11, count=16)
    asking = asyncio.create_task(ask_all(graph.url, flood, len(flood)))
    await asyncio.sleep(0.3)  # somewhere in the middle; whenever it is, the same must happen
    await asyncio.to_thread(made.delete, "helper")
    flooded = texts(await asking)
    made.wait_free()
    assert [rank["pid"] for rank in made.workers()] == before
    assert texts(await ask_all(graph.url, [*prompts, *flood], 2)) == [*helped, *flooded]


def long_prompts(seed: int, count: int) -> list[Prompt]:
    """Return prompts of more than 600 tokens."""
    return [prompt for prompt in mixed_prompts(5 * count, seed) if len(prompt.token_ids) > 600][:count]


def texts(answers: list[Answer]) -> list[str]:
    """Return what the answers say."""
    return [answer.text for answer in answers]


def long_request() -> dict[str, Any]:
    """Return a request that takes a while."""
    return {"model": "demo", "prompt": "Hello", "max_tokens": 600, "ignore_eos": True, "stream": True}


def worker_of(graph: Launched) -> str:
    """Return which worker answers a short request."""
    body = {"model": "demo", "prompt": "Hello", "max_tokens": 2}
    return str(httpx.post(f"{graph.url}/v1/completions", json=body, timeout=60).headers["x-penstock-worker"])
