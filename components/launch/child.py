"""Starting and ending child processes, so that none outlives its supervisor.

A fresh child is a new program in its own process group, which the kernel kills when the supervisor's thread ends. A warm
child is forked by `components.engine.warm`. Both look the same from outside: `Child`. Knows nothing of graphs.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Child(Protocol):
    """A running process, leader of its own process group."""

    @property
    def pid(self) -> int:
        """Its process id, which is its group's id too."""
        ...

    async def wait(self) -> int:
        """Return its exit code once it is gone; negative for a signal."""
        ...


async def start_fresh(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
    """Start a new program whose output goes to the end of `log`. Call on the main thread: the child dies with the caller's.

    Raises:
        OSError: the program cannot be run.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # the terminal's Ctrl-C is for the supervisor; one session, see docs/adr/0005
            preexec_fn=die_with_parent,
        )


def terminate(child: Child) -> None:
    """Ask the process itself, not its inner processes, to finish what it has and end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGTERM)


def kill_group(pid: int) -> None:
    """End the process and all inner processes it left, now."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def last_line(log: Path) -> str:
    """Return the last line of `log` that says something, at most 300 characters."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            tail = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
