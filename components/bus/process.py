"""The frame every process of a graph runs in: arguments, logs, bus, membership, signals, and one TaskGroup for its tasks.

A component's ``__main__`` is ``run("decode", serve)``; `serve` does the component's work and returns when it has ended it.
"""

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from components.bus.client import Bus, BusError
from components.bus.member import Member, NameTakenError
from components.graph.load import GraphError, load_graph
from components.graph.schema import Graph, Nats
from components.telemetry.logs import setup_logging
from components.telemetry.tracing import close_tracing, setup_tracing
from components.wire.process import ProcessState
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

T = TypeVar("T")

_GC_THRESHOLDS = (20_000, 20, 50)
"""Requests in flight are many small objects, hardly a cycle among them; with Python's 700 they are looked at for ever."""


class FatalError(Exception):
    """The process cannot go on; the text says why in one line."""


class _Finished(Exception):  # noqa: N818 no error: it ends the TaskGroup
    """The component has ended its work; its background tasks may go."""


@dataclass(frozen=True)
class Process:
    """What the frame hands to a component.

    Attributes:
        graph: every setting, resolved.
        bus: the connection to NATS.
        subjects: where to publish and listen.
        member: this process's state and metrics.
        tasks: owns the component's background tasks; one that fails ends the process.
        folder: where it may keep files for its next life; None keeps none.
    """

    graph: Graph
    bus: Bus
    subjects: Subjects
    member: Member
    tasks: asyncio.TaskGroup
    folder: Path | None = None


Serve = Callable[[Process], Awaitable[None]]


def run(component: str, serve: Serve, argv: list[str] | None = None) -> int:
    """Run one process of a graph to its end and return its exit code.

    Args:
        component: ``decode``, ``processor``, …
        serve: the component's work; it watches ``member.stopping``.
        argv: ``--graph FILE --name NAME``; default: the command line's.
    """
    parser = argparse.ArgumentParser(prog=f"components.{component}", description=f"One {component} process of a graph.")
    parser.add_argument("--graph", type=Path, required=True, help="the graph's YAML file")
    parser.add_argument("--name", default=f"{component}-0", help="this process's name in the graph")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a setting")
    arguments = parser.parse_args(argv)
    try:
        graph = load_graph(arguments.graph, arguments.set)
    except GraphError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    telemetry = graph.telemetry
    setup_logging(arguments.name, telemetry.log_level, telemetry.log_format)
    setup_tracing(arguments.name, graph.name, telemetry.otlp_endpoint, telemetry.trace_ratio)
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        uvloop.run(_run(component, arguments.name, graph, serve, arguments.graph.absolute().parent))
    except (FatalError, BusError) as error:
        log.error("%s", error)  # noqa: TRY400 the text says it all
        return 1
    finally:
        close_tracing()
    return 0


async def _run(component: str, name: str, graph: Graph, serve: Serve, folder: Path) -> None:
    if isinstance(graph.nats, str) and graph.nats == "embedded":
        raise FatalError("nats: is `embedded`, which only `penstock up` can resolve; name a server with --set nats=URL")
    nats = Nats(url=graph.nats) if isinstance(graph.nats, str) else graph.nats
    bus = await Bus.connect(nats, f"{graph.name}/{name}")
    subjects = Subjects(graph.name)
    member = Member(bus, subjects, name, component)
    try:
        await member.claim()
    except NameTakenError:
        await bus.close()
        raise
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, member.stopping.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(member.run())
            tasks.create_task(_end_with(bus))
            await serve(Process(graph, bus, subjects, member, tasks, folder))
            raise _Finished
    except BaseExceptionGroup as group:
        cause = _first(group)
        if isinstance(cause, _Finished):
            member.become(ProcessState.STOPPED)
        else:
            member.become(ProcessState.FAILED, str(cause) or type(cause).__name__)
            raise (cause if isinstance(cause, FatalError | NameTakenError) else group) from None
    finally:
        await member.tell()
        await bus.close()


@asynccontextmanager
async def beside(process: Process, component: str, name: str) -> AsyncIterator[Process]:
    """Run a second component in `process`, a member of the graph under a name of its own; yields what the frame gives it.

    Raises:
        NameTakenError: another process has the name.
    """
    member = Member(process.bus, process.subjects, name, component)
    await member.claim()
    telling = process.tasks.create_task(member.run())
    end = ProcessState.FAILED
    try:
        yield replace(process, member=member)
        end = ProcessState.STOPPED
    finally:
        telling.cancel()
        member.become(end)
        await member.tell()


async def _end_with(bus: Bus) -> None:
    """Wait for ever, unless the bus fails.

    Raises:
        FatalError: it did; nobody hears this process any more, or it has a bug.
    """
    raise FatalError(await bus.failed())


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`, or None when `event` was set first (then `work` is cancelled)."""
    async with asyncio.TaskGroup() as race:
        working = race.create_task(work)
        watching = race.create_task(event.wait())
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not working.done():
            working.cancel()
    return None if working.cancelled() else working.result()


def _first(error: BaseException) -> BaseException:
    """Return the first leaf of a (nested) exception group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
