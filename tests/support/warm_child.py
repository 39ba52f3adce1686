"""What the tests of the warm start run: ``python -m tests.support.warm_child WHAT …``."""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from components.engine.warm import WarmPool


def say(what: dict[str, Any]) -> None:
    """Write one line of JSON to standard output."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def sleep() -> None:
    """Stay until killed."""
    time.sleep(60)


def describe() -> dict[str, Any]:
    """Return what a test wants to know about this process."""
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgrp(),
        "argv": sys.argv[1:],
        "environment": dict(os.environ),
        "modules": sorted(sys.modules),
    }


def print_description() -> None:
    """Write it to standard output, as one line of JSON."""
    say(describe())


def with_inner(leave: bool) -> None:
    """Start an inner process as vLLM does, and stay, or leave without waiting for it."""
    os.environ["SET_BY_CHILD"] = "yes"
    context = multiprocessing.get_context("spawn")
    describing = context.Process(target=print_description)
    describing.start()
    describing.join()
    inner = context.Process(target=sleep)
    inner.start()
    say({"inner": inner.pid, "code": describing.exitcode})
    if leave:
        os._exit(0)
    sleep()


def supervise(log: str) -> None:
    """Be a supervisor with one child that has an inner process; say who there is, and stay."""
    pool = WarmPool(os.environ, vllm=False)
    child = pool.start("tests.support.warm_child", ["inner"], os.environ, Path(log))
    say({"child": child.pid, "server": pool._process.pid})
    asyncio.run(child.wait())


def main(what: str, *rest: str) -> None:
    """Do `what`."""
    match what:
        case "describe":
            print_description()
        case "sleep":
            sleep()
        case "inner":
            with_inner(leave=False)
        case "leave":
            with_inner(leave=True)
        case "exit":
            sys.exit(int(rest[0]))
        case "fail":
            raise RuntimeError("failed as told")
        case "signal":
            os.kill(os.getpid(), signal.Signals[rest[0]])
        case "supervise":
            supervise(*rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
