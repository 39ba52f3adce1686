"""One prefill worker on a real queue: jobs end when their KV can be loaded, and come to some end whatever they are."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from components.bus.client import Bus
from components.bus.work_queue import WorkQueue
from components.engine.make import make_cache_server, make_engine
from components.engine.protocol import CacheServer
from components.graph.load import graph_from_raw
from components.graph.schema import Graph
from components.prefill.metrics import Metrics
from components.prefill.service import PrefillService
from components.wire.prefill import PrefillCancel, PrefillJob, PrefillProgress, PrefillState
from components.wire.process import WorkerRole
from components.wire.subjects import Subjects
from components.worker.prefill_queue import open_prefill_queue
from tests.support.launched import free_port
from tests.support.nats import nats_server

CHUNK_TOKENS = 64


@dataclass
class Bench:
    """A prefill worker, its queue, and what a decode worker hears."""

    bus: Bus
    subjects: Subjects
    queue: WorkQueue[PrefillJob]
    service: PrefillService
    cache: CacheServer
    heard: list[PrefillProgress] = field(default_factory=list)

    async def put(self, name: str, tokens: int, *, seconds: float = 30.0) -> None:
        """Put a job whose prompt nobody has seen."""
        prompt = [hash((name, i)) % 400 + 10 for i in range(tokens)]
        await self.queue.put(PrefillJob(name, "decode-0", "demo", prompt, time.time(), time.time() + seconds), name)

    async def hear(self, progress: PrefillProgress) -> None:
        """Take in what the prefill worker tells."""
        self.heard.append(progress)

    async def states(self, name: str, count: int) -> list[PrefillProgress]:
        """Wait until `count` things were told of a job, and return them."""
        async with asyncio.timeout(20):
            while len(told := [each for each in self.heard if each.job_id == name]) < count:
                await asyncio.sleep(0.01)
        return told

    async def until_empty(self) -> None:
        """Wait until nobody waits and nothing is under way."""
        async with asyncio.timeout(20):
            while (state := await self.queue.ask_state()).waiting or state.under_way:
                await asyncio.sleep(0.02)


def make_graph(speed: float) -> Graph:
    """Return a graph of simulated workers."""
    engine = {"kind": "sim", "speed": speed, "max_model_len": 2048, "kv_blocks": 512}
    prefill = {"max_batched_tokens": 1000, "ack_wait_s": 2.0}
    lmcache = {"port": free_port(), "http_port": 1, "chunk_tokens": CHUNK_TOKENS, "l1_gb": 8}
    components = {"decode": {"engine": engine}, "prefill": prefill}
    return graph_from_raw({"model": "demo", "name": "bench", "lmcache": lmcache, "components": components})


@asynccontextmanager
async def bench(folder: Path, speed: float = 20) -> AsyncIterator[Bench]:
    """Run a prefill worker in this process, its queue on a NATS server of its own, its engine simulated."""
    graph, subjects = make_graph(speed), Subjects("bench")
    cache = make_cache_server(graph, "lmcache-0")
    engine = make_engine(graph.components.decode.engine, graph)  # type: ignore[union-attr] # it is there
    async with nats_server(folder) as nats:
        await cache.start(lambda _: None)
        bus = await Bus.connect(nats, "bench")
        info = await engine.start(lambda _: None)
        queue = await open_prefill_queue(bus, subjects, graph)
        async with asyncio.TaskGroup() as tasks:
            metrics = Metrics(CollectorRegistry())
            service = PrefillService("prefill-0", graph, engine, info, queue, bus, subjects, metrics, tasks)
            made = Bench(bus, subjects, queue, service, cache)
            await bus.subscribe(subjects.prefill_progress("decode-0"), PrefillProgress, made.hear)
            await service.open()
            try:
                yield made
            finally:
                await service.drain(0)
        await queue.close()
        await engine.stop()
        await cache.stop()
        await bus.close()


async def test_a_job_ends_when_its_kv_can_be_loaded(tmp_path: Path) -> None:
    """Started, then done with every full chunk readable; then it is off the queue."""
    async with bench(tmp_path) as worker:
        await worker.put("one", 10 * CHUNK_TOKENS + 7)
        started, done = await worker.states("one", 2)
        assert started.state is PrefillState.STARTED
        assert (done.state, done.readable_tokens, done.prefill_worker) == (PrefillState.DONE, 10 * CHUNK_TOKENS, "prefill-0")
        assert done.prefill_s > 0
        await worker.until_empty()
        assert await worker.queue.dead.count() == 0
        assert worker.service.status().role is WorkerRole.PREFILL


async def test_poison_becomes_a_dead_letter(tmp_path: Path) -> None:
    """What the engine refuses is told at once and kept for a person; the next job is done."""
    async with bench(tmp_path) as worker:
        await worker.put("poison", 5000)
        await worker.put("good", 200)
        _, failed = await worker.states("poison", 2)
        assert failed.state is PrefillState.FAILED
        assert failed.error is not None
        assert "2048" in failed.error.message
        assert (await worker.states("good", 2))[-1].state is PrefillState.DONE
        await worker.until_empty()
        (letter,) = await worker.queue.dead.list()
        assert (letter.id, letter.deliveries) == ("poison", 1)
        assert "2048" in letter.reason


async def test_nothing_is_computed_for_nobody(tmp_path: Path) -> None:
    """Expired jobs are dropped and cancelled ones skipped, before they are begun and while they run."""
    async with bench(tmp_path, speed=0.2) as worker:
        await worker.bus.publish(worker.subjects.prefill_cancel(), PrefillCancel(["cancelled early"]))
        await worker.bus.flush()
        await worker.put("cancelled early", 200)
        await worker.put("expired", 200, seconds=-1)
        await worker.put("cancelled late", 2000)
        await worker.states("cancelled late", 1)
        await worker.bus.publish(worker.subjects.prefill_cancel(), PrefillCancel(["cancelled late"]))
        await worker.until_empty()
        assert [(each.job_id, each.state) for each in worker.heard] == [("cancelled late", PrefillState.STARTED)]
        assert await worker.queue.dead.count() == 0


async def test_kv_that_nobody_can_load_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cache gone a job fails, and leaves the queue: computing it again would help nobody."""
    monkeypatch.setattr("components.prefill.service._READABLE_TIMEOUT_S", 0.3)
    async with bench(tmp_path) as worker:
        await worker.cache.stop()
        await worker.put("lost", 200)
        _, failed = await worker.states("lost", 2)
        assert (failed.state, failed.readable_tokens) == (PrefillState.FAILED, 0)
        await worker.until_empty()


async def test_a_draining_worker_gives_its_jobs_back(tmp_path: Path) -> None:
    """What cannot be finished in time is there for the next worker; the budget of tokens keeps the rest in the queue."""
    async with bench(tmp_path, speed=0.1) as worker:
        for name in ("first", "second", "third"):
            await worker.put(name, 900)
        await worker.states("first", 1)
        await worker.states("second", 1)
        state = await worker.queue.ask_state()
        assert (state.waiting, state.under_way) == (1, 2)
        await worker.service.drain(0.1)
        next_worker = await open_prefill_queue(worker.bus, worker.subjects, make_graph(1))
        async with asyncio.timeout(20):
            taken: set[str] = set()
            while len(taken) < 3:
                taken |= {delivery.id for delivery in await next_worker.take(3, 1)}
        assert taken == {"first", "second", "third"}
        await next_worker.close()
