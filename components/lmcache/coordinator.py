"""A process around LMCache's coordinator, which knows what the LMCache servers hold; the cache controller asks it."""

import sys

from components.bus.process import Process, run
from components.engine.make import make_coordinator
from components.lmcache.__main__ import watch


async def serve(process: Process) -> None:
    """Run the coordinator until the process is told to stop.

    Raises:
        FatalError: it cannot start, died, or fell silent.
    """
    await watch(process, lambda: make_coordinator(process.graph, process.folder))


if __name__ == "__main__":
    sys.exit(run("coordinator", serve))
