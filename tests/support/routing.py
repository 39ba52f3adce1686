"""A router inside the test's own event loop, and a worker that tells of blocks it does not have."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from components.bus.client import Bus
from components.bus.member import Member
from components.bus.process import Process
from components.graph.load import graph_from_raw
from components.graph.schema import Nats
from components.router.__main__ import serve
from components.wire.kv import KvBatch, KvChange, KvStored, SnapshotChunk, SnapshotRequest
from components.wire.process import ProcessState, ProcessStatus, WorkerLoad, WorkerRole, WorkerStatus
from components.wire.routing import RouteReply, RouteRequest
from components.wire.subjects import Subjects
from tests.support.edge import free_port

BLOCK_SIZE = 32


@dataclass
class Routing:
    """A running router, and the means to talk to it.

    Attributes:
        url: where it answers queries.
        bus: another connection than its own.
        own_bus: its own.
    """

    url: str
    http: aiohttp.ClientSession
    bus: Bus
    own_bus: Bus
    subjects: Subjects
    member: Member

    async def ask(
        self, blocks: Sequence[int], request_id: str | None = None, tokens: int | None = None, **fields: Any
    ) -> RouteReply:
        """Return the answer to a route query about a prompt of `blocks` and one more token."""
        length = len(blocks) * BLOCK_SIZE + 1 if tokens is None else tokens
        name = request_id or secrets.token_hex(4)
        request = RouteRequest(name, "demo", list(blocks), length, fields.pop("deadline_unix_s", 4e9), **fields)
        return await self.bus.request(self.subjects.route(), request, RouteReply, 2.0)

    async def overlaps(self, blocks: Sequence[int]) -> dict[str, int]:
        """Return how many of `blocks` each worker holds, by the router's word."""
        reply = await self.ask(blocks, dry_run=True)
        return {each.worker: each.overlap_blocks for each in reply.candidates}

    async def get(self, path: str, status: int = 200) -> Any:
        """Return the JSON of a query."""
        async with self.http.get(self.url + path) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def post(self, path: str, body: Any, status: int = 200) -> Any:
        """Return the JSON of a query with a body."""
        async with self.http.post(self.url + path, json=body) as response:
            assert response.status == status, await response.text()
            return await response.json()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        samples = [sample for family in self.member.registry.collect() for sample in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    async def trusts(self, **trusts: str) -> None:
        """Wait until the router trusts workers so far: ``decode_0="exact"``."""
        wanted = {worker.replace("_", "-"): trust for worker, trust in trusts.items()}
        async with asyncio.timeout(10):
            while True:
                now = {each["name"]: each["trust"] for each in (await self.get("/workers"))["workers"]}
                if wanted.items() <= now.items():
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def routing(
    nats: Nats,
    name: str = "router-0",
    http_port: int | None = None,
    http: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Routing]:
    """Run a router of the graph ``test`` whose settings are `settings`, and whose graph has the ``http`` settings `http`."""
    number = int(name.rpartition("-")[2])
    port = http_port or free_port() - number
    graph = graph_from_raw(
        {
            "model": "demo",
            "name": "test",
            "nats": nats.url,
            "http": http or {},
            "components": {
                "processor": {},
                "router": {"http_port": port} | settings,
                "decode": {"engine": {"kind": "sim"}},
            },
        }
    )
    bus, other = await Bus.connect(nats, name), await Bus.connect(nats, "tests")
    subjects = Subjects(graph.name)
    member = Member(bus, subjects, name, "router")
    try:
        async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as client:
            telling = tasks.create_task(member.run())
            serving = tasks.create_task(serve(Process(graph, bus, subjects, member, tasks)))
            async with asyncio.timeout(10):
                while member.status().state is not ProcessState.READY and not serving.done():
                    await asyncio.sleep(0.01)
            yield Routing(f"http://127.0.0.1:{port + number}", client, other, bus, subjects, member)
            member.stopping.set()
            await serving
            telling.cancel()
    finally:
        await bus.close()
        await other.close()


@dataclass
class Holder:
    """A worker that tells of blocks, loses messages when told to, and answers for snapshots.

    Attributes:
        held: what a snapshot lists: runs from a prompt's first block on.
        complete: what its snapshots say of themselves.
        mute: answers no snapshot request.
        asked: snapshot requests heard.
        lmcache: its LMCache server.
    """

    bus: Bus
    subjects: Subjects
    name: str
    incarnation: str = field(default_factory=lambda: secrets.token_hex(4))
    held: list[list[int]] = field(default_factory=list)
    seq: int = 0
    complete: bool = True
    mute: bool = False
    state: ProcessState = ProcessState.READY
    load: WorkerLoad = field(default_factory=WorkerLoad)
    asked: list[SnapshotRequest] = field(default_factory=list)
    lmcache: str = ""
    telling: asyncio.Task[None] | None = None

    async def start(self) -> "Holder":
        """Listen, and tell the status from now on."""
        await self.bus.subscribe(self.subjects.kv_snapshot(self.name), SnapshotRequest, self._answer)
        await self.bus.flush()
        self.telling = asyncio.create_task(self._tell_for_ever())
        return self

    async def tell(self) -> None:
        """Publish the status."""
        role = self.name.partition("-")[0]
        offer = WorkerStatus("demo", 65536, BLOCK_SIZE, 16384, self.load, role=WorkerRole(role), store=self.lmcache)
        status = ProcessStatus(self.name, role, self.incarnation, 1, "test", self.state, worker=offer)
        await self.bus.publish(self.subjects.status(self.name), status)

    async def store(self, blocks: list[int], lose: bool = False) -> None:
        """Hold a prompt's blocks and tell so, or lose the telling."""
        self.held.append(blocks)
        await self.send(KvStored(blocks), lose=lose)

    async def send(self, *changes: KvChange, lose: bool = False) -> None:
        """Publish the next batch, or lose it."""
        self.seq += 1
        if not lose:
            batch = KvBatch(self.name, self.incarnation, self.seq, list(changes))
            await self.bus.publish(self.subjects.kv_events(self.name), batch)

    async def repeat(self) -> None:
        """Repeat the last number."""
        await self.bus.publish(self.subjects.kv_events(self.name), KvBatch(self.name, self.incarnation, self.seq))

    async def restart(self) -> None:
        """Come back as another process with nothing."""
        self.incarnation, self.held, self.seq = secrets.token_hex(4), [], 0
        await self.tell()

    async def stop(self) -> None:
        """Say nothing more."""
        if self.telling:
            self.telling.cancel()
            await asyncio.gather(self.telling, return_exceptions=True)
            self.telling = None

    async def _tell_for_ever(self) -> None:
        while True:
            await self.tell()
            await asyncio.sleep(0.3)

    async def _answer(self, request: SnapshotRequest) -> None:
        self.asked.append(request)
        if self.mute:
            return
        for index, run in enumerate([*self.held, []]):
            last = index == len(self.held)
            chunk = SnapshotChunk(
                request.snapshot_id,
                self.name,
                self.incarnation,
                self.seq,
                index,
                last,
                self.complete,
                [KvStored(run)] if run else [],
            )
            await self.bus.publish(request.reply_to, chunk)


@asynccontextmanager
async def holders(routing: Routing, *names: str, **lmcaches: str) -> AsyncIterator[list[Holder]]:
    """Run a holder for each name, and wait until the router knows all of what they hold: nothing.

    Args:
        routing: the router.
        names: of the workers, such as ``decode-0``.
        lmcaches: their LMCache servers: ``decode_0="lmcache-0"``.
    """
    workers = [
        await Holder(routing.bus, routing.subjects, name, lmcache=lmcaches.get(name.replace("-", "_"), "")).start()
        for name in names
    ]
    try:
        await routing.trusts(**dict.fromkeys(names, "exact"))
        yield workers
    finally:
        for worker in workers:
            await worker.stop()
