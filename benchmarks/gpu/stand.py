"""What is measured, as its users start it: penstock in parts, vLLM's own servers, the peers' routers. On GPUs or on a CPU.

All listen on loopback, on free ports. Nothing is shared between them but the devices.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.budget import SkippedError
from benchmarks.gpu.host import MODEL, Host
from benchmarks.gpu.process import Command
from benchmarks.servers import free_port
from components.bus.server import NatsServerPlan

BLOCK_SIZE = 32
_GRAPHS = Path(__file__).parents[2] / "graphs"


def vllm_server(host: Host, index: int, engines: int, *, events: bool = False) -> tuple[Command, str]:
    """Return vLLM's own OpenAI server on device `index` of so many, and where it tells of its KV blocks, if it shall."""
    port, endpoint = free_port(), f"tcp://127.0.0.1:{free_port()}" if events else ""
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(host.model)]
    argv += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--block-size", str(BLOCK_SIZE), "--disable-uvicorn-access-log", *flags(host.engine)]
    if events:
        config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint, "topic": "kv"}
        argv += ["--kv-events-config", json.dumps(config)]
    environment = {"VLLM_USE_FLASHINFER_SAMPLER": "0", **host.place(index, engines)}
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
    port, metrics_port = free_port(), free_port()
    argv = [sys.executable, "-m", f"{package}.launch_router", "--host", "127.0.0.1", "--port", str(port), *words]
    argv += ["--prometheus-port", str(metrics_port), "--log-level", "warn" if package.startswith("sglang") else "warning"]
    if name.endswith("kv_aware"):
        argv += ["--kv-event-block-size", str(BLOCK_SIZE), "--kv-event-model", MODEL]
        argv += [word for url, events in servers.items() for word in ("--kv-event-source", f"{url}={events}")]
    argv += ["--worker-urls", *servers]
    path = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    url, metrics_url = (f"http://127.0.0.1:{number}" for number in (port, metrics_port))
    return Command(name.replace("/", "-"), argv, url, "/health", {"PYTHONPATH": path}, metrics_url)


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
