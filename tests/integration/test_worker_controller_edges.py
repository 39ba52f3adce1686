"""The worker controller's edges: who may ask it for what, what is left when it dies, ranks that keep what is not theirs."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from benchmarks.servers import demo_engine, vllm_server
from components.model.demo import demo_model
from tests.support.controller import ENGINE, GREEDY, controller, gone, until

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

_KEY = "a token of this test"


def test_token(tmp_path: Path) -> None:
    """With a token, every route but the probes and the document needs it, and so does the engine's own endpoint."""
    with controller(tmp_path, "--host", "0.0.0.0", PENSTOCK_API_KEY=_KEY) as made:
        for path in ("/", "/workers", "/engines", "/engines/x"):
            assert httpx.get(made.url + path).status_code == 401
            assert httpx.get(made.url + path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        for path in ("/health", "/docs", "/openapi.json"):
            assert httpx.get(made.url + path).status_code == 200
        engine = made.create("guarded")
        url = f"http://127.0.0.1:{engine['port']}"
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert made.complete(url) != ""


def test_greedy_answers_are_those_of_vllm_s_own_server(tmp_path: Path) -> None:
    """The same model with the same arguments says the same under vLLM's own command; then its memory is given back."""
    engine = replace(demo_engine(), arguments={**demo_engine().arguments, "max_model_len": 1024})
    with vllm_server(engine) as server:
        body = {**GREEDY, "max_tokens": 64}
        own = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
    with controller(tmp_path) as made:
        arguments = {**engine.arguments, "kv_cache_memory_bytes": 2**30}
        url = made.create("same", model=engine.model, served_model_name="demo", **arguments)["api_url"]
        assert made.complete(url, max_tokens=64) == own
        made.delete("same")
        rank = made.workers()[0]
        assert rank["memory_bytes"] - rank["warm_memory_bytes"] < 64 * 2**20, "of the 1 GiB that it had for KV alone"


def test_another_address_needs_a_token(tmp_path: Path) -> None:
    """Without one it does not start, and says why."""
    with pytest.raises(AssertionError, match="set PENSTOCK_API_KEY"), controller(tmp_path, "--host", "0.0.0.0"):
        pass


@pytest.mark.parametrize("when", ["idle", "serving"])
def test_killed_controller_leaves_nothing(tmp_path: Path, when: str) -> None:
    """SIGKILL on the controller ends ranks, engines and the warm server, whatever they are doing."""
    with controller(tmp_path) as made:
        if when == "serving":
            made.create("serving")
        family = [process.pid for process in made.family()]
        assert len(family) >= (4 if when == "serving" else 2)
        os.kill(made.process.pid, signal.SIGKILL)
        made.process.wait()
        gone(family)


def test_killed_warm_server(tmp_path: Path) -> None:
    """It takes ranks and engines along; their states say so, and a new server warms new ranks."""
    with controller(tmp_path) as made:
        made.create("lost")
        before = made.workers()[0]["pid"]
        made.warm_server().kill()
        until(lambda: made.status("lost")["state"] == "failed", 30)
        until(lambda: made.call("GET", "/health").status_code == 200 and made.workers()[0]["pid"] != before, 120)
        assert made.complete(made.create("again")["api_url"]) != ""


def test_rank_that_keeps_memory_is_replaced(tmp_path: Path) -> None:
    """With no tolerance, what every engine leaves behind in a process is too much: a new process takes the number."""
    with controller(tmp_path, "--leak-tolerance-mb", "0") as made:
        before = made.workers()[0]["pid"]
        made.create("first")
        made.delete("first")
        until(lambda: made.workers()[0]["status"] == "free", 60)
        rank = made.workers()[0]
        assert rank["pid"] != before
        assert "kept" in rank["last_death"]
        assert made.complete(made.create("second")["api_url"]) != ""


def test_owner_consents_to_code(tmp_path: Path) -> None:
    """Started with --trust-remote-code, the controller passes it on."""
    with controller(tmp_path, "--trust-remote-code") as made:
        assert made.complete(made.create("trusting", trust_remote_code=True)["api_url"]) != ""


def test_known_models_are_not_looked_at_elsewhere(tmp_path: Path) -> None:
    """On a fresh host vLLM has a process of its own import everything to look at a new class, and notes what it saw."""
    cache = tmp_path / "cache"
    with controller(tmp_path, VLLM_CACHE_ROOT=str(cache)) as made:
        assert made.complete(made.create("first")["api_url"]) != ""
        assert not list(cache.glob("modelinfos/*"))


def test_stops_with_grace(tmp_path: Path) -> None:
    """SIGTERM ends engines and ranks, and the exit code is 0."""
    with controller(tmp_path) as made:
        made.create("running")
        family = [process.pid for process in made.family()]
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(60) == 0
        gone(family)


def test_a_tokenizer_that_cannot_be_read_costs_no_rank(tmp_path: Path) -> None:
    """The core loads meanwhile; the engine fails, the rank is free again as it was, and makes the next engine."""
    broken = tmp_path / "broken"
    shutil.copytree(demo_model(), broken)
    (broken / "tokenizer.json").write_text("{")
    with controller(tmp_path) as made:
        before = made.pids()
        answer = made.call("POST", "/engines", {"engine_uuid": "broken", **ENGINE, "model": str(broken)})
        assert answer.status_code >= 400, answer.text
        made.wait_free(15)
        assert made.pids() == before
        url = made.create("good")["api_url"]
        assert made.complete(url)
