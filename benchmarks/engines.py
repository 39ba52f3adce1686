"""How fast the worker controller creates engines, against vLLM's own server started cold; both in one run, taking turns.

From the request (or the command) to the first token of a streamed completion, by phase. Also: switching from one model to
another on the same rank, the memory of an idle warm rank, what is left of an engine after its deletion, and on a GPU sleep
and wake. On a GPU give a model and arguments:

    python -m benchmarks.engines --model FOLDER --other FOLDER --engine '{"load_format": "dummy", "max_model_len": 8192}'
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import machine, show, spread, write_json
from benchmarks.servers import QUIET, demo_engine, free_port
from components.engine.devices import vllm_on_cpu
from components.model.demo import demo_model

MIB = 2**20

MARKS = {
    "imports, API server": "vLLM API server version",
    "config, imports, core": "Initializing a V1 LLM engine",
    "imports, worker; device": "Starting to load model",
    "weights": "Loading weights took",
    "KV profiling, cache, warm-up": "init engine (profile",
    "API": "Application startup complete",
}
"""Phases of a cold start, each with what vLLM logs at its end (0.32; a phase whose line is missing is in the next one)."""


def cold(model: str, arguments: dict[str, Any]) -> dict[str, float]:
    """Start vLLM's own server, ask it once, end it; returns seconds by phase, ``total`` and ``ready`` among them."""
    port = free_port()
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "demo"]
    argv += ["--host", "127.0.0.1", "--port", str(port), *flags(arguments)]
    environment = {**os.environ, **QUIET, "VLLM_LOGGING_LEVEL": "INFO", "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen: dict[str, float] = {}
    up = threading.Event()

    def read() -> None:
        for line in process.stdout or ():
            for phase, mark in MARKS.items():
                if mark in line and phase not in seen:
                    seen[phase] = time.perf_counter() - began
            if MARKS["API"] in line:
                up.set()
        up.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if not up.wait(600) or process.poll() is not None:
            raise RuntimeError(f"vLLM's server did not come up: {argv}")
        first_token(f"http://127.0.0.1:{port}", "demo")
        total = time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(60)
        reader.join(10)
    phases, before = {}, 0.0
    for phase in MARKS:
        if phase in seen:
            phases[phase], before = seen[phase] - before, seen[phase]
    return {**phases, "first token": total - before, "ready": before, "total": total}


def flags(arguments: dict[str, Any]) -> list[str]:
    """Return engine arguments as a command line's words."""
    words = []
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [f"--no-{flag[2:]}"] if value is False else [flag, str(value)]
    return words


def first_token(url: str, model: str) -> None:
    """Ask for a streamed completion and return at its first piece."""
    body = {"model": model, "prompt": "San Francisco is a", "max_tokens": 4, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    deadline = time.perf_counter() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                if any(line.startswith(b"data: {") for line in response):
                    return
        except urllib.error.URLError as error:  # vLLM says that it is up a moment before it listens
            if isinstance(error, urllib.error.HTTPError) or time.perf_counter() > deadline:
                raise
            time.sleep(0.01)
        else:
            raise RuntimeError(f"no token came from {url}")


class Pool:
    """A running controller with one rank.

    Attributes:
        timeout_s: longest wait for an answer.
    """

    def __init__(self, port: int, pid: int) -> None:
        self.timeout_s = 900.0
        self._url = f"http://127.0.0.1:{port}"
        self._pid = pid

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the controller's answer; an error ends the benchmark."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error

    def create(self, model: str, arguments: dict[str, Any]) -> dict[str, float]:
        """Create an engine, ask it once; returns seconds by phase, ``total`` and ``created`` among them."""
        self.free_rank()
        began = time.perf_counter()
        made = self.call("POST", "/engines", {"engine_uuid": "bench", "model": model, **arguments})
        created = time.perf_counter() - began
        first_token(made["api_url"], model)
        total = time.perf_counter() - began
        phases = {name.removesuffix("_s"): value for name, value in made["create_timings"].items() if name != "total_s"}
        return {**phases, "first token": total - created, "created": created, "total": total}

    def delete(self) -> float:
        """Delete the engine; returns how long it took."""
        began = time.perf_counter()
        self.call("DELETE", "/engines/bench")
        return time.perf_counter() - began

    def rank(self) -> dict[str, Any]:
        """Return the rank."""
        found: dict[str, Any] = self.call("GET", "/workers")["workers"][0]
        return found

    def free_rank(self) -> dict[str, Any]:
        """Return the rank once it is free; after an engine it may be a process that has to start first."""
        while (rank := self.rank())["status"] != "free":
            time.sleep(0.05)
        return rank

    def rank_pss(self) -> float:
        """Return the rank's memory in MiB, what it shares with others split between them."""
        return float(psutil.Process(self.rank()["pid"]).memory_full_info().pss / MIB)


@contextmanager
def controller(**variables: str) -> Iterator[tuple[Pool, float]]:
    """Run a controller with one rank, with `variables` in its environment; yields it and how long it took to be ready."""
    port, first = free_port(), free_port()
    argv = [sys.executable, "-m", "components.worker_controller", "--port", str(port), "--workers", "1"]
    argv += ["--first-engine-port", str(first), "--last-engine-port", str(first + 20)]
    with tempfile.TemporaryDirectory() as state:
        environment = {**os.environ, **QUIET, "PENSTOCK_STATE_DIR": state, **variables}
        began = time.perf_counter()
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not _healthy(port):
                if process.poll() is not None or time.perf_counter() - began > 300:
                    raise RuntimeError("the controller did not come up")
                time.sleep(0.05)
            yield Pool(port, process.pid), time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(60)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def other_demo(folder: Path) -> str:
    """Return a copy of the demo model in `folder`: another model to whoever loads it."""
    shutil.copytree(demo_model(), folder / "other")
    return str(folder / "other")


def run(model: str, other: str, arguments: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Measure everything."""
    results: dict[str, Any] = {"cold": [], "create": [], "switch": [], "delete_s": [], "left_mib": []}
    with controller() as (pool, ready_s):
        results |= {"pool_ready_s": ready_s, "idle_rank_pss_mib": pool.rank_pss()}
        for _ in range(rounds):
            results["cold"].append(cold(model, arguments))
            results["create"].append(pool.create(model, arguments))
            results["delete_s"].append(pool.delete())
            results["switch"].append(pool.create(other, arguments))
            results["delete_s"].append(pool.delete())
            rank = pool.free_rank()
            results["left_mib"].append((rank["memory_bytes"] - rank["warm_memory_bytes"]) / MIB)
        results["used_rank_pss_mib"] = pool.rank_pss()
        results["same_process"] = pool.rank()["replaced"] == 0
        if not vllm_on_cpu():
            results["sleep"] = [sleep(pool, model, arguments, level) for level in (1, 2) for _ in range(rounds)]
    return results


def sleep(pool: Pool, model: str, arguments: dict[str, Any], level: int) -> dict[str, float]:
    """Send an engine to sleep and wake it; returns seconds and what the GPU holds meanwhile."""
    pool.create(model, {**arguments, "enable_sleep_mode": True})
    began = time.perf_counter()
    pool.call("POST", "/engines/bench/sleep", {"level": level})
    slept = time.perf_counter()
    pool.call("POST", "/engines/bench/wake_up")
    woke = time.perf_counter()
    pool.delete()
    return {"level": level, "sleep_s": slept - began, "wake_s": woke - slept}


def tell(results: dict[str, Any]) -> None:
    """Print tables."""
    for name, title in (("cold", "vLLM's server, cold"), ("create", "create"), ("switch", "switch to another model")):
        rows = results[name]
        phases = list(dict.fromkeys(phase for row in rows for phase in row))
        table = [[phase, spread([row[phase] for row in rows if phase in row])] for phase in phases]
        show(f"{title}: seconds until the first token", ["phase", "median (min to max, n)"], table)
    medians = {name: statistics.median(row["total"] for row in results[name]) for name in ("cold", "create", "switch")}
    first = results["create"][0]["total"]
    facts = [
        ["cold / create", f"{medians['cold'] / medians['create']:.1f}"],
        ["switch / first creation", f"{medians['switch'] / first:.2f}"],
        ["pool ready, s", f"{results['pool_ready_s']:.1f}"],
        ["idle warm rank, PSS MiB", f"{results['idle_rank_pss_mib']:.0f}"],
        ["the same after all engines, PSS MiB", f"{results['used_rank_pss_mib']:.0f}"],
        ["delete, s", spread(results["delete_s"])],
        ["left after a deletion, MiB", spread(results["left_mib"], 1)],
        ["one process throughout", str(results["same_process"])],
    ]
    for level in (1, 2):
        rows = [row for row in results.get("sleep", []) if row["level"] == level]
        facts += [
            [f"sleep level {level}: {what}", spread([row[what] for row in rows], 3)]
            for what in ("sleep_s", "wake_s")
            if rows
        ]
    show("and", ["what", "value"], facts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", help="a model folder; default: the demo model")
    parser.add_argument("--other", help="another one, to switch to; default: a copy of the first")
    parser.add_argument("--engine", type=json.loads, help="vLLM engine arguments, a JSON map")
    asked = parser.parse_args()
    demo = demo_engine()
    model = asked.model or demo.model
    arguments = asked.engine if asked.engine is not None else {**demo.arguments, "kv_cache_memory_bytes": 2**30}
    print(machine(), model, arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = run(model, asked.other or (model if asked.model else other_demo(Path(folder))), arguments, asked.rounds)
    tell(results)
    write_json(asked.json, results)


if __name__ == "__main__":
    main()
