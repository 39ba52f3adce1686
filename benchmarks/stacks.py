"""Where processes that are forked from others spend their time: their main threads' stacks, looked at ten times a second.

Works for every Python process that starts with `variables` in its environment, its forks included; needs no privileges.
"""

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PERIOD_S = 0.1
_SITE = """
import faulthandler, os, signal

def _watch():
    if folder := os.environ.get("BENCHMARK_STACKS"):
        faulthandler.register(signal.SIGUSR2, file=open(f"{folder}/{os.getpid()}", "a"))

_watch()
os.register_at_fork(after_in_child=_watch)
"""
_FRAME = re.compile(r'^  File "(.*)", line \d+ in (.*)$', re.MULTILINE)


def variables(folder: Path) -> dict[str, str]:
    """Return what processes need in their environment, to be looked at; `folder` keeps what is seen."""
    (folder / "site").mkdir(parents=True, exist_ok=True)
    (folder / "seen").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "BENCHMARK_STACKS": str(folder / "seen")}


@contextmanager
def watched(folder: Path) -> Iterator[dict[str, dict[str, float]]]:
    """Look at all such processes; afterwards, what is yielded holds seconds by process and function, the most first."""
    found: dict[str, dict[str, float]] = {}
    seen, over = folder / "seen", threading.Event()
    began = {file.name: file.stat().st_size for file in seen.iterdir()}
    looking = threading.Thread(target=_look, args=[seen, over])
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()
        for file in seen.iterdir():
            if functions := _functions(file.read_text(errors="replace")[began.get(file.name, 0) :]):
                found[file.name] = functions


def _look(seen: Path, over: threading.Event) -> None:
    while not over.is_set():
        for file in seen.iterdir():
            try:
                if b"\0" in Path(f"/proc/{file.name}/cmdline").read_bytes():
                    os.kill(int(file.name), signal.SIGUSR2)
            except OSError:
                continue
        time.sleep(_PERIOD_S)


def _functions(text: str, most: int = 60) -> dict[str, float]:
    """Return how long each function was on the stack of the process's first thread, the last one dumped."""
    seconds: Counter[str] = Counter()
    threads = re.findall(r"^(?:Current thread|Thread) (0x\w+)[^\n]*\n((?:  .*\n)*)", text, flags=re.MULTILINE)
    for thread, frames in threads:
        if thread == threads[-1][0]:
            seconds.update({f"{'/'.join(Path(file).parts[-3:])}:{name}" for file, name in _FRAME.findall(frames)})
    return {name: round(count * _PERIOD_S, 2) for name, count in seconds.most_common(most)}
