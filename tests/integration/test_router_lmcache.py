"""What routers on a real NATS server know of LMCache: who can load what, until its server restarts or lacks it after all."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from components.bus.client import Bus
from components.engine.protocol import KvUpdate
from components.engine.sim import SimEngine
from components.graph.schema import Nats
from components.graph.schema import SimEngine as Sim
from components.wire.kv import KvStored, Tier
from components.wire.process import ProcessState, ProcessStatus
from components.wire.routing import RouteEvent, RouteNotice, RouteNotices
from components.worker.kv_publisher import KvPublisher
from components.worker.store_watch import StoreWatch
from tests.support.nats import nats_server
from tests.support.routing import BLOCK_SIZE, Routing, holders, routing

PROMPT = list(range(1000, 1100))
SILENCE_S = 1.5


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A NATS server of the test's own."""
    async with nats_server(tmp_path / "nats") as settings:
        yield settings


@pytest.fixture
async def router(nats: Nats) -> AsyncIterator[Routing]:
    """A router with the kv policy."""
    async with routing(nats) as running:
        yield running


async def until_fetches(router: Routing, **wanted: int) -> None:
    """Wait until the router's own HTTP says how many blocks of the prompt each worker would load; others, none."""
    fetches = {worker.replace("_", "-"): count for worker, count in wanted.items()}
    async with asyncio.timeout(10):
        while {name: each["shared_blocks"] for name, each in (await workers(router)).items() if name in fetches} != fetches:
            await asyncio.sleep(0.02)


async def workers(router: Routing) -> dict[str, dict[str, object]]:
    """Return /workers by name."""
    return {each["name"]: each for each in (await router.get("/workers"))["workers"]}


async def test_what_prefill_workers_store_their_host_can_load(router: Routing) -> None:
    """They are shown, and are no candidates; only their store counts of what they tell."""
    names = ("decode-0", "decode-1", "prefill-0")
    async with holders(router, *names, decode_0="lmcache-0", decode_1="lmcache-b-0", prefill_0="lmcache-0") as (*_, prefill):
        await prefill.send(KvStored(PROMPT), KvStored(PROMPT[:64], tier=Tier.SHARED))
        await until_fetches(router, decode_0=64, decode_1=0, prefill_0=64)
        reply = await router.ask(PROMPT, dry_run=True)
        told = {each.worker: (each.store, each.overlap_blocks, each.fetch_blocks) for each in reply.candidates}
        assert told == {"decode-0": ("lmcache-0", 0, 64), "decode-1": ("lmcache-b-0", 0, 0)}
        assert reply.chosen.worker == "decode-0"
        assert 0 < reply.chosen.fetch_s < reply.chosen.prefill_s
        shown = (await workers(router))["prefill-0"]
        assert (shown["role"], shown["store"], shown["trust"], shown["blocks"]) == ("prefill", "lmcache-0", "exact", 0)
        await prefill.stop()
        await until_fetches(router, decode_0=64)
        async with asyncio.timeout(10):
            while "prefill-0" in await workers(router):
                await asyncio.sleep(0.05)
        await until_fetches(router, decode_0=64)


async def test_a_first_token_corrects_all_replicas(nats: Nats, router: Routing) -> None:
    """LMCache evicted without a word: the engine reused less than predicted, and no router predicts it again."""
    async with routing(nats, "router-1") as other, holders(router, "decode-0", decode_0="lmcache-0") as (decode,):
        await other.trusts(decode_0="exact")
        await decode.send(KvStored(PROMPT, tier=Tier.SHARED))
        for each in (router, other):
            await until_fetches(each, decode_0=100)
            async with asyncio.timeout(10):
                while (await each.get("/ready"))["workers"] != 1:
                    await asyncio.sleep(0.02)
        assert (await router.ask(PROMPT, "r")).chosen.fetch_blocks == 100
        for each in (router, other):
            async with asyncio.timeout(10):
                while (await each.get("/index/stats"))["requests"] != 1:
                    await asyncio.sleep(0.02)
        for event, fields in ((RouteEvent.FIRST_TOKEN, {"cached_tokens": 30 * BLOCK_SIZE}), (RouteEvent.FINISHED, {})):
            told = RouteNotices([RouteNotice("r", event, "decode-0", **fields)])
            await router.bus.publish(router.subjects.route_notices(), told)
        for each in (router, other):
            await until_fetches(each, decode_0=30)
        await decode.send(KvStored(PROMPT[30:], PROMPT[29], Tier.SHARED))
        for each in (router, other):
            await until_fetches(each, decode_0=100)


@pytest.mark.parametrize("end", ["restart", "stop", "silence"])
async def test_what_a_lost_server_held_is_forgotten_everywhere(nats: Nats, router: Routing, end: str) -> None:
    """By the routers and by the workers that told of it, so that no snapshot brings it back; what comes next counts."""
    updates: asyncio.Queue[KvUpdate] = asyncio.Queue()

    async def told() -> AsyncIterator[KvUpdate]:
        while True:
            yield await updates.get()

    async def tell(state: ProcessState, incarnation: str = "a") -> None:
        status = ProcessStatus("lmcache-0", "lmcache", incarnation, 1, "host", state)
        await router.bus.publish(router.subjects.status("lmcache-0"), status)

    bus = await Bus.connect(nats, "decode-0")
    async with holders(router, "decode-0", decode_0="lmcache-0") as (decode,):
        decode.mute, decode.incarnation = True, "new"  # from now on the publisher speaks for it
        publisher = KvPublisher(bus, router.subjects, "decode-0", "new", CollectorRegistry())
        watch = StoreWatch(bus, router.subjects, "lmcache-0", SILENCE_S, publisher, SimEngine("m", Sim(), 32))
        await publisher.listen()
        await watch.listen()
        await bus.flush()
        background = [asyncio.create_task(work) for work in (publisher.run(told()), publisher.keep_alive(), watch.run())]
        await decode.tell()
        try:
            await tell(ProcessState.READY)
            await updates.put(KvUpdate([KvStored(PROMPT, tier=Tier.SHARED), KvStored(PROMPT[:7])], 2))
            await until_fetches(router, decode_0=100)
            if end != "silence":
                await tell(*((ProcessState.STARTING, "b") if end == "restart" else (ProcessState.STOPPED, "a")))
            await until_fetches(router, decode_0=0)
            async with asyncio.timeout(10):
                while publisher.held.on(Tier.SHARED):
                    await asyncio.sleep(0.02)
            await router.post("/workers/decode-0/reset", None)
            await router.trusts(decode_0="exact")
            assert (await router.overlaps(PROMPT), (await workers(router))["decode-0"]["shared_blocks"]) == (
                {"decode-0": 7},
                0,
            )
            await updates.put(KvUpdate([KvStored(PROMPT[:9], tier=Tier.SHARED)], 1))
            await until_fetches(router, decode_0=9)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await bus.close()
