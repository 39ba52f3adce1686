"""On one GPU: how long an engine on demand takes, phase by phase, against vLLM's own server, with caches cold and warm.

    PYTHONPATH=. python -m benchmarks.engines_gpu --out engines_gpu.json --limit-s 200

All in one run, in the order of `STEPS`, on an 8B-shaped Llama with random weights; ``--only eager`` or ``--only graphs``
takes a part of them. The caches of vLLM, Inductor and Triton are in a new folder, so the first engine finds them empty, and
a cold server finds what the engines before it have compiled; ``--home FOLDER`` keeps them for another run. A step that may
not end within the limit is left out and named; what was measured is written after every step. ``--stacks`` says what the
processes did during the step that is looked at. Without a GPU it tries itself out on the demo model.
"""

import argparse
import json
import os
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import model_8b, stacks
from benchmarks.engines import Pool, cold, controller
from benchmarks.report import machine, nvidia_smi, show, write_json
from benchmarks.servers import demo_engine
from components.engine.devices import vllm_on_cpu
from components.engine.vllm_args import ENVIRONMENT

_LONGEST_S = 100.0  # a creation that hangs shall not take the time of the others
_TELLING = re.compile(r"\b(took|takes|seconds|secs?|compil\w*|cache|GiB)\b", re.IGNORECASE)
_ON_GPU = {"load_format": "dummy", "dtype": "bfloat16", "max_model_len": 8192, "gpu_memory_utilization": 0.85}

EAGER: dict[str, Any] = {"enforce_eager": True}
GRAPHS: dict[str, Any] = {"enforce_eager": False}
FEW_GRAPHS: dict[str, Any] = {**GRAPHS, "max_cudagraph_capture_size": 32}
SLEEPY: dict[str, Any] = {**EAGER, "enable_sleep_mode": True}

STEPS: tuple[tuple[str, str, dict[str, Any], float], ...] = (
    ("eager, first on the host", "create", EAGER, 45),
    *(
        step
        for turn in "123"
        for step in (
            (f"vLLM's server, eager, again/{turn}", "cold", EAGER, 40),
            (f"eager, again/{turn}", "create", EAGER, 15),
        )
    ),
    ("eager, again/4", "create", EAGER, 15),
    ("eager, asleep and awake", "sleep", SLEEPY, 40),
    ("eager, looked at", "look", EAGER, 15),
    ("graphs, first", "create", GRAPHS, 60),
    *(
        step
        for turn in "12"
        for step in (
            (f"vLLM's server, graphs, same caches/{turn}", "cold", GRAPHS, 50),
            (f"graphs, again/{turn}", "create", GRAPHS, 40),
        )
    ),
    ("few graphs, first", "create", FEW_GRAPHS, 45),
    ("few graphs, again", "create", FEW_GRAPHS, 25),
)
"""Name, kind, arguments, and for how many seconds at most a step is expected to take; the number after a slash is a turn."""


class Run:
    """One run.

    Args:
        pool: a controller's.
        folder: what `stacks` keeps; None when nobody looks.
        logs: of the controller's processes.
    """

    def __init__(self, pool: Pool, model: str, arguments: dict[str, Any], logs: Path, folder: Path | None) -> None:
        self._pool, self._model, self._arguments, self._logs, self._folder = pool, model, arguments, logs, folder

    def create(self, arguments: dict[str, Any], *, look: bool = False) -> dict[str, Any]:
        """Create an engine, ask it, delete it; returns seconds by phase, and what its rank holds before and after."""
        before = self._pool.free_rank()
        log_bytes = {file: file.stat().st_size for file in self._logs.glob("*.log")}
        with stacks.watched(self._folder) if look and self._folder else nullcontext() as seen:
            phases = self._pool.create(self._model, {**self._arguments, **arguments})
        loaded = used_gib()
        delete_s = self._pool.delete()
        began = time.perf_counter()
        after = self._pool.free_rank()
        return {
            "phases": phases,
            "total": phases["total"],
            "delete_s": delete_s,
            "free_again_s": delete_s + time.perf_counter() - began,
            "same_process": before["pid"] == after["pid"],
            "memory_gib": [round(rank["memory_bytes"] / 2**30, 3) for rank in (before, after)],
            "gpu_used_gib": {"with the engine": loaded, "after": used_gib()},
            "log": list(self._telling(log_bytes)),
            **({"functions_s": seen} if seen else {}),
        }

    def look(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do as `create`, and say what the processes did meanwhile, if anybody wants to know."""
        return self.create(arguments, look=True)

    def sleep(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Create an engine, have it sleep and wake; returns seconds, and the GPU's memory in use."""
        phases = self._pool.create(self._model, {**self._arguments, **arguments})
        result: dict[str, Any] = {"total": phases["total"], "gpu_used_gib": [used_gib()], "sleep_s": [], "wake_s": []}
        for level in (1, 1):
            began = time.perf_counter()
            self._pool.call("POST", "/engines/bench/sleep", {"level": level})
            result["sleep_s"].append(time.perf_counter() - began)
            result["gpu_used_gib"].append(used_gib())
            began = time.perf_counter()
            self._pool.call("POST", "/engines/bench/wake_up")
            result["wake_s"].append(time.perf_counter() - began)
            result["gpu_used_gib"].append(used_gib())
        self._pool.delete()
        return result

    def cold(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Start vLLM's own server, ask it, end it; returns seconds by phase."""
        self._pool.free_rank()
        phases = cold(self._model, {**self._arguments, **arguments})
        return {"phases": phases, "total": phases["total"]}

    def clear(self) -> None:
        """Delete the engine that a failed step may have left."""
        with suppress(RuntimeError, OSError):
            self._pool.delete()

    def _telling(self, log_bytes: dict[Path, int]) -> Any:
        """Yield the lines about times and caches that were logged meanwhile."""
        for file in sorted(self._logs.glob("*.log")):
            for line in file.read_text(errors="replace")[log_bytes.get(file, 0) :].splitlines():
                if _TELLING.search(line):
                    yield f"{file.stem}: {line[-300:]}"


def measure(run: Run, only: str, results: dict[str, Any], deadline_s: float, keep: Callable[[], None]) -> None:
    """Take the steps whose names `only` matches that fit until `deadline_s`, and call `keep` after each."""
    for name, kind, arguments, expected_s in (step for step in STEPS if re.search(only, step[0])):
        left_s = deadline_s - time.perf_counter()
        if expected_s > left_s:
            results["left_out"].append(f"{name}: {left_s:.0f} s were left, it may take {expected_s:.0f}")
            continue
        try:
            results["steps"][name] = getattr(run, kind)(arguments)
        except (RuntimeError, OSError) as error:
            results["steps"][name] = {"error": str(error)[-2000:]}
            run.clear()
        print(name, json.dumps({key: value for key, value in results["steps"][name].items() if key not in _LONG}))
        keep()


_LONG = ("log", "functions_s")


def tell(results: dict[str, Any]) -> None:
    """Print a table of phases."""
    steps = {name: step for name, step in results["steps"].items() if "phases" in step}
    phases = list(dict.fromkeys(phase for step in steps.values() for phase in step["phases"]))
    rows = [[phase, *(_cell(step["phases"].get(phase)) for step in steps.values())] for phase in phases]
    show("seconds until the first token", ["phase", *steps], rows)
    show("medians of turns", ["step", "seconds"], [[name, f"{median:.2f}"] for name, median in medians(results).items()])
    for line in results["left_out"]:
        print("left out:", line)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def medians(results: dict[str, Any]) -> dict[str, float]:
    """Return the median of each step's turns, in seconds until the first token."""
    turns: dict[str, list[float]] = {}
    for name, step in results["steps"].items():
        if "total" in step:
            turns.setdefault(name.split("/")[0], []).append(step["total"])
    return {name: round(statistics.median(totals), 2) for name, totals in turns.items()}


def used_gib() -> float | None:
    """Return what is in use of the first visible GPU's memory."""
    lines = nvidia_smi("memory.used")
    first = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
    return round(float(lines[int(first)]) / 1024, 3) if lines and first.isdecimal() else None


def _stop(*_: object) -> NoReturn:
    raise SystemExit("time is up; what was measured is written")


def main() -> None:
    """Measure, print, write."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON, written anew after every step")
    parser.add_argument("--limit-s", type=float, default=200.0, help="seconds that all may take")
    parser.add_argument("--home", type=Path, help="where caches are; default: a new folder")
    parser.add_argument("--engine", type=json.loads, help="vLLM engine arguments instead of the usual, a JSON map")
    parser.add_argument("--only", default="", help="a regular expression that the names of the steps to take match")
    parser.add_argument("--stacks", action="store_true", help="say what the processes did, function by function")
    asked = parser.parse_args()
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(int(asked.limit_s))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, arguments = str(folder / "model"), asked.engine or _ON_GPU
        if vllm_on_cpu():
            model, arguments = demo_engine().model, {**demo_engine().arguments, "kv_cache_memory_bytes": 2**28}
        else:
            model_8b.write(Path(model))
        home = asked.home or folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        # vLLM files what it compiles by its variables, too.
        os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = ENVIRONMENT["VLLM_USE_FLASHINFER_SAMPLER"]
        os.environ.update({"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")})
        names = ("cutlass", "quack", "flashinfer", "deep_gemm", "triton")
        results: dict[str, Any] = {
            "model": model,
            "arguments": arguments,
            "installed": {name: find_spec(name) is not None for name in names},
            "steps": {},
            "left_out": [],
        }
        print(machine(), arguments, results["installed"])
        state = folder / "state"
        extra = stacks.variables(folder / "stacks") if asked.stacks else {}
        with controller(PENSTOCK_STATE_DIR=str(state), VLLM_LOGGING_LEVEL="INFO", **extra) as (pool, ready_s):
            results["pool_ready_s"] = ready_s
            pool.timeout_s = _LONGEST_S
            logs = next(state.glob("controller-*/logs"))
            run = Run(pool, model, arguments, logs, folder / "stacks" if asked.stacks else None)
            measure(run, asked.only, results, began + asked.limit_s - 10, lambda: write_json(asked.out, results))
    results["medians"] = medians(results)
    tell(results)
    write_json(asked.out, results)


if __name__ == "__main__":
    main()
