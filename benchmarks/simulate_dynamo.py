"""penstock's simulation against Dynamo's offline replay: the same traces and engine constants, each its own router.

    python -m benchmarks.simulate_dynamo TRACE@SPEED [TRACE@SPEED …] [--policy P …] [--workers N] [--json FILE]

Round-robin says whether the simulation is honest: it knows no router, so both sides should agree. kv says which router is
better. Dynamo's package goes into an environment of its own, `.venv-dynamo`, unless `--peer-python` names another.
Traces are Mooncake's: github.com/kvcache-ai/Mooncake, FAST25-release/traces.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from benchmarks.report import machine, show, write_json
from components.simulate.scenario import Scenario
from components.simulate.simulation import simulate
from components.simulate.trace import cut, read_trace

PEER = "ai-dynamo-runtime==1.6.1"
_COLUMNS = ["trace", "policy", "figure", "Dynamo", "penstock", "difference"]
_COMPARED = {
    "ttft_mean_ms": "TTFT mean, ms",
    "ttft_p99_ms": "TTFT p99, ms",
    "e2e_mean_ms": "E2E mean, ms",
    "output_tokens_per_s": "output tokens/s",
}
_TRIES = 3
"""Dynamo's router draws among equals from an unseeded generator: the lowest mean TTFT of so many runs counts."""


def main() -> None:
    """Replay on both sides, print, write."""
    options = _options()
    base = Scenario(timing="dynamo-mocker", workers=options.workers)
    runs: list[dict[str, Any]] = []
    with _peer(_installed(options.peer_python)) as (peer, version):
        for word in options.trace:
            path, _, speed = word.rpartition("@")
            requests = cut(read_trace(Path(path)), float(speed))
            for policy in options.policy:
                scenario = msgspec.structs.replace(base, policy=policy)
                task = {
                    "trace": str(Path(path).absolute()),
                    "speed": float(speed),
                    "policy": policy,
                    **{name: getattr(scenario, name) for name in ("workers", "block_size", "kv_blocks")},
                }
                tries = [_ask(peer, task) for _ in range(1 if policy == "round_robin" else _TRIES)]
                theirs = min(tries, key=lambda figures: figures["ttft_mean_ms"])
                ours = msgspec.to_builtins(simulate(requests, scenario).figures())
                runs.append(
                    {
                        "trace": f"{Path(path).stem} x {speed}",
                        "policy": policy,
                        "dynamo": theirs,
                        "penstock": ours,
                        "dynamo_tries": tries,
                    }
                )
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(machine(), f"Dynamo {version}")
    show(
        f"{options.workers} workers, Dynamo's mocker's constants on both sides",
        _COLUMNS,
        [row for run in runs for row in _rows(run)],
    )
    write_json(options.json, {"dynamo": version, "runs": runs})


def _rows(run: dict[str, Any]) -> list[list[str]]:
    dynamo, penstock = run["dynamo"], run["penstock"]
    rows = [
        [run["trace"], run["policy"], title, f"{dynamo[name]:,.0f}", f"{penstock[name]:,.0f}", _against(run, name)]
        for name, title in _COMPARED.items()
    ]
    reuse = [f"{side['reuse_ratio']:.3f}" for side in (dynamo, penstock)]
    return [*rows, [run["trace"], run["policy"], "prefix reuse", *reuse, ""]]


def _against(run: dict[str, Any], name: str) -> str:
    return f"{run['penstock'][name] / run['dynamo'][name] - 1:+.1%}"


def _installed(python: Path) -> Path:
    """Return the peer's Python, with the peer installed."""
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PEER], check=True, timeout=600)
    return python


@contextmanager
def _peer(python: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run the peer's side; yields it and its version."""
    script = Path(__file__).with_name("simulate_dynamo_peer.py")
    environment = {**os.environ, "DYN_LOG": "error"}
    with subprocess.Popen(
        [str(python), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process, _line(process)["version"]
        finally:
            _pipe(process.stdin).close()


def _ask(peer: "subprocess.Popen[str]", task: dict[str, Any]) -> Any:
    stdin = _pipe(peer.stdin)
    stdin.write(json.dumps(task) + "\n")
    stdin.flush()
    return _line(peer)


def _line(peer: "subprocess.Popen[str]") -> Any:
    line = _pipe(peer.stdout).readline()
    if not line:
        sys.exit("the peer's side ended; what it said is above")
    return json.loads(line)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise RuntimeError("no pipe")
    return pipe


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="+", metavar="TRACE@SPEED", help="a file in Mooncake's format, and how much faster")
    parser.add_argument("--policy", nargs="+", choices=("round_robin", "kv", "approximate"), default=["round_robin", "kv"])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-dynamo/bin/python"))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
