"""A stage for measuring the router: NATS, routers as processes, and workers that are played.

They tell statuses, events and snapshots as production's do, and compute nothing.
"""

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from components.bus.client import Bus
from components.bus.server import NatsServerPlan
from components.engine.protocol import KvUpdate
from components.graph.schema import Nats
from components.wire.kv import KvStored
from components.wire.process import ProcessState, ProcessStatus, WorkerStatus
from components.wire.routing import RouteEvent, RouteNotice, RouteNotices, RouteReply, RouteRequest
from components.wire.subjects import Subjects
from components.worker.kv_publisher import KvPublisher

BLOCK_SIZE = 32
WORKERS = 8


class Stage:
    """NATS, some routers as processes, and workers played here.

    Attributes:
        took_s: from the last question to its answer; the notice that ends the request follows untimed.
    """

    def __init__(self, nats: Nats, folder: Path) -> None:
        self.nats = nats
        self.folder = folder
        self.subjects = Subjects("bench")
        self.bus: Bus
        self.port = 18_182
        self.took_s = 0.0

    async def tell(self) -> None:
        """Tell the statuses of all workers, for ever."""
        while True:
            for number in range(WORKERS):
                offer = WorkerStatus("demo", 1 << 20, BLOCK_SIZE, 1 << 20)
                status = ProcessStatus(f"decode-{number}", "decode", "life", 1, "bench", ProcessState.READY, worker=offer)
                await self.bus.publish(self.subjects.status(status.name), status)
            await asyncio.sleep(0.5)

    @asynccontextmanager
    async def routers(self, count: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
        """Run router replicas."""
        graph = self.folder / "bench.yaml"
        graph.write_text(
            f"{{model: demo, name: bench, nats: '{self.nats.url}', components: {{router: {{replicas: {count}, "
            f"http_port: {self.port}}}, decode: {{engine: {{kind: sim}}}}}}, telemetry: {{log_level: error}}}}"
        )
        processes = []
        for number in range(count):
            argv = [sys.executable, "-m", "components.router", "--graph", str(graph), "--name", f"router-{number}"]
            processes.append(await asyncio.create_subprocess_exec(*argv, env=dict(os.environ)))
        try:
            for number in range(count):
                await self.until(lambda view: len(view["workers"]) == WORKERS, "/workers", number)
            yield processes
        finally:
            for process in processes:
                if process.returncode is None:
                    process.terminate()
                await process.wait()

    async def query(self, path: str, replica: int = 0) -> Any:
        """Return a query's answer."""
        url = f"http://127.0.0.1:{self.port + replica}{path}"
        return json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read()))

    async def until(self, condition: Callable[[Any], bool], path: str, replica: int = 0) -> None:
        """Wait for an answer that fulfils `condition`."""
        while True:
            try:
                if condition(await self.query(path, replica)):
                    return
            except OSError:
                pass
            await asyncio.sleep(0.01)

    async def whole(self, replica: int = 0) -> None:
        """Wait until all workers are trusted."""
        await self.until(
            lambda view: [each["trust"] for each in view["workers"]] == ["exact"] * WORKERS, "/workers", replica
        )

    async def ask(self, blocks: list[int], dry_run: bool = False) -> RouteReply:
        """Ask any router."""
        request = RouteRequest(
            secrets.token_hex(8), "demo", blocks, len(blocks) * BLOCK_SIZE + 1, time.time() + 60, dry_run=dry_run
        )
        start_s = time.perf_counter()
        reply = await self.bus.request(self.subjects.route(), request, RouteReply, 5.0)
        self.took_s = time.perf_counter() - start_s
        if not dry_run:
            notice = RouteNotice(request.request_id, RouteEvent.FINISHED, reply.chosen.worker)
            await self.bus.publish(self.subjects.route_notices(), RouteNotices([notice]))
        return reply


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Run a NATS server and tell of the workers."""
    with tempfile.TemporaryDirectory() as folder:
        plan = NatsServerPlan(Path(folder) / "nats", name="bench")
        plan.write()
        server = await asyncio.create_subprocess_exec(
            *plan.argv, env={**os.environ, **plan.environment}, stderr=asyncio.subprocess.DEVNULL
        )
        os.environ.update(plan.environment)
        try:
            made = Stage(await plan.settings(server.pid), Path(folder))
            made.bus = await Bus.connect(made.nats, "bench")
            telling = asyncio.ensure_future(made.tell())
            yield made
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await made.bus.close()
        finally:
            server.terminate()
            await server.wait()


class Holders:
    """The workers' KV, told by the real publisher."""

    def __init__(self, stage: Stage) -> None:
        self._publishers = [
            KvPublisher(stage.bus, stage.subjects, f"decode-{number}", "life", CollectorRegistry())
            for number in range(WORKERS)
        ]

    async def listen(self) -> None:
        """Answer for snapshots."""
        for publisher in self._publishers:
            await publisher.listen()

    async def store(self, number: int, prompts: list[list[int]], blocks_an_event: int) -> None:
        """Have a worker store prompts, in events of so many blocks."""

        async def updates() -> AsyncIterator[KvUpdate]:
            for prompt in prompts:
                for at in range(0, len(prompt), blocks_an_event):
                    parent = prompt[at - 1] if at else None
                    yield KvUpdate([KvStored(prompt[at : at + blocks_an_event], parent)], events=1)

        await self._publishers[number].run(updates())

    async def repeat(self) -> None:
        """Repeat the last numbers, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for publisher in self._publishers:
                tasks.create_task(publisher.keep_alive())
