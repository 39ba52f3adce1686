"""penstock against vLLM's own server: same machine, same model, same flags, same client, taking turns.

    python -m benchmarks.serve [--only start|speed|memory] [--rounds N] [--json FILE] [--model FOLDER --engine JSON]

start: from the command to readiness, a graph of two workers against one vLLM server. speed: TTFT at concurrency 1 and output
tokens a second at concurrency 32, one worker each. memory: the processor, and a decode worker against a bare AsyncLLM.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.client import load, prompt
from benchmarks.report import machine, show, spread, write_json
from benchmarks.servers import QUIET, Engine, Server, demo_engine, penstock_graph, vllm_server

GRAPH = "graphs/agg.yaml"
MIB = 1024 * 1024


def start(engine: Engine, rounds: int) -> dict[str, Any]:
    """Time to readiness, taking turns; the first round of each warms the page cache and does not count."""
    seconds: dict[str, list[float]] = {"vllm server": [], "penstock, 2 workers": []}
    for turn in range(rounds + 1):
        for name, server in (
            ("vllm server", vllm_server(engine)),
            ("penstock, 2 workers", penstock_graph(GRAPH, engine)),
        ):
            with server as running:
                if turn:
                    seconds[name].append(running.start_s)
    show(
        "Start, seconds from the command to ready",
        ["", "median (min to max, runs)"],
        [[n, spread(v)] for n, v in seconds.items()],
    )
    return {"start_s": seconds}


def speed(engine: Engine, rounds: int) -> dict[str, Any]:
    """TTFT and throughput; both servers are up, the load alternates between them."""
    with vllm_server(engine) as vllm, penstock_graph(GRAPH, engine, "decode.replicas=1") as penstock:
        servers = [vllm, penstock]
        for server in servers:
            _drive(server, seed=1, requests=8, words=20, max_tokens=16, concurrency=8)
        ttft: dict[str, list[float]] = {server.name: [] for server in servers}
        itl: dict[str, list[float]] = {server.name: [] for server in servers}
        rate: dict[str, list[float]] = {server.name: [] for server in servers}
        for turn in range(rounds):
            for server in servers if turn % 2 else reversed(servers):
                answers, _ = _drive(server, seed=1000 + turn, requests=30, words=30, max_tokens=16, concurrency=1)
                ttft[server.name] += [answer.ttft_s * 1000 for answer in answers]
                itl[server.name] += [(a.total_s - a.ttft_s) * 1000 / (a.output_tokens - 1) for a in answers]
            for server in servers if turn % 2 else reversed(servers):
                answers, took = _drive(server, seed=2000 + turn, requests=192, words=10, max_tokens=64, concurrency=32)
                rate[server.name].append(sum(answer.output_tokens for answer in answers) / took)
    rows = [[n, _quartiles(ttft[n]), _quartiles(itl[n]), spread(rate[n], 0)] for n in ttft]
    columns = [
        "",
        "TTFT ms, concurrency 1: median (quartiles)",
        "ITL ms",
        "tokens/s, concurrency 32: median (min to max, rounds)",
    ]
    show("Speed, one worker each", columns, rows)
    added = statistics.median(ttft["penstock"]) - statistics.median(ttft["vllm"])
    ratio = statistics.median([p / v for p, v in zip(rate["penstock"], rate["vllm"], strict=True)])
    show(
        "penstock against vllm",
        ["added median TTFT, ms", "throughput ratio, median of rounds"],
        [[f"{added:+.2f}", f"{ratio:.3f}"]],
    )
    return {"ttft_ms": ttft, "itl_ms": itl, "tokens_per_s": rate, "added_ttft_ms": added, "throughput_ratio": ratio}


def memory(engine: Engine) -> dict[str, Any]:
    """Resident memory after some requests, in MiB."""
    found: dict[str, float] = {}
    with penstock_graph(GRAPH, engine, "decode.replicas=1") as penstock:
        _drive(penstock, seed=1, requests=64, words=20, max_tokens=16, concurrency=8)
        for row in _processes(penstock):
            if row["component"] in ("processor", "decode"):
                found[row["component"]] = psutil.Process(row["pid"]).memory_info().rss / MIB
    found["bare AsyncLLM"] = _bare_async_llm(engine.model)
    show("Resident memory, MiB", ["process", "RSS"], [[n, f"{v:.0f}"] for n, v in found.items()])
    return {"rss_mib": found}


def _drive(server: Server, seed: int, requests: int, words: int, max_tokens: int, concurrency: int) -> Any:
    prompts = [prompt(seed * 100_000 + i, words) for i in range(requests)]
    return uvloop.run(load(server.url, prompts, max_tokens, concurrency))


def _processes(server: Server) -> list[dict[str, Any]]:
    """Return what `penstock ps` knows of a graph's processes; a worker's pid is its own, without its engine's processes."""
    argv = [sys.executable, "-m", "components.launch", "ps", "--json"]
    out = subprocess.run(
        argv, env={**os.environ, "PENSTOCK_STATE_DIR": server.state}, capture_output=True, text=True, check=True
    )
    return [row for graph in json.loads(out.stdout) for row in graph["processes"]]


def _bare_async_llm(model: str) -> float:
    """RSS in MiB of a process that does nothing but serve a few requests through AsyncLLM."""
    argv = [sys.executable, "-m", "benchmarks.bare_async_llm", model]
    out = subprocess.run(argv, env={**os.environ, **QUIET}, capture_output=True, text=True, check=True)
    return float(out.stdout.split("RSS")[-1].split()[0]) / MIB  # vLLM may say more after it


def _quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["start", "speed", "memory"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", help="a model folder; default: the demo model")
    parser.add_argument("--engine", type=json.loads, default={}, help="vLLM engine arguments, a JSON map; with --model")
    arguments = parser.parse_args()
    engine = Engine(arguments.model, arguments.engine) if arguments.model else demo_engine()
    print(machine(), engine)
    results: dict[str, Any] = {}
    if arguments.only in (None, "start"):
        results |= start(engine, min(arguments.rounds, 3))
    if arguments.only in (None, "speed"):
        results |= speed(engine, arguments.rounds)
    if arguments.only in (None, "memory"):
        results |= memory(engine)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
