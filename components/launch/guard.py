"""The process that outlives the supervisor: when its supervisor is gone, it kills every process the graph left behind.

The kernel ends direct children of a killed supervisor (see `child`); this catches the rest: forked warm children and vLLM's
inner processes. Every process of one run carries the same PENSTOCK_RUN in its environment, however deeply forked.
"""

import contextlib
import signal
import sys
import time

import psutil

RUN_VARIABLE = "PENSTOCK_RUN"


def sweep(run: str, wait_s: float = 5.0) -> int:
    """Kill all processes of the run named `run` until none is left, and return how many there were."""
    killed: set[int] = set()
    deadline = time.monotonic() + wait_s
    while (found := processes_of(run)) and time.monotonic() < deadline:
        for process in found:
            killed.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
    return len(killed)


def processes_of(run: str) -> list[psutil.Process]:
    """Return the living processes of the run named `run`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(RUN_VARIABLE) == run and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def main() -> None:
    """Wait until standard input, held open by the supervisor, ends; then sweep the run named by the argument."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    sys.stdin.read()
    sweep(sys.argv[1])


if __name__ == "__main__":
    main()
