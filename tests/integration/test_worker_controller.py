"""The worker controller with real vLLM on two CPU ranks: engines come, answer, go, and the same warm processes stay."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from components.worker_controller.frames import Frames
from tests.support.controller import ENGINE, Controller, alive, frozen, gone, until

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
CONTROLLER_FLAGS = ("--workers", "2")


def test_one_engine_after_another_on_the_same_warm_process(pool: Controller, tmp_path: Path) -> None:
    """The document's life of an engine, twice, with two models; the ranks' processes stay the same throughout."""
    before = pool.pids()
    made = pool.create("my-engine")
    assert made["status"] == "created"
    assert (made["engine_uuid"], made["model"], made["assigned_ranks"]) == ("my-engine", "demo", [0])
    assert made["api_url"] == f"http://127.0.0.1:{made['port']}"
    assert alive(made["pid"])
    assert made["create_timings"]["total_s"] > 0
    assert pool.call("GET", "/health").json() == {"status": "healthy", "num_workers": 2, "num_engines": 1}
    assert pool.status("my-engine")["state"] == "running"
    assert [rank["assigned_to"] for rank in pool.workers()] == ["my-engine", None]
    assert httpx.get(f"{made['api_url']}/health").status_code == 200
    assert httpx.get(f"{made['api_url']}/v1/models").json()["data"][0]["id"] == "demo"
    first = pool.complete(made["api_url"])
    timings = pool.call("GET", "/engines/my-engine/load_timings").json()
    assert set(timings["workers"][0]["phases"]) >= {"device", "weights", "kv_cache"}
    assert timings["summed"]["weights"] == timings["workers"][0]["phases"]["weights"]
    assert pool.pids() == before
    deleted = pool.delete("my-engine")
    assert (deleted["released_ranks"], deleted["released_port"]) == ([0], made["port"])
    assert pool.call("GET", "/engines/my-engine").status_code == 404
    gone([made["pid"]])

    other = pool.create("another", model=str(other_model(tmp_path)), load_format="dummy")
    assert other["assigned_ranks"] == [0]
    assert pool.complete(other["api_url"], model=other["model"]) != ""
    pool.delete("another")
    again = pool.create("my-engine")
    assert pool.complete(again["api_url"]) == first
    assert pool.pids() == before


def other_model(folder: Path) -> Path:
    """Return a copy of the demo model with half its layers."""
    from components.model.demo import demo_model

    copy = folder / "other"
    shutil.copytree(demo_model(), copy)
    config = json.loads((copy / "config.json").read_text())
    config["num_hidden_layers"] //= 2
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_openai_client_with_streaming(pool: Controller) -> None:
    """OpenAI's own client speaks to an engine, in pieces and whole."""
    made = pool.create("chat")
    client = openai.OpenAI(base_url=f"{made['api_url']}/v1", api_key="none")
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert len(pieces) > 2
    assert "".join(pieces) == whole


def test_two_ranks_compute_what_one_does(pool: Controller) -> None:
    """Tensor parallelism over both ranks gives one rank's answer; so do the ranks by themselves afterwards."""
    alone = pool.complete(pool.create("alone")["api_url"])
    pool.delete("alone")
    before = pool.pids()
    made = pool.create("both", tensor_parallel_size=2)
    assert made["assigned_ranks"] == [0, 1]
    assert pool.complete(made["api_url"]) == alone
    (meeting,) = pool.sockets().glob("*/meet-*")
    assert list(Path("/dev/shm").glob(f"{meeting.name}-*")) == []
    pool.delete("both")
    engines = [pool.create(name) for name in ("left", "right")]
    assert [pool.complete(each["api_url"]) for each in engines] == [alone, alone]
    assert pool.pids() == before
    pool.delete_all()
    assert [path for path in pool.sockets().iterdir() if path.is_dir() and "warm" not in path.name] == []


def test_a_stopped_engine_delays_nobody(pool: Controller) -> None:
    """While one engine's rank and server stand still, the other answers, is deleted and created anew."""
    slow, quick = pool.create("slow"), pool.create("quick")
    with frozen(pool.pids()[slow["assigned_ranks"][0]], slow["pid"]):
        assert pool.complete(quick["api_url"]) != ""
        pool.delete("quick")
        assert pool.complete(pool.create("quick")["api_url"]) != ""
    assert pool.complete(slow["api_url"]) != ""


def _rank(pool: Controller, uuid: str) -> int:
    return pool.pids()[pool.status(uuid)["assigned_ranks"][0]]


def _core(pool: Controller, uuid: str) -> int:
    return pool.core_of(uuid)


def _server(pool: Controller, uuid: str) -> int:
    found: int = pool.status(uuid)["pid"]
    return found


@pytest.mark.parametrize(("victim", "reason"), [(_rank, "worker rank"), (_core, ""), (_server, "signal 9")])
def test_a_killed_process_fails_its_own_engine_only(pool: Controller, victim: Any, reason: str) -> None:
    """Rank, core and API server: the engine fails and says why, its ranks and port can be had again, the other goes on."""
    doomed, other = pool.create("doomed"), pool.create("other")
    processes = [_core(pool, "doomed"), _server(pool, "doomed")]
    os.kill(victim(pool, "doomed"), signal.SIGKILL)
    until(lambda: pool.status("doomed")["state"] == "failed", 60)
    assert reason in pool.status("doomed")["error"]
    assert pool.status("doomed")["error"]
    gone(processes)
    until(lambda: pool.workers()[doomed["assigned_ranks"][0]]["status"] == "free", 60)
    assert pool.complete(other["api_url"]) != ""
    again = pool.create("doomed")
    assert (again["port"], again["assigned_ranks"]) == (doomed["port"], doomed["assigned_ranks"])
    assert pool.complete(again["api_url"]) != ""


def test_a_rank_killed_while_it_computes_for_two(pool: Controller) -> None:
    """One of two tensor ranks dies in the middle of an answer: the client hears of it, both ranks come back."""
    made = pool.create("both", tensor_parallel_size=2)
    answers: list[int] = []

    def ask() -> None:
        body = {"model": "demo", "prompt": "Hello", "max_tokens": 900, "ignore_eos": True}
        try:
            answers.append(httpx.post(f"{made['api_url']}/v1/completions", json=body, timeout=100).status_code)
        except httpx.HTTPError:
            answers.append(0)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)  # somewhere in the middle; whenever it is, the same must happen
    os.kill(pool.pids()[1], signal.SIGKILL)
    asking.join(100)
    assert answers[0] != 200
    until(lambda: pool.status("both")["state"] == "failed", 60)
    pool.wait_free()
    assert pool.complete(pool.create("both", tensor_parallel_size=2)["api_url"]) != ""


@pytest.mark.parametrize("moment_s", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("victim", ["rank", "server", "delete"])
def test_killed_or_deleted_while_it_loads(pool: Controller, victim: str, moment_s: float) -> None:
    """At whatever point of its creation, the request gets an error and everything is given back."""
    with ThreadPoolExecutor(1) as thread:
        creating = thread.submit(pool.call, "POST", "/engines", {"engine_uuid": "short", **ENGINE})
        time.sleep(moment_s)
        if victim == "delete":
            pool.call("DELETE", "/engines/short")
        elif pid := pool.pids()[0] if victim == "rank" else pool.status("short").get("pid"):
            os.kill(pid, signal.SIGKILL)
        answer = creating.result()
    assert answer.status_code in {200, 409, 503}, answer.text
    pool.delete_all()
    assert pool.complete(pool.create("next")["api_url"]) != ""


def test_one_of_two_ranks_killed_while_they_load(pool: Controller) -> None:
    """The other, which waits for it, does not keep the request waiting."""
    with ThreadPoolExecutor(1) as thread:
        creating = thread.submit(pool.call, "POST", "/engines", {"engine_uuid": "both", **ENGINE, "tensor_parallel_size": 2})
        until(lambda: pool.status("both").get("doing") == "loading the model")
        os.kill(pool.pids()[1], signal.SIGKILL)
        assert creating.result(60).status_code == 503
    pool.wait_free()


def test_twenty_at_once(pool: Controller) -> None:
    """Of twenty creations at once exactly two succeed, on different ranks and ports; the others say that no rank is free."""
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda n: pool.call("POST", "/engines", {"engine_uuid": f"e{n}", **ENGINE}), range(20)))
    made = [answer.json() for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert (len(made), len(refused)) == (2, 18)
    assert all("free" in answer.json()["error"]["message"] and answer.headers["Retry-After"] for answer in refused)
    assert {each["assigned_ranks"][0] for each in made} == {0, 1}
    assert len({each["port"] for each in made}) == 2
    assert pool.call("GET", "/engines").json()["num_engines"] == 2


def test_the_same_name_twenty_times_at_once(pool: Controller) -> None:
    """One is created, the others conflict with it."""
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: pool.call("POST", "/engines", {"engine_uuid": "same", **ENGINE}), range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19


def test_a_port_taken_by_somebody_else_is_skipped(pool: Controller) -> None:
    """The next one is taken instead."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", pool.first_engine_port))
        holder.listen()
        made = pool.create("skips")
        assert made["port"] > pool.first_engine_port
        pool.delete("skips")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 422, "not valid JSON"),
        ({"model": "demo"}, 422, "engine_uuid"),
        ({"engine_uuid": "x"}, 422, "model"),
        ({"engine_uuid": "../x", "model": "demo"}, 422, "engine_uuid"),
        ({"engine_uuid": "x", "model": "demo", "tensor_parallel_size": 0}, 422, "tensor_parallel_size"),
        ({"engine_uuid": "x", "model": "demo", "max_model_length": 5}, 422, "max_model_len"),
        ({"engine_uuid": "x", "model": "demo", "max_num_seqs": "many"}, 422, "max_num_seqs"),
        ({"engine_uuid": "x", "model": "demo", "worker_cls": "os.system"}, 422, "worker_cls"),
        ({"engine_uuid": "x", "model": "demo", "distributed_executor_backend": "mp"}, 422, "controller"),
        ({"engine_uuid": "x", "model": "demo", "trust_remote_code": True}, 400, "trust_remote_code"),
        ({"engine_uuid": "x", "model": "demo", "worker_extension_cls": "os.path"}, 400, "worker_extension_cls"),
        ({"engine_uuid": "x", "model": "/nowhere"}, 400, "/nowhere"),
        ({"engine_uuid": "x", "model": "demo", "dtype": "float65"}, 400, "dtype"),
        ({"engine_uuid": "x", "model": "demo", "max_model_len": 10_000_000}, 400, "max_model_len"),
        ({"engine_uuid": "x", "model": "demo", "kv_cache_memory_bytes": 1000}, 400, ""),
        ({"engine_uuid": "x", "model": "demo", "tensor_parallel_size": 3}, 409, "ranks"),
    ],
)
def test_what_is_refused(pool: Controller, body: Any, status: int, text: str) -> None:
    """Each mistake has its code and says what is wrong; nothing is kept of it."""
    answer = pool.call("POST", "/engines", body)
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]["message"]
    pool.wait_free()


def test_unknown_engines(pool: Controller) -> None:
    """Every route of an engine that is not there says 404."""
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/load_timings"), ("POST", "/sleep"), ("POST", "/wake_up")):
        assert pool.call(method, f"/engines/nobody{path}").status_code == 404


def test_sleep_is_refused_on_a_cpu(pool: Controller) -> None:
    """It says that vLLM has no such mode there."""
    pool.create("awake")
    answer = pool.call("POST", "/engines/awake/sleep", {"level": 1})
    assert (answer.status_code, "CPU" in answer.json()["error"]["message"]) == (400, True)


def test_nonsense_on_the_sockets(pool: Controller) -> None:
    """Garbage, oversized frames and strangers on the IPC sockets harm neither the ranks nor the controller."""
    sockets = [path for path in pool.sockets().iterdir() if path.is_socket()]
    assert len(sockets) == 3
    made, before = pool.create("undisturbed"), pool.pids()
    for path in sockets:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 7 + b"\x05hello", b"\xff" * 64, b""):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(path))
                stranger.sendall(data)
        frames = Frames.connect(path, 1000)
        frames.send(b"\x82\xa4type\xa5Hello")
        frames.close()
    assert pool.complete(made["api_url"]) != ""
    assert pool.pids() == before


def test_nothing_leaks_over_many_engines(pool: Controller) -> None:
    """After eight engines one after another: the same processes, no more memory than after three, no file open or left."""
    before = pool.pids()
    sockets = set(pool.sockets().rglob("*"))
    rank = psutil.Process(before[0])
    held, files, connections = [], [], []
    for _ in range(8):
        pool.complete(pool.create("cycle")["api_url"])
        pool.delete("cycle")
        held.append(pool.workers()[0]["memory_bytes"])
        files.append(rank.num_fds())
        connections.append(psutil.Process(pool.process.pid).num_fds())
    assert pool.pids() == before
    assert set(pool.sockets().rglob("*")) == sockets
    assert held[-1] < held[2] + 32 * 2**20
    assert files[-1] == files[2]
    assert connections[-1] <= connections[2] + 3, "one a cycle would be five; those of our own requests may linger"


def penstock(pool: Controller, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``penstock engines <words>`` against the pool."""
    argv = [sys.executable, "-m", "components.launch", "engines", *words, "--controller", pool.url]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_commands(pool: Controller) -> None:
    """Create tells what it is doing and where the engine is; list shows it; delete says what is free again."""
    flags = ["--model", "demo", "--dtype", "float32", "--max-model-len", "1024"]
    made = penstock(pool, "create", "cli", *flags)
    assert made.returncode == 0, made.stderr
    assert "cli is running after" in made.stdout
    assert " s  " in made.stderr
    listed = penstock(pool, "list")
    assert "cli     running  demo" in listed.stdout
    assert json.loads(penstock(pool, "list", "--json").stdout)["num_workers"] == 2
    again = penstock(pool, "create", "cli", *flags)
    assert (again.returncode, "exists" in again.stderr) == (1, True)
    wrong = penstock(pool, "create", "other", "--model", "/nowhere")
    assert (wrong.returncode, "/nowhere" in wrong.stderr) == (1, True)
    first = penstock(pool, "create", "--dtype", "float32", "cli2")
    assert (first.returncode, "comes first" in first.stderr) == (2, True)
    deleted = penstock(pool, "delete", "cli")
    assert (deleted.returncode, "are free" in deleted.stdout) == (0, True)
    assert penstock(pool, "delete", "cli").returncode == 1
    nobody = subprocess.run(
        [sys.executable, "-m", "components.launch", "engines", "list", "--controller", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (nobody.returncode, "no controller answers" in nobody.stderr) == (1, True)
