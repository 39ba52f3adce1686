"""The two servers under comparison, each started as its users start it, on a free loopback port."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from components.model.demo import demo_model

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Engine:
    """What both sides serve, with the same arguments.

    Attributes:
        model: a model folder.
        arguments: engine arguments by their Python names.
        kind: which engine, in penstock's graphs.
    """

    model: str
    arguments: dict[str, str | int | float | bool]
    kind: str = "vllm"


def demo_engine() -> Engine:
    """Return the demo model with what suits two CPU cores."""
    return Engine(str(demo_model()), {"max_model_len": 4096, "dtype": "float32", "enforce_eager": True})


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        name: for the tables.
        url: base URL, without a slash at the end.
        pid: its first process.
        start_s: from the command to readiness, in seconds.
        state: penstock's state folder, where there is one.
    """

    name: str
    url: str
    pid: int
    start_s: float
    state: str = ""


@contextmanager
def vllm_server(engine: Engine) -> Iterator[Server]:
    """Run vLLM's own OpenAI server until /health says 200."""
    port = free_port()
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", engine.model]
    argv += ["--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port), "--block-size", "32"]
    argv += ["--disable-uvicorn-access-log"]
    for name, value in engine.arguments.items():
        flag = f"--{name.replace('_', '-')}"
        argv += [flag] if value is True else [flag, str(value)]
    with running("vllm", argv, f"http://127.0.0.1:{port}", "/health", QUIET) as server:
        yield server


@contextmanager
def penstock_graph(graph: str, engine: Engine, *settings: str, name: str = "penstock") -> Iterator[Server]:
    """Run `penstock up GRAPH` with `engine` in its decode workers, until every process is ready."""
    port = free_port()
    chosen = [f"http.port={port}", f"model={engine.model}", "served_model_name=demo"]
    chosen += [f"decode.engine={json.dumps({'kind': engine.kind, **engine.arguments})}", *settings]
    with tempfile.TemporaryDirectory() as state:
        argv = [str(Path(sys.executable).parent / "penstock"), "up", graph]
        if not Path(argv[0]).exists():  # not installed, only on the path
            argv[:1] = [sys.executable, "-m", "components.launch"]
        for setting in chosen:
            argv += ["--set", setting]
        environment = {**QUIET, "PENSTOCK_STATE_DIR": state}
        with running(name, argv, f"http://127.0.0.1:{port}", "/ready", environment, ready_line="curl ") as server:
            yield replace(server, state=state)


def free_port() -> int:
    """Return a TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    name: str,
    argv: list[str],
    url: str,
    ready_path: str,
    environment: dict[str, str],
    ready_line: str | None = None,
    answer: str = "",
) -> Iterator[Server]:
    """Run `argv`, ready once `ready_path` answers with `answer` in it and `ready_line` is in its output; end it later."""
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        began = time.perf_counter()
        process = subprocess.Popen(argv, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not _ready(url + ready_path, answer) or (ready_line and ready_line not in Path(log.name).read_text()):
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{Path(log.name).read_text()[-3000:]}")
                if time.perf_counter() - began > 300:
                    raise RuntimeError(f"{name} is not ready after 300 s")
                time.sleep(0.05)
            yield Server(name, url, process.pid, time.perf_counter() - began)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(url: str, answer: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return response.status == 200 and answer.encode() in response.read()
    except (urllib.error.URLError, OSError):
        return False
