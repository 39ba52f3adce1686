"""KV events from a simulated engine over a real NATS server: what a router hears is what the engine holds."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from components.bus.client import Bus
from components.engine.protocol import KvUpdate
from components.engine.sim import SimEngine
from components.graph import schema
from components.wire.block_hash import block_hashes, root_hash
from components.wire.kv import KvBatch, KvCleared, KvRemoved, KvStored, Tier
from components.wire.subjects import Subjects
from components.worker import kv_publisher
from components.worker.kv_publisher import KvPublisher
from tests.support.engine_contract import ask, make_request
from tests.support.kv_receiver import KvReceiver, blocks
from tests.support.nats import nats_server

SUBJECTS = Subjects("test")
SMALL = schema.SimEngine(speed=200.0, max_model_len=512, kv_blocks=48)
ROOMY = schema.SimEngine(speed=200.0, max_model_len=512, kv_blocks=4096)


@dataclass
class Worker:
    """A worker's publisher, and who listens to it.

    Attributes:
        publisher: fed by `tell`, or by an engine.
        receiver: has heard everything.
        registry: the worker's metrics.
        updates: what the publisher hears.
    """

    publisher: KvPublisher
    receiver: KvReceiver
    registry: CollectorRegistry
    updates: asyncio.Queue[KvUpdate]

    def metric(self, name: str) -> float | None:
        """Return one of the worker's figures."""
        return self.registry.get_sample_value(f"penstock_worker_kv_{name}")

    async def settle(self, held: set[int]) -> None:
        """Wait until the receiver knows exactly these blocks."""
        async with asyncio.timeout(10):
            while blocks(self.receiver.index, "w") != held:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def worker(
    folder: Path, engine: SimEngine | None = None, max_payload_bytes: int | None = None
) -> AsyncIterator[Worker]:
    """Run a publisher named `w` on a private NATS server, which takes messages of so many bytes."""
    updates: asyncio.Queue[KvUpdate] = asyncio.Queue()

    async def told() -> AsyncIterator[KvUpdate]:
        while True:
            yield await updates.get()

    async with nats_server(folder, max_payload_bytes) as nats:
        theirs, ours = await Bus.connect(nats, "w"), await Bus.connect(nats, "r")
        receiver, registry = KvReceiver(ours, SUBJECTS, "w"), CollectorRegistry()
        await receiver.listen()
        publisher = KvPublisher(theirs, SUBJECTS, "w", "life-1", registry)
        await publisher.listen()
        await theirs.flush()
        background = [
            asyncio.create_task(publisher.run(engine.kv_updates() if engine else told())),
            asyncio.create_task(publisher.keep_alive()),
        ]
        try:
            yield Worker(publisher, receiver, registry, updates)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await theirs.close()
            await ours.close()


async def load(engine: SimEngine, seed: int, requests: int, at_once: int) -> None:
    """Ask for answers to random prompts of a few families that share prefixes, some salted."""
    rng = random.Random(seed)
    families = [[rng.randrange(300, 800) for _ in range(300)] for _ in range(4)]
    slots = asyncio.Semaphore(at_once)

    async def one() -> None:
        family = rng.choice(families)
        prompt = family[: rng.randrange(1, 300)] + [rng.randrange(300, 800) for _ in range(rng.randrange(80))]
        salt = rng.choice([None, None, "tenant"])
        async with slots:
            await ask(engine, make_request(prompt, max_tokens=rng.randrange(1, 90), cache_salt=salt))

    await asyncio.gather(*(one() for _ in range(requests)))


def held(engine: SimEngine) -> set[int]:
    """Return the blocks stored in the engine."""
    assert engine._scheduler is not None
    return set(engine._scheduler._cache._users)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [SMALL, ROOMY], ids=["evicting", "roomy"])
async def test_the_index_equals_the_cache(tmp_path: Path, settings: schema.SimEngine, seed: int) -> None:
    """After random load, batch by batch, by a snapshot in the middle, and by one at the end."""
    engine = SimEngine("demo", settings, 32, kv_events=True)
    await engine.start(lambda _: None)
    async with worker(tmp_path, engine) as w:
        await load(engine, seed, requests=60, at_once=6)
        under_load = asyncio.create_task(load(engine, seed + 100, requests=60, at_once=6))
        await asyncio.sleep(0.1)
        middle = await w.receiver.snapshot()
        await under_load
        await w.settle(held(engine))
        assert blocks(w.receiver.rebuilt(middle), "w") == held(engine)
        end = await w.receiver.snapshot()
        assert blocks(w.receiver.rebuilt(end), "w") == held(engine)
        numbers = [batch.seq for batch in w.receiver.batches if batch.changes]
        assert numbers == list(range(1, len(numbers) + 1))
        assert w.receiver.index.stats().holes == 0
        evicted = w.metric("removed_blocks_total") or 0
        assert (evicted > 0) == (settings is SMALL)
        assert w.metric("held_blocks") == len(held(engine))
    await engine.stop()


async def test_overlap_is_what_the_engine_reuses(tmp_path: Path) -> None:
    """Asked one by one, each request reuses as many blocks as the index said, its last token aside."""
    engine, rng = SimEngine("demo", ROOMY, 32, kv_events=True), random.Random(5)
    await engine.start(lambda _: None)
    async with worker(tmp_path, engine) as w:
        prompt: list[int] = []
        for _ in range(40):
            prompt = prompt[: rng.randrange(len(prompt) + 1)] + [
                rng.randrange(300, 800) for _ in range(rng.randrange(1, 120))
            ]
            prompt = prompt[:450]
            await w.settle(held(engine))
            found = w.receiver.index.overlap(block_hashes(prompt, 32, root_hash("demo"))).get("w", 0)
            answer = await ask(engine, make_request(prompt, max_tokens=4))
            assert answer.cached_tokens == min(found, (len(prompt) - 1) // 32) * 32
    await engine.stop()


async def test_an_engine_without_events_says_nothing() -> None:
    """The stream ends at once, and ends when an engine with events is stopped."""
    silent = SimEngine("demo", ROOMY, 32)
    await silent.start(lambda _: None)
    assert [update async for update in silent.kv_updates()] == []
    await silent.stop()
    engine = SimEngine("demo", ROOMY, 32, kv_events=True)
    await engine.start(lambda _: None)
    await ask(engine, make_request(list(range(300, 400))))
    await engine.stop()
    assert [len(update.changes) for update in [update async for update in engine.kv_updates()]] == [1]


async def test_begins_with_batch_0_and_repeats_the_last_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a newcomer's first gap, and the loss of its last batch, are noticed."""
    monkeypatch.setattr(kv_publisher, "REPEAT_INTERVAL_S", 0.1)
    async with worker(tmp_path) as w:
        await w.receiver.caught_up(0)
        assert w.receiver.batches[0] == KvBatch("w", "life-1", 0)
        await w.updates.put(KvUpdate([KvStored([1, 2])], 1))
        await until(lambda: w.receiver.batches[-3:] == [KvBatch("w", "life-1", 1)] * 3)
        assert KvBatch("w", "life-1", 1, [KvStored([1, 2])]) in w.receiver.batches


async def test_an_empty_worker_has_a_snapshot(tmp_path: Path) -> None:
    """One chunk with nothing in it."""
    async with worker(tmp_path) as w:
        (chunk,) = await w.receiver.snapshot()
        assert (chunk.seq, chunk.last, chunk.complete, chunk.stored) == (0, True, True, [])


async def test_long_changes_are_cut(tmp_path: Path) -> None:
    """Batches and chunks stay short, numbers stay in step with what they hold."""
    async with worker(tmp_path) as w:
        run = list(range(1, 50_001))
        await w.updates.put(KvUpdate([KvStored(run), KvRemoved([7, 8])], 2))
        await w.settle(set(run) - {7, 8})
        assert max(sum(len(c.blocks) for c in b.changes if isinstance(c, KvStored)) for b in w.receiver.batches) <= 4096
        snapshot = await w.receiver.snapshot()
        assert [sum(len(run.blocks) for run in chunk.stored) for chunk in snapshot] == [6, 20_480, 20_480, 9_032]
        assert blocks(w.receiver.rebuilt(snapshot), "w") == set(run) - {7, 8}
        assert w.receiver.rebuilt(snapshot).stats().holes == w.receiver.index.stats().holes == 1


async def test_what_the_engine_lost_is_passed_on(tmp_path: Path) -> None:
    """A number is left out when completeness changes, and the snapshot says which it is."""
    async with worker(tmp_path) as w:
        await w.updates.put(KvUpdate([KvStored([1, 2])], 1))
        await w.updates.put(KvUpdate([KvCleared()], 1, orphan_blocks=4, gaps=1, complete=False))
        await w.receiver.caught_up(3)
        (chunk,) = await w.receiver.snapshot()
        assert (chunk.seq, chunk.complete, chunk.stored) == (3, False, [])
        assert (w.metric("gaps_total"), w.metric("orphan_blocks_total"), w.metric("complete")) == (1, 4, 0)
        await w.updates.put(KvUpdate([KvCleared()], 1))
        await w.receiver.caught_up(5)
        assert [batch.seq for batch in w.receiver.batches if batch.changes] == [1, 3, 5]
        assert (await w.receiver.snapshot())[0].complete
        assert w.metric("complete") == 1


async def test_a_tier_is_withdrawn_in_portions(tmp_path: Path) -> None:
    """In step with the other batches; a snapshot does not bring it back, and other tiers stay."""
    async with worker(tmp_path) as w:
        await w.updates.put(KvUpdate([KvStored(list(range(1, 10_001)), tier=Tier.SHARED), KvStored([1, 2])], 2))
        await w.receiver.caught_up(3)
        assert await w.publisher.withdraw(Tier.SHARED) == 10_000
        assert await w.publisher.withdraw(Tier.SHARED) == 0
        await w.receiver.caught_up(6)
        removed = [each for batch in w.receiver.batches[-3:] for each in batch.changes if isinstance(each, KvRemoved)]
        assert sorted(block for each in removed for block in each.blocks) == list(range(1, 10_001))
        assert max(len(each.blocks) for each in removed) <= 4096
        (chunk,) = await w.receiver.snapshot()
        assert chunk.stored == [KvStored([1, 2])]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_messages_are_no_longer_than_the_server_takes(tmp_path: Path) -> None:
    """Long runs and many short ones arrive in as many batches and chunks as it takes."""
    async with worker(tmp_path, max_payload_bytes=4096) as under_test:
        large = 2**60  # nine bytes on the wire
        run = KvStored([large + block for block in range(2000)])
        short = [KvStored([2 * large + 2 * block], None) for block in range(500)]
        under_test.updates.put_nowait(KvUpdate((run, *short)))
        everything = {*run.blocks, *(block for each in short for block in each.blocks)}
        await under_test.settle(everything)
        chunks = await under_test.receiver.snapshot()
        assert {block for chunk in chunks for stored in chunk.stored for block in stored.blocks} == everything
        assert min(len(chunks), len(under_test.receiver.batches)) > 10
