"""``penstock bench``: hands over to the benchmarks of the checkout penstock runs from, if it runs from one."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

import components
from components.launch.target import fail


def checkout() -> Path | None:
    """Return the checkout whose code this is; None when penstock is installed without its repository."""
    root = Path(components.__file__).parent.parent
    return root if (root / "benchmarks" / "bench.py").exists() else None


def bench(context: typer.Context) -> NoReturn:
    """Measure penstock against its peers and its goals, in a checkout of its repository; --list says what there is."""
    root = checkout()
    if root is None:
        fail("penstock bench needs a checkout of penstock's repository; this is an installed package without benchmarks/")
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    # -P: a folder named `benchmarks` where the caller happens to stand must not shadow ours.
    argv = [sys.executable, "-P", "-m", "benchmarks.bench", *context.args]
    os.execve(sys.executable, argv, {**os.environ, "PYTHONPATH": path})  # noqa: S606 this very interpreter
