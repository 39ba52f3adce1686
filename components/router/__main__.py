"""A router process: listens to the graph, answers which worker to take, explains itself over HTTP."""

import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from components.bus.process import FatalError, Process, run
from components.graph.keys import ApiKeys
from components.graph.schema import RouterSettings
from components.http.edge import Edge, Limits
from components.http.server import Address, ListenError, Runner, listen
from components.router.make import make_chooser
from components.router.metrics import Metrics, Watched
from components.router.queries import Queries
from components.router.service import QUEUE, RouterService
from components.wire.process import ProcessState
from components.wire.routing import RouteRequest

_MICRO_SERVICE = "penstock-router"
_DRAIN_S = 1.0


async def serve(process: Process) -> None:
    """Run one router replica until it is told to stop; see `routing`."""
    async with routing(process):
        await process.member.stopping.wait()


@asynccontextmanager
async def routing(process: Process) -> AsyncIterator[None]:
    """Have a router replica, from its readiness on until the end of the context.

    Raises:
        FatalError: its HTTP port cannot be had, or the graph has no router.
    """
    graph, member, bus = process.graph, process.member, process.bus
    settings = graph.components.router
    if settings is None:
        raise FatalError("components.router: is missing")
    chooser = make_chooser(settings, graph.kv.block_size, random.Random())
    metrics = Metrics(member.registry, settings.policy, graph.kv.block_size)
    service = RouterService(
        member.name,
        graph.model_name,
        settings,
        graph.kv.block_size,
        graph.supervision.silence_timeout_s,
        chooser,
        metrics,
        bus,
        process.subjects,
    )
    member.registry.register(Watched(chooser, service.feed, bus))
    await service.listen()
    background = [process.tasks.create_task(work) for work in (service.watch(), service.tidy())]
    edge = Edge(ApiKeys.from_environment(), Limits(graph.http.max_body_bytes, graph.http.client_stall_timeout_s))
    queries = Queries(service, edge, bus, process.subjects, member)
    runner = await _open(queries.make(), settings, member.name)
    stop = await bus.offer(_MICRO_SERVICE, QUEUE, process.subjects.route(), RouteRequest, service.route)
    await bus.flush()
    member.become(ProcessState.READY, f"{settings.policy}, http port {_port(settings, member.name)}")
    yield
    member.become(ProcessState.DRAINING)
    await stop()
    await runner.cleanup()
    for task in background:
        task.cancel()


def _port(settings: RouterSettings, name: str) -> int:
    """Return the HTTP port of the replica `name`, which ends in its number."""
    number = name.rpartition("-")[2]
    return settings.http_port + (int(number) if number.isdecimal() else 0)


async def _open(app: web.Application, settings: RouterSettings, name: str) -> Runner:
    address = Address(settings.http_host, _port(settings, name))
    try:
        return await listen(app, address, _DRAIN_S)
    except ListenError as error:
        raise FatalError(f"router.http_{error}") from error


if __name__ == "__main__":
    sys.exit(run("router", serve))
