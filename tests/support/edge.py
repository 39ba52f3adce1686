"""A processor inside the test's own event loop, on a free port."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from components.bus.client import Bus
from components.bus.member import Member
from components.bus.process import Process
from components.graph.load import graph_from_raw
from components.graph.schema import Nats
from components.processor.__main__ import serve
from components.wire.process import ProcessState
from components.wire.subjects import Subjects
from tests.support.scripted_worker import Script, ScriptedWorker


def free_port() -> int:
    """Return a TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Edge:
    """A running processor, and the means to talk to it.

    Attributes:
        url: where it listens.
        http: a client.
        member: its membership; `stopping` ends it.
    """

    url: str
    port: int
    http: aiohttp.ClientSession
    bus: Bus
    subjects: Subjects
    member: Member

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and JSON of a POST."""
        async with self.http.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def events(self, path: str, body: Any) -> list[Any]:
        """Return the events of a stream, decoded; the last is ``[DONE]`` or an error."""
        async with self.http.post(self.url + path, json=body | {"stream": True}) as response:
            assert response.status == 200, await response.text()
            lines = [line async for line in response.content]
        data = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
        return [line.decode() if line == b"[DONE]" else msgspec.json.decode(line) for line in data]

    async def ready(self, workers: int) -> None:
        """Wait until `workers` are known."""
        async with asyncio.timeout(10):
            while await self.workers() != workers:
                await asyncio.sleep(0.02)

    async def workers(self) -> int:
        """Return how many workers it knows."""
        async with self.http.get(self.url + "/ready") as response:
            count: int = (await response.json())["workers"]
            return count

    async def metric(self, name: str) -> float:
        """Return the sum of a metric's samples in this process."""
        samples = [sample for family in self.member.registry.collect() for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name)

    async def idle(self) -> None:
        """Wait until nothing is in progress, and assert that nothing is left."""
        async with asyncio.timeout(5):
            while await self.metric("penstock_http_inflight_requests") or await self.metric("penstock_open_attempts"):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def edge(
    nats: Nats,
    replicas: int = 1,
    router: dict[str, Any] | None = None,
    name: str = "processor-0",
    model: str = "demo",
    **http: Any,
) -> AsyncIterator[Edge]:
    """Run a processor of the model called demo with the ``http`` settings `http`.

    Args:
        nats: the server.
        replicas: how many processors share its port.
        router: settings of a router it asks.
        name: its own.
        model: the model's folder.
        http: settings.
    """
    routers = {} if router is None else {"router": router}
    port = http.get("port") or free_port()
    graph = graph_from_raw(
        {
            "model": model,
            "served_model_name": "demo",
            "name": "test",
            "nats": nats.url,
            "http": {"port": port} | http,
            "components": {"processor": {"replicas": replicas}, "decode": {"engine": {"kind": "sim"}}} | routers,
        }
    )
    bus, other = await Bus.connect(nats, "processor"), await Bus.connect(nats, "tests")
    subjects = Subjects(graph.name)
    member = Member(bus, subjects, name, "processor")
    try:
        async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as client:
            telling = tasks.create_task(member.run())
            serving = tasks.create_task(serve(Process(graph, bus, subjects, member, tasks)))
            scheme = "https" if "tls_cert_file" in http else "http"
            await _listening(member, serving)
            yield Edge(f"{scheme}://127.0.0.1:{port}", port, client, other, subjects, member)
            member.stopping.set()
            await serving
            telling.cancel()
    finally:
        await bus.close()
        await other.close()


@asynccontextmanager
async def scripted(edge: Edge, **scripts: Script) -> AsyncIterator[list[ScriptedWorker]]:
    """Run a scripted worker for each script, and wait until the processor knows them."""
    before = await edge.workers()
    workers = [await ScriptedWorker(edge.bus, edge.subjects, name, script).start() for name, script in scripts.items()]
    try:
        await edge.ready(before + len(workers))
        yield workers
    finally:
        for worker in workers:
            await worker.stop()


async def _listening(member: Member, serving: asyncio.Task[None]) -> None:
    async with asyncio.timeout(30):
        while member.status().state is not ProcessState.READY and not serving.done():
            await asyncio.sleep(0.01)
