"""The control plane end to end: penstock against Dynamo, and against the routers that only proxy; engines that take no time.

    python -m benchmarks.control_plane [--rounds N] [--systems penstock,dynamo] [--json FILE]

All systems are up and take turns under one client process on the same cores: same prompts (one of eight system prompts of
about 850 tokens, and a question of its own), 8 tokens of answer. penstock and Dynamo render, tokenize, hash and route by KV
over four workers, each a process (`dynamo-joined`: all in one), and route in the process that speaks HTTP (`penstock-apart`:
in one for the router). The others pass the body on to one mock worker.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks import peers
from benchmarks.http_load import Load, load
from benchmarks.mock_worker import OUTPUT_TOKENS
from benchmarks.peers import PEERS, PeerError, System
from benchmarks.report import machine, show, spread, write_json
from benchmarks.servers import Engine, free_port, penstock_graph
from benchmarks.wide_model import wide_model

INSTANT = Path(__file__).parent / "instant.json"
CONCURRENCY = (1, 16, 64)
PREFIXES = 8
PREFIX_CHARS = 3000
BODIES = 512
_WORDS = (
    "water",
    "wheel",
    "river",
    "gate",
    "valve",
    "pressure",
    "canal",
    "engine",
    "power",
    "mill",
    "stone",
    "light",
    "north",
)


@contextmanager
def penstock(model: Path, *, embedded: bool = True, workers: int = 4) -> Iterator[System]:
    """Run penstock's graph of simulated workers behind the KV router, in the processor or a process of its own."""
    engine = Engine(str(model), {"timing": str(INSTANT), "max_model_len": 4096, "kv_blocks": 16384}, "sim")
    settings = [f"decode.replicas={workers}", "router.replicas=1", f"router.http_port={free_port()}"]
    settings.append(f"router.embedded={str(embedded).lower()}")
    with penstock_graph("graphs/agg_router_sim.yaml", engine, *settings) as server:
        pids = [process.pid for process in psutil.Process(server.pid).children(recursive=True)]
        engines = tuple(pid for pid in pids if "components.decode" in " ".join(psutil.Process(pid).cmdline()))
        yield System("penstock" if embedded else "penstock-apart", server.url, (server.pid,), engines)


SYSTEMS: dict[str, Callable[[Path], AbstractContextManager[System]]] = {
    "penstock": penstock,
    "penstock-apart": lambda model: penstock(model, embedded=False),
    "dynamo": peers.dynamo,
    "dynamo-joined": lambda model: peers.dynamo(model, joined=True),
    "vllm-router": peers.vllm_router,
    "sglang-router": peers.sglang_router,
    "production-stack": peers.production_stack,
}


def bodies(stream: bool) -> list[bytes]:
    """Return the requests, the same for every system."""
    rng = random.Random(7)
    beginnings = [" ".join(rng.choice(_WORDS) for _ in range(PREFIX_CHARS // 6)) for _ in range(PREFIXES)]
    asked = []
    for number in range(BODIES):
        said = [
            {"role": "system", "content": beginnings[number % PREFIXES]},
            {"role": "user", "content": f"Question {number}: {rng.choice(_WORDS)}?"},
        ]
        body: dict[str, Any] = {"model": "demo", "messages": said, "stream": stream}
        asked.append(json.dumps(body | {"max_tokens": OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True}).encode())
    return asked


def cpu_s(pids: tuple[int, ...]) -> float:
    """Return the CPU time of processes and all their descendants so far, in seconds."""
    total = 0.0
    for pid in pids:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
    return total


def measure(system: System, stream: bool, concurrency: int, seconds: float) -> dict[str, float]:
    """Load one system and return its figures."""
    before, workers_before = cpu_s(system.pids), cpu_s(system.workers)
    found: Load = uvloop.run(load(system.url, bodies(stream), concurrency, seconds))
    done = len(found.ttft_s)
    if not done:
        raise RuntimeError(f"{system.name} answered none of {found.failed} requests")
    cuts = statistics.quantiles(found.ttft_s, n=100) if done > 1 else found.ttft_s * 99
    return {
        "requests_per_s": found.rate,
        "ttft_p50_ms": cuts[49] * 1e3,
        "ttft_p99_ms": cuts[98] * 1e3,
        "cpu_ms": (cpu_s(system.pids) - before) * 1e3 / done,
        "worker_cpu_ms": (cpu_s(system.workers) - workers_before) * 1e3 / done,
        "failed": found.failed,
    }


def run(names: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Measure all that can be had, in turns; the order changes with each round."""
    cells: dict[str, dict[str, list[dict[str, float]]]] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        model = wide_model(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model")
        systems: dict[str, System] = {}
        for name in names:
            try:
                systems[name] = stack.enter_context(SYSTEMS[name](model))
            except (PeerError, RuntimeError) as error:
                if name == "penstock":
                    raise
                missing[name] = str(error)[:400]
        for system in systems.values():
            for stream in (True, False):
                measure(system, stream, 16, 1.0)
        for turn in range(rounds):
            for stream in (True, False):
                for concurrency in CONCURRENCY:
                    cell = f"{'stream' if stream else 'whole'} {concurrency}"
                    for name in list(systems)[:: 1 if turn % 2 else -1]:
                        figures = measure(systems[name], stream, concurrency, seconds)
                        cells.setdefault(cell, {}).setdefault(name, []).append(figures)
    versions = {name: PEERS[name].version() for name in names if name in PEERS}
    return {"cells": cells, "missing": missing, "versions": versions, "rounds": rounds, "seconds": seconds}


def tell(results: dict[str, Any]) -> None:
    """Print a table."""
    rows = []
    for cell, systems in results["cells"].items():
        for name, runs in systems.items():
            values = {key: [run[key] for run in runs] for key in runs[0]}
            rows.append(
                [
                    cell,
                    name,
                    spread(values["requests_per_s"], 0),
                    spread(values["ttft_p50_ms"]),
                    spread(values["ttft_p99_ms"]),
                    f"{statistics.median(values['cpu_ms']):.2f}",
                    f"{statistics.median(values['worker_cpu_ms']):.2f}",
                    f"{sum(values['failed']):.0f}",
                ]
            )
    columns = ["answers, at once", "system", "requests/s", "TTFT p50 ms", "p99 ms", "CPU ms", "of it workers", "failed"]
    show("Control plane, median (min to max, rounds)", columns, rows)
    for name, why in results["missing"].items():
        print(f"{name} was not measured: {why}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of load, for each cell of the table")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    names = asked.systems.split(",")
    if unknown := set(names) - set(SYSTEMS):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SYSTEMS)}")
    print(machine())
    results = run(names, asked.rounds, asked.seconds)
    tell(results)
    write_json(asked.json, results)


if __name__ == "__main__":
    main()
