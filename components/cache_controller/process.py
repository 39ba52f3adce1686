"""A running cache controller: puts its parts together, listens, and stops when it is told to."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import aiohttp
from prometheus_client import CollectorRegistry

from components.cache_controller.app import OPEN_ROUTES, App
from components.cache_controller.controller import Controller
from components.cache_controller.hashing import Scheme, likely_roots, root_of
from components.cache_controller.limits import Counts, Limits
from components.cache_controller.liveness import Liveness
from components.cache_controller.lmcache_messages import ProtocolError
from components.cache_controller.lmcache_protocol import LMCacheProtocol
from components.cache_controller.lookup import Lookup
from components.cache_controller.metrics import Requests, Watched
from components.cache_controller.roster import Instant, Roster
from components.cache_controller.servers import Servers
from components.cache_controller.workers import WorkerReports
from components.graph.keys import ENVIRONMENT, ApiKeys, is_loopback
from components.graph.schema import CacheController
from components.http.edge import Edge
from components.http.edge import Limits as HttpLimits
from components.http.server import Address, ListenError, Runner, listen

log = logging.getLogger(__name__)

_DRAIN_S = 1.0


class StartError(Exception):
    """The controller cannot start; the text begins with the setting at fault."""


def now() -> Instant:
    """Return this moment."""
    return Instant(time.time(), time.monotonic())


async def run(
    settings: CacheController,
    ready: asyncio.Event,
    stopping: asyncio.Event,
    find_coordinators: Callable[[], Iterable[str]] | None = None,
) -> None:
    """Run a controller until `stopping` is set.

    Args:
        settings: ports, limits, where the coordinators are.
        ready: set when it serves.
        stopping: ends it.
        find_coordinators: returns their URLs as they are now, and may block for a moment; default: those of the settings.

    Raises:
        StartError: a port is taken or open to strangers, LMCache is missing, or a setting makes no sense.
    """
    keys = ApiKeys.from_environment()
    if not keys and not is_loopback(settings.host):
        raise StartError(
            f"host: {settings.host} is open to other machines, and {ENVIRONMENT} is not set; set it, or keep to 127.0.0.1"
        )
    limits = Limits(settings.max_workers, settings.max_chunks, settings.worker_timeout_s, settings.request_timeout_s)
    roster, counts, lookup = Roster(), Counts(), _lookup(settings)
    reports = WorkerReports(roster, lookup, limits, counts, now)
    protocol = _protocol(reports, settings)

    async def find() -> Iterable[str]:
        return await asyncio.to_thread(find_coordinators) if find_coordinators else settings.coordinators

    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            servers = Servers(find, roster, limits, now, http)
            registry = CollectorRegistry()
            registry.register(Watched(roster, reports, lookup, servers, counts))
            controller = Controller(roster, reports, lookup, protocol, servers, limits)
            state_file = Path(settings.state_file) if settings.state_file else None
            liveness = Liveness(roster, reports, protocol, limits, counts, now, state_file)
            runner = await _listen(controller, settings, keys, registry)
            try:
                async with asyncio.TaskGroup() as tasks:
                    working = [tasks.create_task(each()) for each in (protocol.serve, liveness.watch, servers.watch)]
                    log.info("ready", extra={"port": settings.port, "monitor_port": settings.monitor_port})
                    ready.set()
                    await stopping.wait()
                    for task in working:
                        task.cancel()
            finally:
                await runner.cleanup()
                await servers.close()
    finally:
        protocol.close()


def _protocol(reports: WorkerReports, settings: CacheController) -> LMCacheProtocol:
    """Return the protocol, its ports taken."""
    monitor = settings.monitor_port
    try:
        protocol = LMCacheProtocol(reports)
    except ProtocolError as error:
        raise StartError(str(error)) from error
    try:
        protocol.open(settings.host, monitor, settings.reply_port or monitor + 1, settings.heartbeat_port or monitor + 2)
    except ProtocolError as error:
        protocol.close()
        raise StartError(str(error)) from error
    return protocol


async def _listen(controller: Controller, settings: CacheController, keys: ApiKeys, registry: CollectorRegistry) -> Runner:
    edge = Edge(keys, HttpLimits(settings.max_body_bytes), Requests(registry).answered, OPEN_ROUTES)
    try:
        return await listen(App(controller, edge, registry).make(), Address(settings.host, settings.port), _DRAIN_S)
    except ListenError as error:
        raise StartError(str(error)) from error


def _lookup(settings: CacheController) -> Lookup:
    seed = settings.hash_seed if settings.hash_seed is not None else os.environ.get("PYTHONHASHSEED", "0")
    try:
        root = root_of(settings.hash_algorithm, "0" if seed == "random" else seed)
    except ValueError as error:
        raise StartError(f"hash_seed: {error}") from None
    if settings.chunk_size < 1:
        raise StartError("chunk_size: must be at least 1")
    return Lookup(Scheme(root, settings.chunk_size), likely_roots(root))
