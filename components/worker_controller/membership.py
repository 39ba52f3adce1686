"""Following a worker of a graph over the bus: what it is doing, and whether it is ready."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from components.bus.client import Bus
from components.wire.process import ProcessState, ProcessStatus
from components.wire.subjects import Subjects
from components.worker_controller.engine import Engine
from components.worker_controller.starts import Joined, worker_name


@asynccontextmanager
async def followed(engine: Engine, joined: Joined) -> AsyncIterator[None]:
    """Tell `engine` what its worker says of itself in the graph.

    Raises:
        BusError: the graph's NATS server cannot be reached.
    """
    graph = joined.graph
    name = worker_name(engine.request, graph)
    bus = await Bus.connect(joined.nats, f"{graph.name}/controller-{engine.uuid}")

    async def hear(status: ProcessStatus) -> None:
        if status.state is ProcessState.STARTING:
            engine.doing = status.detail
        elif status.state is ProcessState.READY and not engine.running.is_set():
            engine.ran()
        elif status.state is ProcessState.FAILED:
            engine.refuse(status.detail)

    try:
        await bus.subscribe(Subjects(graph.name).status(name), ProcessStatus, hear)
        await bus.flush()
        yield
    finally:
        await bus.close()
