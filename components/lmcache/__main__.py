"""An LMCache process: starts the server, tells that it lives, shows its metrics, and ends when it is dead or silent.

Whoever started this process starts it again; engines compute what they cannot load meanwhile.
"""

import sys
from collections.abc import Callable

from components.bus.process import FatalError, Process, run, unless
from components.engine.make import make_cache_server
from components.engine.protocol import CacheServer, EngineStartError
from components.lmcache.reporting import reporting
from components.wire.process import ProcessState


async def serve(process: Process) -> None:
    """Run one LMCache server until the process is told to stop.

    Raises:
        FatalError: it cannot start, died, or fell silent.
    """
    async with reporting(process) as report_to:
        await watch(process, lambda: make_cache_server(process.graph, process.member.name, report_to))


async def watch(process: Process, make: Callable[[], CacheServer]) -> None:
    """Run what `make` makes until the process is told to stop.

    Raises:
        FatalError: it cannot start, died, or fell silent.
    """
    member = process.member
    try:
        server = make()
    except EngineStartError as error:
        raise FatalError(str(error)) from error
    try:
        starting = server.start(lambda detail: member.become(ProcessState.STARTING, detail))
        version = await unless(member.stopping, starting)
        if version is None:
            return
        member.expose(server.metrics)
        member.become(ProcessState.READY, version)
        reason = await unless(member.stopping, server.failed())
        if reason is not None:
            raise FatalError(reason)
    except* EngineStartError as group:
        raise FatalError(str(group.exceptions[0])) from group
    finally:
        await server.stop()


if __name__ == "__main__":
    sys.exit(run("lmcache", serve))
