"""What is measured, as its users start it: penstock in parts, vLLM's own servers, the peers' routers. On GPUs or on a CPU.

All listen on loopback, on free ports. Nothing is shared between them but the devices.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.budget import SkippedError
from benchmarks.servers import QUIET, free_port
from components.bus.server import NatsServerPlan
from components.engine.devices import visible_gpus, vllm_on_cpu

MODEL = "demo"
BLOCK_SIZE = 32
_GRAPHS = Path(__file__).parents[2] / "graphs"
_READY = "is ready after"
_ON_GPU: dict[str, Any] = {
    "load_format": "dummy",
    "dtype": "bfloat16",
    "gpu_memory_utilization": 0.2,  # engines share GPUs: vLLM asks for this share to be free at the start, no more
    "compilation_config": {
        "mode": 0,  # nothing is compiled, which spares each engine 15 s; decode steps run as CUDA graphs
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128],
    },
    "max_num_seqs": 128,
    "max_num_batched_tokens": 8192,
    "max_model_len": 16384,
}
_ON_CPU: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
    "max_model_len": 4096,
}


@dataclass(frozen=True)
class Host:
    """What engines run on.

    Attributes:
        gpus: as CUDA_VISIBLE_DEVICES names them; none: the engines compute on the CPU.
        model: the model folder.
        engine: vLLM engine arguments of every engine.
    """

    gpus: tuple[str, ...]
    model: Path
    engine: dict[str, Any]

    @property
    def on_cpu(self) -> bool:
        """Whether the engines compute on the CPU."""
        return not self.gpus

    def settings(self) -> list[str]:
        """Return what every part of a penstock graph is told."""
        engine = {"kind": "vllm", **self.engine}
        return [f"model={self.model}", f"served_model_name={MODEL}", f"decode.engine={json.dumps(engine)}"]

    def place(self, index: int) -> dict[str, str]:
        """Return the variables that keep engine `index` of several on its device."""
        if self.gpus:
            return {"CUDA_VISIBLE_DEVICES": self.gpus[index]}
        cores = sorted(os.sched_getaffinity(0))
        return {"VLLM_CPU_OMP_THREADS_BIND": str(cores[index % len(cores)])}


def this_host(model: Path, gpus: int, kv_gib: float, extra: dict[str, Any]) -> Host:
    """Return this machine as a host of engines on `gpus` GPUs, or on the CPU when the installed vLLM is built for that.

    Args:
        model: the model folder.
        gpus: how many to use.
        kv_gib: of KV for an engine on a GPU.
        extra: engine arguments that go before the ones chosen here.

    Raises:
        SystemExit: there are fewer GPUs.
    """
    if vllm_on_cpu():
        return Host((), model, _ON_CPU | extra)
    seen = visible_gpus()
    if len(seen) < gpus:
        raise SystemExit(f"{gpus} GPUs are wanted, nvidia-smi and CUDA_VISIBLE_DEVICES show {len(seen)}")
    return Host(seen[:gpus], model, _ON_GPU | {"kv_cache_memory_bytes": int(kv_gib * 2**30)} | extra)


@dataclass(frozen=True)
class Command:
    """How one program is started, and when it is ready.

    Attributes:
        name: for its log and for errors.
        argv: the command line.
        url: base URL of what it serves.
        ready_path: says 200 when it is ready; empty: its output says so.
        environment: variables beside this process's own.
    """

    name: str
    argv: Sequence[str]
    url: str
    ready_path: str
    environment: dict[str, str] = field(default_factory=dict)


class Running:
    """One started program."""

    def __init__(self, command: Command, logs: Path) -> None:
        self.command = command
        self._log = logs / f"{command.name}.log"
        self._began = time.monotonic()
        self.ready_s = 0.0
        with self._log.open("wb") as out:
            environment = {**os.environ, **QUIET, **command.environment}
            self._process = subprocess.Popen(command.argv, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def said(self) -> str:
        """Return the end of its output."""
        return self._log.read_text(errors="replace")[-3000:]

    def is_ready(self) -> bool:
        """Look whether it is ready.

        Raises:
            RuntimeError: it has ended.
        """
        if self.ready_s:
            return True
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.command.name} ended with {self._process.returncode}: {self.said()}")
        command = self.command
        if _says_200(command.url + command.ready_path) if command.ready_path else _READY in self.said():
            self.ready_s = time.monotonic() - self._began
        return bool(self.ready_s)

    def ask_to_stop(self) -> None:
        """Tell it to end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, grace_s: float = 20.0) -> None:
        """End it; after `grace_s` it is killed."""
        self.ask_to_stop()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def started(commands: Sequence[Command], logs: Path, limit_s: float) -> Iterator[list[Running]]:
    """Start `commands` at once and wait until all are ready; stop them at the end.

    Raises:
        RuntimeError: one has ended.
        TimeoutError: one is not ready after `limit_s`.
    """
    runnings: list[Running] = []
    try:
        for command in commands:
            runnings += [Running(command, logs)]  # one by one: what is started is stopped, even if the next cannot start
        await_ready(runnings, limit_s)
        yield runnings
    finally:
        for running in runnings:
            running.ask_to_stop()
        for running in runnings:
            running.stop()


def await_ready(runnings: Sequence[Running], limit_s: float) -> None:
    """Wait until all are ready; errors as of `started`."""
    end = time.monotonic() + limit_s
    while late := [running for running in runnings if not running.is_ready()]:
        if time.monotonic() > end:
            raise TimeoutError(f"{late[0].command.name} is not ready after {limit_s:.0f} s: {late[0].said()}")
        time.sleep(0.05)


def vllm_server(host: Host, index: int, events: bool = False) -> tuple[Command, str]:
    """Return vLLM's own OpenAI server on device `index`, and where it tells of its KV blocks, if it shall."""
    port, endpoint = free_port(), f"tcp://127.0.0.1:{free_port()}" if events else ""
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(host.model)]
    argv += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--block-size", str(BLOCK_SIZE), "--disable-uvicorn-access-log", *flags(host.engine)]
    if events:
        config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint, "topic": "kv"}
        argv += ["--kv-events-config", json.dumps(config)]
    environment = {"VLLM_USE_FLASHINFER_SAMPLER": "0", **host.place(index)}
    return Command(f"vllm-{index}", argv, f"http://127.0.0.1:{port}", "/health", environment), endpoint


def flags(arguments: dict[str, Any]) -> list[str]:
    """Return engine arguments as words of vLLM's command line."""
    words: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return words


def penstock(name: str, graph: str, logs: Path, settings: Sequence[str], port: int = 0, **environment: str) -> Command:
    """Return ``penstock up`` of a graph, or of a part of one; ready when all its processes are."""
    argv = [sys.executable, "-m", "components.launch", "up", str(_GRAPHS / graph)]
    for setting in settings:
        argv += ["--set", setting]
    place = {"PENSTOCK_STATE_DIR": str(logs / "state"), "COLUMNS": "200"}
    return Command(name, argv, f"http://127.0.0.1:{port}", "", {**place, **environment})


class Fleet:
    """penstock's workers and processors, which stay, and its router, which another one can take the place of.

    Three parts of one graph that meet on a NATS server, as graphs/multi_host.yaml describes it.
    """

    def __init__(self, host: Host, workers: int, logs: Path, nats_url: str, **environment: str) -> None:
        self.port = free_port()
        self._logs = logs
        self._environment = environment
        self._common = [*host.settings(), "name=fleet", f"nats={nats_url}", f"http.port={self.port}"]
        processors = 1 if host.on_cpu else 2
        self._workers = [f"decode.replicas={workers}", f"processor.replicas={processors}", "router.replicas=0", "host=w"]

    @property
    def url(self) -> str:
        """Of the OpenAI endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> Command:
        """Return all but the router."""
        settings = [*self._common, *self._workers]
        return penstock("penstock-workers", "agg_router.yaml", self._logs, settings, self.port, **self._environment)

    def router(self, policy: str) -> Command:
        """Return a router."""
        settings = [*self._common, "decode.replicas=0", "processor.replicas=0", "host=r", f"router.policy={policy}"]
        settings.append(f"router.http_port={free_port()}")
        return penstock(f"penstock-{policy}", "agg_router.yaml", self._logs, settings, self.port, **self._environment)


def disaggregated(host: Host, decode: int, prefill: int, logs: Path, l1_gib: float) -> tuple[Command, str]:
    """Return a whole graph with prefill workers, and the URL of its endpoint."""
    port = free_port()
    graph = "disagg_router.yaml" if host.on_cpu else "gpu_disagg_4.yaml"
    if not host.on_cpu:  # the third engine on its GPU
        host = replace(host, engine=host.engine | {"kv_cache_memory_bytes": 16 * 2**30})
    settings = [*host.settings(), f"http.port={port}", f"decode.replicas={decode}", f"prefill.replicas={prefill}"]
    settings += [f"router.http_port={free_port()}", f"lmcache.port={free_port()}", f"lmcache.http_port={free_port()}"]
    settings += [f"lmcache.l1_gb={l1_gib}", "processor.replicas=1"]
    return penstock("penstock-disagg", graph, logs, settings, port), f"http://127.0.0.1:{port}"


PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "vllm-router/cache_aware": ("vllm_router", ("--policy", "cache_aware")),
    "sglang-router/cache_aware": ("sglang_router", ("--policy", "cache_aware")),
    "vllm-router/kv_aware": ("vllm_router", ("--policy", "kv_aware")),
}
"""Peers' routers with their policy: the package, and the words of the command line."""


def peer(name: str, servers: dict[str, str], packages: Path | None) -> Command:
    """Return a peer's router before vLLM's servers.

    Args:
        name: one of `PEERS`.
        servers: URL → where that server tells of its KV blocks.
        packages: the folder that holds the peers, as `pack.sh` makes it.

    Raises:
        SkippedError: it is not there.
    """
    package, words = PEERS[name]
    if packages is None or not (packages / package).is_dir():
        raise SkippedError(
            f"{package} is not in {packages or '--peers, which was not given'}; benchmarks/gpu/pack.sh packs it"
        )
    port = free_port()
    argv = [sys.executable, "-m", f"{package}.launch_router", "--host", "127.0.0.1", "--port", str(port), *words]
    argv += ["--prometheus-port", str(free_port()), "--log-level", "warn" if package.startswith("sglang") else "warning"]
    if name.endswith("kv_aware"):
        argv += ["--kv-event-block-size", str(BLOCK_SIZE), "--kv-event-model", MODEL]
        argv += [word for url, events in servers.items() for word in ("--kv-event-source", f"{url}={events}")]
    argv += ["--worker-urls", *servers]
    path = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    return Command(name.replace("/", "-"), argv, f"http://127.0.0.1:{port}", "/health", {"PYTHONPATH": path})


@contextmanager
def nats_server(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Run a NATS server; yields its URL and the variables its clients need."""
    plan = NatsServerPlan(folder, name="benchmark")
    plan.write()
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(plan.argv, env={**os.environ, **plan.environment}, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        settings = asyncio.run(plan.settings(process.pid))
        yield settings.url, plan.environment


def _says_200(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
