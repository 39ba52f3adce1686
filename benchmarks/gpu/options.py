"""What the scripts for all machine sizes are told on the command line."""

import argparse
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.host import Host, this_host
from components.model.demo import demo_model


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all scripts have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", type=Path, help="a model folder, `python -m benchmarks.model_8b` makes one; default: demo")
    made.add_argument("--engine", type=json.loads, default={}, help="further vLLM engine arguments, a JSON map")
    made.add_argument("--kv-gib", type=float, help="memory for KV of each engine on a GPU; default: what suits a H200")
    made.add_argument(
        "--minutes", type=float, default=3.0, help="pieces that do not fit are left out, from the end of the list"
    )
    made.add_argument("--start-s", type=float, default=240.0, help="longest wait for all engines to be ready")
    made.add_argument("--only", default="", help="only pieces whose name begins so")
    made.add_argument("--out", type=Path, help="a folder: results.json, and the logs of what failed")
    return made


def host(options: argparse.Namespace, gpus: int, kv_gib: float) -> Host:
    """Return the machine; see `this_host`."""
    return this_host(options.model or demo_model(), gpus, options.kv_gib or kv_gib, options.engine)


def results_file(options: argparse.Namespace) -> Path | None:
    """Return where the results go."""
    if options.out is None:
        return None
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "results.json"


@contextmanager
def log_folder(options: argparse.Namespace) -> Iterator[Path]:
    """Yield a folder for logs and state, gone at the end; the ends of the programs' logs are kept under ``--out``."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cut ends what was started, as Ctrl-C does
    folder = Path(tempfile.mkdtemp(prefix="gpu-", dir=os.environ.get("TMPDIR", "/tmp")))
    try:
        yield folder
    finally:
        if options.out is not None:
            tails = [f"==> {log.name}\n{_tail(log)}" for log in sorted(folder.rglob("*.log"))]
            (options.out / "logs.txt").write_text("\n".join(tails))
        shutil.rmtree(folder, ignore_errors=True)


def facts(options: argparse.Namespace, machine: Host, **more: Any) -> dict[str, Any]:
    """Return what a reader of the results needs to know of the run."""
    return {
        "gpus": len(machine.gpus),
        "model": str(machine.model),
        "engine": machine.engine,
        "minutes": options.minutes,
        **more,
    }


def _tail(log: Path, most: int = 20_000) -> str:
    return log.read_text(errors="replace")[-most:]
