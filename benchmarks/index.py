"""penstock's KV index and block hash against Dynamo's RadixTree: same work, same machine, taking turns. And ours alone.

    python -m benchmarks.index [--peer-python PYTHON] [--rounds N] [--only index|decision|speed|memory] [--json FILE]

The peer gets an environment of its own, without which only our side is measured:
``python3 -m venv .venv-dynamo && .venv-dynamo/bin/pip install ai-dynamo-runtime==1.6.1``.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.index_load import measure
from benchmarks.report import machine, show, spread, write_json
from components.router.chooser import Chooser
from components.router.cost import CostSettings, Prompt
from components.router.kv_index import KvIndex
from components.router.policies import make_policy
from components.router.policies.policy import PolicySettings
from components.wire.block_hash import block_hashes, root_hash
from components.wire.process import WorkerStatus

TASKS: list[dict[str, Any]] = [
    *({"do": "ingest", "workers": 8, "blocks": blocks, "event_blocks": 64} for blocks in (131_072, 1_048_576)),
    *({"do": "ingest", "workers": 8, "blocks": 131_072, "event_blocks": size} for size in (16, 1)),
    {"do": "hash", "tokens": 8192, "block_size": 32},
    *(
        task
        for workers in (8, 256)
        for task in (
            {"do": "populate", "workers": workers},
            *(
                {"do": "lookup", "workers": workers, "size": size, "kind": kind}
                for size in (64, 512, 4096)
                for kind in ("one", "all", "half", "ends", "miss")
            ),
        )
    ),
]


class Penstock:
    """Our side of the index's measurement."""

    def fresh(self) -> None:
        """Start with an empty index."""
        self._index = KvIndex()

    def event(self, worker: int, parent: int | None, blocks: list[int]) -> tuple[str, list[int], int | None]:
        """Return the arguments of `stored`."""
        return str(worker), blocks, parent

    def apply(self, event: tuple[str, list[int], int | None]) -> None:
        """Take one event."""
        self._index.stored(*event)

    def settle(self) -> None:
        """Events are visible at once."""

    def find(self, blocks: list[int]) -> dict[str, int]:
        """Look a prompt up."""
        return self._index.overlap(blocks)

    def lengths(self, found: dict[str, int]) -> dict[int, int]:
        """Return worker to blocks."""
        return {int(worker): length for worker, length in found.items()}

    def hash(self, token_ids: list[int], block_size: int) -> list[int]:
        """Hash a prompt's blocks, chained."""
        return block_hashes(token_ids, block_size, root_hash("model"))


@contextmanager
def peer(python: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the peer's side; its first line is its version."""
    command = [str(python), "-m", "benchmarks.index_dynamo"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def ask(process: subprocess.Popen[str], task: dict[str, Any]) -> dict[str, float]:
    """Let the peer do one task."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


def index(rounds: int, python: Path) -> dict[str, Any]:
    """Every task on both sides, task by task in turns."""
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    versions = ""
    for _ in range(rounds):
        ours = Penstock()
        if not python.exists():
            for task in TASKS:
                _keep(results, task, "penstock", measure(ours, task))
            continue
        with peer(python) as process:
            assert process.stdout
            versions = json.loads(process.stdout.readline())["version"]
            for task in TASKS:
                _keep(results, task, "penstock", measure(ours, task))
                _keep(results, task, "dynamo", ask(process, task))
    rows = []
    for name, sides in results.items():
        unit = next(iter(sides["penstock"][0]))
        mine, theirs = ([each[unit] for each in sides.get(side, [])] for side in ("penstock", "dynamo"))
        ratio = statistics.median(theirs) / statistics.median(mine) if theirs else 0
        times = f"{1 / ratio if unit == 'mblocks_per_s' and ratio else ratio:.1f}" if theirs else "-"
        rows.append([name, unit, spread(mine), spread(theirs), times])
    show("median (min to max, runs)", ["task", "unit", "penstock", f"ai-dynamo-runtime {versions}", "times better"], rows)
    return {"dynamo": versions, "tasks": results}


def _keep(results: dict[str, Any], task: dict[str, Any], side: str, figures: dict[str, float]) -> None:
    if figures:
        name = " ".join(str(value) if key in ("do", "kind") else f"{key}={value}" for key, value in task.items())
        results.setdefault(name, {}).setdefault(side, []).append(figures)


def decision(rounds: int, python: Path) -> dict[str, Any]:
    """Microseconds a choice: overlap, recent choices, cost of every worker, booking. In process, on both sides.

    Dynamo's side is `SelectionService` with an empty index, which is the better case for it; it hashes the tokens itself.
    """
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    with peer(python) if python.exists() else nullcontext() as process:
        if process and process.stdout:
            process.stdout.readline()
        for workers in (8, 64, 256):
            for size in (64, 512, 4096):
                for _ in range(rounds):
                    seconds = sorted(_decisions(workers, size))
                    ours = {"p50_us": statistics.median(seconds) * 1e6, "p99_us": seconds[int(len(seconds) * 0.99)] * 1e6}
                    sides = {"penstock": ours}
                    if process and workers == 8:
                        sides["dynamo"] = ask(process, {"do": "select", "workers": workers, "tokens": size * 32})
                    for side, figures in sides.items():
                        kept = results.setdefault(f"{workers} workers, {size} blocks", {}).setdefault(side, {})
                        for name, value in figures.items():
                            kept.setdefault(name, []).append(value)
    rows = [
        [name, side, spread(figures["p50_us"]), spread(figures["p99_us"])]
        for name, sides in results.items()
        for side, figures in sides.items()
    ]
    show("A decision in process, median (min to max, runs)", ["", "side", "p50 us", "p99 us"], rows)
    return results


def _decisions(workers: int, size: int, count: int = 1500) -> list[float]:
    """Return how long each of `count` choices took, in seconds; 3/4 of each prompt is cached, 16 requests run at a time."""
    rng = random.Random(size)
    chooser = Chooser(make_policy("kv", PolicySettings(), rng), 32, CostSettings())
    for worker in range(workers):
        chooser.fleet.update(f"decode-{worker}", "1", WorkerStatus("model", 65536, 32, 16384), 0.0)
    prompts = [[rng.getrandbits(60) for _ in range(size)] for _ in range(32)]
    for number, blocks in enumerate(prompts):
        chooser.device.stored(f"decode-{number % workers}", blocks[: size * 3 // 4])
    seconds = []
    for number in range(count):
        now_s = 1.0 + number / 300
        prompt = Prompt(prompts[number % 32], size * 32 + 7)
        began = time.perf_counter()
        chooser.choose(f"r{number}", prompt, now_s, now_s + 600)
        seconds.append(time.perf_counter() - began)
        chooser.fleet.first_token(f"r{number - 8}", now_s)
        chooser.fleet.finish(f"r{number - 16}")
    return seconds


def memory() -> dict[str, Any]:
    """Bytes of resident memory a block with one holder, each size in a process of its own."""
    results = {}
    for count in (100_000, 1_000_000, 1_400_000, 10_000_000):
        command = [sys.executable, "-m", "benchmarks.index", "--grow", str(count)]
        results[count] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = [[f"{count:,}", *(f"{value:.1f}" for value in figures.values())] for count, figures in results.items()]
    show("Memory, 8 workers, 64 blocks an event", ["blocks", *next(iter(results.values()))], rows)
    return {str(count): figures for count, figures in results.items()}


def grow(count: int) -> dict[str, float]:
    """Fill an index, then replace as many blocks as it holds; return bytes of memory a block."""
    rng, index = random.Random(7), KvIndex()
    held: list[tuple[str, list[int]]] = []
    empty, longest_s = _resident_bytes(), 0.0
    for number in range(count // 64):
        worker, blocks = f"decode-{number * 8 // (count // 64)}", [rng.getrandbits(60) for _ in range(64)]
        began = time.perf_counter()
        index.stored(worker, blocks)
        longest_s = max(longest_s, time.perf_counter() - began)
        held.append((worker, blocks))
    full = _resident_bytes() - sum(map(sys.getsizeof, (blocks for _, blocks in held))) - sys.getsizeof(held)
    said = index.stats().size_bytes
    for _ in range(count // 64):
        at = rng.randrange(len(held))
        worker, old = held[at]
        index.removed(worker, old[::-1], [*old[-2::-1], None])
        held[at] = worker, [rng.getrandbits(60) for _ in range(64)]
        index.stored(*held[at])
    return {
        "resident bytes a block": (full - empty) / count,
        "by its own count": said / count,
        "by its own count after turnover": index.stats().size_bytes / count,
        "longest pause ms": longest_s * 1e3,
    }


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-dynamo/bin/python"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("index", "decision", "speed", "memory"), help="speed: index and decision")
    parser.add_argument("--grow", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.grow:
        print(json.dumps(grow(arguments.grow)))
        return
    print(machine())
    results: dict[str, Any] = {}
    if arguments.only in (None, "index", "speed"):
        results["index"] = index(arguments.rounds, arguments.peer_python)
    if arguments.only in (None, "decision", "speed"):
        results["decision"] = decision(arguments.rounds, arguments.peer_python)
    if arguments.only in (None, "memory"):
        results["memory"] = memory()
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
