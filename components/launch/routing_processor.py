"""A processor with a router of its own in the same process: what `router.embedded` makes of the processors.

Both are as they are alone; the question goes from one to the other without a message (`Bus.request`). See docs/adr/0018.
"""

import sys

from components.bus.process import FatalError, Process, beside, run
from components.processor.__main__ import serve as serve_http
from components.router.__main__ import routing


async def serve(process: Process) -> None:
    """Run both until the processor is told to stop; the router is there before its first request and after its last.

    Raises:
        FatalError: one of them cannot be had.
    """
    name = process.member.name.replace("processor", "router", 1)
    if name == process.member.name:
        raise FatalError(f"--name {name}: must hold `processor`; the router's name is made of it")
    async with beside(process, "router", name) as inner, routing(inner):
        await serve_http(process)


if __name__ == "__main__":
    sys.exit(run("processor", serve))
