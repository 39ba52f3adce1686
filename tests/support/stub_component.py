"""A component without work: it joins its graph for real and then behaves, or misbehaves, as the variable STUB says."""

import asyncio
import os
import signal
import sys

from components.bus.member import Nothing
from components.bus.process import FatalError, Process, run
from components.wire.process import ProcessState, WorkerStatus

READY_S = float(os.environ.get("STUB_READY_S", "0"))


async def serve(process: Process) -> None:
    """Behave as STUB says; by default: be ready and wait to be stopped."""
    behaviour = os.environ.get("STUB", "good")
    member = process.member
    member.become(ProcessState.STARTING, "pretending to load")
    await asyncio.sleep(READY_S)
    if behaviour == "refuses":
        raise FatalError("the stub refuses to start")
    if behaviour == "never ready":
        await member.stopping.wait()
        return
    if behaviour == "leaves a child":
        await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)", start_new_session=True)
    if behaviour == "has a bug":
        await process.bus.subscribe("bug", Nothing, _buggy)
        await process.bus.flush()
    member.become(ProcessState.READY)
    member.offer(lambda: WorkerStatus("demo", 4096, 32, 100))
    if behaviour == "crashes":
        await asyncio.sleep(0.2)
        raise FatalError("the stub crashes")
    if behaviour == "freezes":
        await asyncio.sleep(0.2)
        os.kill(os.getpid(), signal.SIGSTOP)
    await member.stopping.wait()
    if behaviour == "deaf":
        await asyncio.sleep(600)


async def _buggy(_: Nothing) -> None:
    raise IndexError("secret")


if __name__ == "__main__":
    sys.exit(run("stub", serve))
