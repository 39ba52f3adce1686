"""Programs that are started, waited for and stopped. Knows none of them."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.servers import QUIET

_READY = "is ready after"
_GONE_S = 3.0


@dataclass(frozen=True)
class Command:
    """How one program is started, and when it is ready.

    Attributes:
        name: for its log and for errors.
        argv: the command line.
        url: base URL of what it serves.
        ready_path: says 200 when it is ready; empty: its output says so.
        environment: variables beside this process's own.
        metrics_url: base URL of its metrics, where they are elsewhere.
    """

    name: str
    argv: Sequence[str]
    url: str
    ready_path: str
    environment: dict[str, str] = field(default_factory=dict)
    metrics_url: str = ""


class Running:
    """One started program."""

    def __init__(self, command: Command, logs: Path) -> None:
        self.command = command
        self._log = logs / f"{command.name}.log"
        self._began = time.monotonic()
        self.ready_s = 0.0
        with self._log.open("wb") as out:
            environment = {**os.environ, **QUIET, **command.environment}
            self._process = subprocess.Popen(command.argv, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def said(self) -> str:
        """Return the end of its output."""
        return self._log.read_text(errors="replace")[-3000:]

    def is_ready(self) -> bool:
        """Look whether it is ready.

        Raises:
            RuntimeError: it has ended.
        """
        if self.ready_s:
            return True
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.command.name} ended with {self._process.returncode}: {self.said()}")
        command = self.command
        if _says_200(command.url + command.ready_path) if command.ready_path else _READY in self.said():
            self.ready_s = time.monotonic() - self._began
        return bool(self.ready_s)

    def ask_to_stop(self) -> None:
        """Tell it to end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, grace_s: float = 10.0) -> None:
        """End it, and kill it after `grace_s`; what it has started and left behind is killed at once."""
        family = self.family()
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(family, _GONE_S)

    def family(self) -> list[psutil.Process]:
        """Return its process and all that it has started, as long as they live."""
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextmanager
def started(commands: Sequence[Command], logs: Path, limit_s: float) -> Iterator[list[Running]]:
    """Start `commands` at once and wait until all are ready; stop them at the end.

    Raises:
        RuntimeError: one has ended.
        TimeoutError: one is not ready after `limit_s`.
    """
    runnings: list[Running] = []
    try:
        for command in commands:
            runnings += [Running(command, logs)]  # one by one: what is started is stopped, even if the next cannot start
        await_ready(runnings, limit_s)
        yield runnings
    finally:
        stop_all(runnings)


def stop_all(runnings: Sequence[Running]) -> None:
    """End all, together."""
    with ThreadPoolExecutor(max(len(runnings), 1)) as threads:
        list(threads.map(Running.stop, runnings))


def await_ready(runnings: Sequence[Running], limit_s: float) -> None:
    """Wait until all are ready; errors as of `started`."""
    end = time.monotonic() + limit_s
    while late := [running for running in runnings if not running.is_ready()]:
        if time.monotonic() > end:
            raise TimeoutError(f"{late[0].command.name} is not ready after {limit_s:.0f} s: {late[0].said()}")
        time.sleep(0.05)


def _says_200(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
