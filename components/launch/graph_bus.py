"""A command's own connection to the NATS server of a graph that runs on this machine."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import psutil

from components.bus.client import Bus, BusError
from components.graph.load import GraphError, load_graph
from components.graph.schema import Graph, Nats
from components.launch.guard import RUN_VARIABLE
from components.launch.state import GraphState, StateFolder
from components.launch.target import fail
from components.wire.subjects import Subjects

T = TypeVar("T")

SECRETS = ("PENSTOCK_NATS_TOKEN", "PENSTOCK_NATS_USER", "PENSTOCK_NATS_PASSWORD")
_CONNECT_S = 5.0


class GraphBus:
    """A connection to the bus of one graph.

    Attributes:
        state: of the graph, as its supervisor last wrote it.
        graph: every setting, resolved.
        bus: the connection.
        subjects: where to ask.
    """

    def __init__(self, state: GraphState, graph: Graph, bus: Bus) -> None:
        self.state = state
        self.graph = graph
        self.bus = bus
        self.subjects = Subjects(graph.name)


def ask_graph(state: GraphState, question: Callable[[GraphBus], Awaitable[T]]) -> T:
    """Return what `question` finds out over a graph's bus, or end with what is wrong."""

    async def ask() -> T:
        async with _connected(state) as connected:
            return await question(connected)

    try:
        return asyncio.run(ask())
    except (BusError, GraphError) as error:
        fail(str(error), exit_code=1)


@asynccontextmanager
async def _connected(state: GraphState) -> AsyncIterator[GraphBus]:
    graph = load_graph(StateFolder(state.graph).graph_file)
    nats = Nats(url=graph.nats) if isinstance(graph.nats, str) else graph.nats
    _take_over(graph_secrets(state))
    bus = await Bus.connect(nats, f"{graph.part}/command", _CONNECT_S)
    try:
        yield GraphBus(state, graph, bus)
    finally:
        await bus.close()


def graph_secrets(state: GraphState) -> Mapping[str, str]:
    """Return the NATS secrets of the graph, which stand in no file: a process of it has them, for its owner to see."""
    for process in state.processes:
        try:
            environment = psutil.Process(process.pid).environ() if process.pid else {}
        except psutil.Error:
            continue
        if environment.get(RUN_VARIABLE) == state.run:
            return {name: environment[name] for name in SECRETS if name in environment}
    return {name: os.environ[name] for name in SECRETS if name in os.environ}


def _take_over(secrets: Mapping[str, str]) -> None:
    """Put `secrets` where a connection looks for them, and take away those of other servers."""
    for name in SECRETS:
        if name in secrets:
            os.environ[name] = secrets[name]
        else:
            os.environ.pop(name, None)
