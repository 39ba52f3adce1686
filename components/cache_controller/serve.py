"""The cache controller's process: runs until SIGTERM or SIGINT. `penstock cache-controller` starts it."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterable

import uvloop

from components.cache_controller.process import StartError, run
from components.graph.schema import CacheController
from components.telemetry.logs import setup_logging

log = logging.getLogger(__name__)


def main(settings: CacheController, find_coordinators: Callable[[], Iterable[str]] | None = None) -> int:
    """Run a cache controller to its end and return its exit code.

    Args:
        settings: ports and limits.
        find_coordinators: returns their URLs as they are now, asked again and again; default: those of the settings.
    """
    setup_logging("cache-controller", settings.log_level, settings.log_format)
    try:
        uvloop.run(_run(settings, find_coordinators))
    except StartError as error:
        log.error("%s", error)  # noqa: TRY400 the text says it all
        return 1
    return 0


async def _run(settings: CacheController, find_coordinators: Callable[[], Iterable[str]] | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    await run(settings, asyncio.Event(), stopping, find_coordinators)
