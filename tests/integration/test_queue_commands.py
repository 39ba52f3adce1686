"""What `penstock queue` and the gauges tell of a prefill queue, on a real NATS server."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from components.bus.client import Bus
from components.graph.load import graph_from_raw
from components.graph.schema import Graph
from components.launch.graph_bus import GraphBus
from components.launch.queue_cli import LaneView, drop_letter, list_letters, redrive_letter, see_lanes
from components.launch.state import GraphPhase, GraphState
from components.prefill.queue_gauges import QueueGauges
from components.wire.prefill import PrefillJob
from components.worker.prefill_queue import open_prefill_queue
from tests.support.nats import RestartableNats, nats_server

STATE = GraphState("g", "run", 1, 1.0, GraphPhase.READY, "", "demo", 1.0)


def job(name: str) -> PrefillJob:
    """Return a job."""
    return PrefillJob(name, "decode-0", "demo", [1, 2, 3], time.time(), time.time() + 60)


def graph(host: str) -> Graph:
    """Return the part of a graph that one host runs."""
    components = {"decode": {}, "prefill": {"max_deliveries": 1}}
    raw = {"model": "demo", "name": "g", "nats": "nats://h:1", "host": host, "lmcache": {}, "components": components}
    return graph_from_raw(raw)


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[GraphBus]:
    """Yield a connection to a server of the test's own, as seen from host a."""
    async with nats_server(folder) as nats:
        bus = await Bus.connect(nats, "test")
        try:
            yield GraphBus(STATE, graph("a"), bus)
        finally:
            await bus.close()


async def test_a_lane_a_host(tmp_path: Path) -> None:
    """Every lane that somebody takes from is seen from any host, each with its own jobs."""
    async with connected(tmp_path) as link:
        assert await see_lanes(link) == [LaneView("prefill", "a", 0, 0, 0.0, 0, 0)]
        there = await open_prefill_queue(link.bus, link.subjects, graph("b.example"))
        await there.put(job("one"), "one")
        await there.put(job("two"), "two")
        await there.take(1, 5)
        here, other = await see_lanes(link)
        assert (here.lane, here.waiting, here.under_way) == ("a", 0, 0)
        assert (other.lane, other.waiting, other.under_way) == ("b.example", 1, 1)
        await there.close()


async def test_dead_letters_are_listed_redriven_and_dropped(tmp_path: Path) -> None:
    """A job that was given up comes back as new, or goes for good; an id that is none changes nothing."""
    async with connected(tmp_path) as link:
        queue = await open_prefill_queue(link.bus, link.subjects, link.graph)
        await queue.put(job("bad"), "bad")
        [delivery] = await queue.take(1, 5)
        await delivery.reject("no good")
        [letter] = await list_letters(link, 10)
        assert (letter.id, letter.lane, letter.reason) == ("bad", "a", "no good")
        assert not await redrive_letter(link, "other")
        assert await redrive_letter(link, "bad")
        assert await list_letters(link, 10) == []
        [again] = await queue.take(1, 5)
        assert (again.id, again.message.job_id, again.delivery) == ("bad", "bad", 1)
        await again.reject("still no good")
        assert await drop_letter(link, "bad")
        assert not await drop_letter(link, "bad")
        assert [lane.dead_letters for lane in await see_lanes(link)] == [0]
        await queue.close()


async def test_gauges_follow_the_queue_and_hide_what_nobody_can_see(tmp_path: Path) -> None:
    """Depth, age and dead letters; no samples while the server is away, and again when it is back."""
    registry = CollectorRegistry()

    def gauge(name: str) -> float | None:
        return registry.get_sample_value(f"penstock_prefill_queue_{name}", {"lane": "a"})

    async def until(name: str, value: float | None) -> None:
        async with asyncio.timeout(30):
            while gauge(name) != value:
                await asyncio.sleep(0.02)

    async with RestartableNats(tmp_path) as server:
        bus = await Bus.connect(server.settings, "test")
        queue = await open_prefill_queue(bus, GraphBus(STATE, graph("a"), bus).subjects, graph("a"))
        watching = asyncio.create_task(QueueGauges("a", registry).watch(queue, every_s=0.05))
        try:
            await until("waiting", 0)
            await queue.put(job("one"), "one")
            await queue.put(job("two"), "two")
            await until("waiting", 2)
            assert (gauge("oldest_age_seconds") or 0) > 0
            [first] = await queue.take(1, 5)
            await until("under_way", 1)
            await first.reject("no good")
            await until("dead_letters", 1)
            await server.kill()
            await until("waiting", None)
            await server.start()
            await until("waiting", 1)
        finally:
            watching.cancel()
            await queue.close()
            await bus.close()
