"""A worker controller as its users start it, on free ports, and a small client for it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.launched import free_port

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
ENGINE = {"model": "demo", "dtype": "float32", "max_model_len": 1024, "block_size": 32}
GREEDY = {"model": "demo", "prompt": "San Francisco is a", "max_tokens": 20, "temperature": 0, "ignore_eos": True}


@dataclass
class Controller:
    """A running controller.

    Attributes:
        url: base URL of its API.
        process: the controller's own process.
        folder: its sockets and logs.
        first_engine_port: where engines' ports begin.
        headers: sent with every request.
    """

    url: str
    process: subprocess.Popen[bytes]
    folder: Path
    first_engine_port: int
    headers: dict[str, str]

    def call(self, method: str, path: str, body: Any = None, timeout_s: float = 120) -> httpx.Response:
        """Send one request and return the answer, whatever its status."""
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        return httpx.request(method, self.url + path, content=content, headers=self.headers, timeout=timeout_s)

    def create(self, uuid: str, **fields: Any) -> dict[str, Any]:
        """Create an engine of the demo model and return the answer, which must be a success."""
        answer = self.call("POST", "/engines", {"engine_uuid": uuid, **ENGINE, **fields})
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def delete(self, uuid: str) -> dict[str, Any]:
        """Delete an engine; it must be there."""
        answer = self.call("DELETE", f"/engines/{uuid}")
        assert answer.status_code == 200, answer.text
        deleted: dict[str, Any] = answer.json()
        return deleted

    def delete_all(self) -> None:
        """Delete every engine, and wait until all ranks are free."""
        for engine in self.call("GET", "/engines").json()["engines"]:
            self.call("DELETE", f"/engines/{engine['engine_uuid']}")
        self.wait_free()

    def wait_free(self, seconds: float = 60) -> None:
        """Wait until every rank is free."""
        until(lambda: all(rank["status"] == "free" for rank in self.workers()), seconds)

    def workers(self) -> list[dict[str, Any]]:
        """Return the ranks."""
        ranks: list[dict[str, Any]] = self.call("GET", "/workers").json()["workers"]
        return ranks

    def pids(self) -> list[int]:
        """Return the ranks' processes."""
        return [rank["pid"] for rank in self.workers()]

    def status(self, uuid: str) -> dict[str, Any]:
        """Return an engine's status."""
        found: dict[str, Any] = self.call("GET", f"/engines/{uuid}").json()
        return found

    def complete(self, api_url: str, **fields: Any) -> str:
        """Return the greedy continuation of a fixed prompt by an engine."""
        body = {**GREEDY, **fields}
        answer = httpx.post(f"{api_url}/v1/completions", json=body, timeout=60, headers=self.headers)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    def family(self) -> list[psutil.Process]:
        """Return every process that descends from the controller."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def sockets(self) -> Path:
        """Return the folder with the sockets of all its processes."""
        listening = psutil.Process(self.pids()[0]).net_connections("unix")
        return Path(next(each.laddr for each in listening if "rank-0" in each.laddr)).parent

    def warm_server(self) -> psutil.Process:
        """Return what all its processes are forked from."""
        found = next(each for each in self.family() if "components.engine.warm_server" in each.cmdline())
        while found.ppid() != self.process.pid:  # its children look like it
            found = psutil.Process(found.ppid())
        return found

    def core_of(self, uuid: str) -> int:
        """Return the process id of an engine's core: the other member of its server's process group."""
        server = self.status(uuid)["pid"]
        others = [each.pid for each in self.family() if _group(each.pid) == server and each.pid != server]
        assert len(others) == 1
        return others[0]


@contextmanager
def controller(folder: Path, *flags: str, state: Path | None = None, **environment: str) -> Iterator[Controller]:
    """Run a controller until its ranks are warm; with a `state` folder as ``penstock controller``, beside its graphs."""
    port, first = free_port(), free_port()
    program = ["components.launch", "controller"] if state else ["components.worker_controller"]
    argv = [sys.executable, "-m", *program, "--port", str(port)]
    argv += ["--first-engine-port", str(first), "--last-engine-port", str(first + 40), "--kv-cache-gb", "0.25", *flags]
    log = folder / "controller.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **QUIET, "PENSTOCK_STATE_DIR": str(state or folder / "state"), **environment},
            stdout=output,
            stderr=output,
        )
    headers = {"Authorization": f"Bearer {environment['PENSTOCK_API_KEY']}"} if "PENSTOCK_API_KEY" in environment else {}
    made = Controller(f"http://127.0.0.1:{port}", process, folder, first, headers)
    try:
        until(lambda: _healthy(made, log), 120)
        yield made
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _healthy(made: Controller, log: Path) -> bool:
    assert made.process.poll() is None, log.read_text()
    try:
        return made.call("GET", "/health", timeout_s=2).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Have processes stand still, so that whatever waits for them is still waiting."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)


def until(true: Any, seconds: float = 30) -> None:
    """Wait until `true` is."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def gone(pids: list[int], seconds: float = 10) -> None:
    """Wait until none of the processes lives."""
    until(lambda: not any(alive(pid) for pid in pids), seconds)


def alive(pid: int) -> bool:
    """Return whether the process lives."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
