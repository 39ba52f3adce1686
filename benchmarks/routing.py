"""The router as a process on real NATS: decisions, events until they are visible, and the way back after its death.

    python -m benchmarks.routing [--rounds N] [--only decision|throughput|events|recovery] [--json FILE]

Workers are played by this script: they tell statuses, events and snapshots, and compute nothing.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.report import show, spread, write_json
from components.bus.client import Bus
from components.bus.server import NatsServerPlan
from components.engine.protocol import KvUpdate
from components.graph.schema import Nats
from components.wire.kv import KvStored
from components.wire.messages import ProcessState, ProcessStatus, WorkerStatus
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


def prompts_of(count: int, blocks: int, seed: int) -> list[list[int]]:
    """Return prompts of random blocks."""
    rng = random.Random(seed)
    return [[rng.getrandbits(60) for _ in range(blocks)] for _ in range(count)]


async def decision(rounds: int) -> dict[str, Any]:
    """One question after the other: 512 blocks, 8 workers, half of the prompts cached somewhere."""
    async with stage() as made, made.routers(1):
        holders = Holders(made)
        await holders.listen()
        await made.whole()
        prompts = prompts_of(256, 512, 1)
        for number, prompt in enumerate(prompts[:128]):
            await holders.store(number % WORKERS, [prompt], 64)
        await made.until(lambda view: view["device"]["blocks"] == 128 * 512, "/index/stats")
        p50_ms, p99_ms = [], []
        for _ in range(rounds):
            took = []
            for number in range(1500):
                await made.ask(prompts[number % 256])
                took.append(made.took_s * 1000)
            took.sort()
            p50_ms.append(took[len(took) // 2])
            p99_ms.append(took[int(len(took) * 0.99)])
        return {"p50_ms": p50_ms, "p99_ms": p99_ms}


async def throughput(rounds: int) -> dict[str, Any]:
    """Many questions at once, one replica and two."""
    results: dict[str, Any] = {}
    for replicas in (1, 2):
        async with stage() as made, made.routers(replicas):
            holders = Holders(made)
            await holders.listen()
            for replica in range(replicas):
                await made.whole(replica)
            prompts = prompts_of(256, 512, 1)
            rates = []
            for _ in range(rounds):
                asked = 0
                stop_s = time.perf_counter() + 3

                async def client(number: int) -> None:
                    nonlocal asked
                    while time.perf_counter() < stop_s:  # noqa: B023 runs within the round
                        await made.ask(prompts[(number * 7 + asked) % 256])  # noqa: B023 see above
                        asked += 1

                start_s = time.perf_counter()
                async with asyncio.TaskGroup() as tasks:
                    for number in range(32):
                        tasks.create_task(client(number))
                rates.append(asked / (time.perf_counter() - start_s))
            results[f"{replicas}"] = rates
    return results


async def events(rounds: int) -> dict[str, Any]:
    """From the first event sent until the last of 524,288 blocks is visible, in events of 64 blocks."""
    rates = []
    for _ in range(rounds):
        async with stage() as made, made.routers(1):
            holders = Holders(made)
            await holders.listen()
            await made.whole()
            prompts = [prompts_of(128, 512, number) for number in range(WORKERS)]
            start_s = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for number in range(WORKERS):
                    tasks.create_task(holders.store(number, prompts[number], 64))
            while (await made.ask(prompts[-1][-1], dry_run=True)).chosen.overlap_blocks < 512:  # noqa: ASYNC110 another process's
                await asyncio.sleep(0.005)
            await made.until(lambda view: view["device"]["blocks"] == WORKERS * 128 * 512, "/index/stats")
            rates.append(WORKERS * 128 * 512 / (time.perf_counter() - start_s))
    return {"blocks_per_s": rates}


async def recovery(rounds: int) -> dict[str, Any]:
    """A router killed with 1,048,576 blocks in its index: from its new start, and from its first word, until it is whole."""
    from_start, from_ready, answering = [], [], []
    async with stage() as made:
        holders = Holders(made)
        await holders.listen()
        repeating = asyncio.ensure_future(holders.repeat())
        for number in range(WORKERS):
            await holders.store(number, prompts_of(256, 512, number), 64)
        for _ in range(rounds):
            start_s = time.perf_counter()
            async with made.routers(1) as (process,):
                ready_s = time.perf_counter()
                await made.ask([1], dry_run=True)
                answering.append(time.perf_counter() - start_s)
                await made.whole()
                whole_s = time.perf_counter()
                blocks = (await made.query("/index/stats"))["device"]["blocks"]
                assert blocks == WORKERS * 256 * 512, blocks
                from_start.append(whole_s - start_s)
                from_ready.append(whole_s - ready_s)
                process.kill()
        repeating.cancel()
    return {"from_start_s": from_start, "from_ready_s": from_ready, "answering_s": answering}


PARTS: dict[str, Callable[[int], Awaitable[dict[str, Any]]]] = {
    "decision": decision,
    "throughput": throughput,
    "events": events,
    "recovery": recovery,
}
_TITLES = {
    "p50_ms": "a decision over NATS, 512 blocks, 8 workers, one at a time: p50 (ms)",
    "p99_ms": "the same: p99 (ms)",
    "1": "decisions a second, 32 at once, one replica",
    "2": "decisions a second, 32 at once, two replicas",
    "blocks_per_s": "events of 64 blocks over NATS until visible (blocks/s)",
    "from_start_s": "1,048,576 blocks: start of the process until the index is whole (s)",
    "from_ready_s": "1,048,576 blocks: first query answered until the index is whole (s)",
    "answering_s": "start of the process until it answers route queries (s)",
}


def main() -> None:
    """Run the parts and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            results[name] = uvloop.run(part(arguments.rounds))
    rows = []
    for part in results.values():
        rows += [
            [_TITLES[key], spread(values, 2 if statistics.median(values) < 1000 else 0)] for key, values in part.items()
        ]
    show("The router over NATS", ["what", "median (min to max, runs)"], rows)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
