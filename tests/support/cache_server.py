"""A simulated cache server in a process of its own: ``python -m tests.support.cache_server GRAPH_PART PORT``."""

import asyncio
import sys

from components.engine.sim_server import SimCacheServer
from components.graph.schema import LMCache


async def serve(graph_part: str, port: int) -> None:
    """Say ``ready``, and serve until standard input ends."""
    server = SimCacheServer(LMCache(port=port), graph_part)
    await server.start(lambda _: None)
    print("ready", flush=True)  # noqa: T201 to whoever waits for it
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
