"""KV events of real vLLM engines over a real NATS server: what a router knows is what the engines reuse, block for block."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from components.bus.client import Bus
from components.engine.protocol import EngineInfo, EngineStartError
from components.engine.vllm import VllmEngine
from components.graph import schema
from components.wire.block_hash import block_hashes, root_hash
from components.wire.subjects import Subjects
from components.worker.kv_publisher import KvPublisher
from tests.support.engine_contract import Answer, ask, make_request
from tests.support.kv_receiver import KvReceiver, blocks
from tests.support.nats import nats_server

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

SUBJECTS = Subjects("test")
SIZE = 32


class Worker:
    """One engine, its publisher, and somebody who listens.

    Attributes:
        info: what the engine is.
        registry: its metrics.
    """

    def __init__(self, name: str, engine: VllmEngine, info: EngineInfo, receiver: KvReceiver, registry: CollectorRegistry):
        self.info = info
        self.registry = registry
        self._name = name
        self._engine = engine
        self._receiver = receiver

    def predicted(self, prompt: list[int], salt: str | None = None) -> int:
        """Return how many tokens of `prompt` the engine will reuse, as far as is known; it always computes the last one."""
        hashes = block_hashes(prompt, SIZE, root_hash("demo", None, salt))
        found = self._receiver.index.overlap(hashes).get(self._name, 0)
        return min(found, (len(prompt) - 1) // SIZE) * SIZE

    async def ask(self, prompt: list[int], salt: str | None = None, max_tokens: int = 8) -> Answer:
        """Generate."""
        return await ask(self._engine, make_request(prompt, cache_salt=salt, max_tokens=max_tokens))

    async def hear(self, tokens: list[int], salt: str | None = None) -> None:
        """Wait until the full blocks of `tokens` are known to be held."""
        wanted = set(block_hashes(tokens, SIZE, root_hash("demo", None, salt)))
        async with asyncio.timeout(5):
            while not wanted <= blocks(self._receiver.index, self._name):
                await asyncio.sleep(0.005)

    async def silence(self) -> None:
        """Wait until no event came for a while."""
        heard = -1
        while heard != len(changes := [batch for batch in self._receiver.batches if batch.changes]):
            heard = len(changes)
            await asyncio.sleep(0.15)


@asynccontextmanager
async def workers(folder: Path, hash_seeds: list[str], kv_blocks: int) -> AsyncIterator[list[Worker]]:
    """Run one vLLM engine for each seed of Python's hashes, which vLLM's block hashes begin with."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["HF_HUB_OFFLINE"] = "1"
    settings = schema.VllmEngine(args={"max_model_len": 1024, "num_gpu_blocks_override": kv_blocks}, kv_cache_gb=0.25)
    async with nats_server(folder) as nats, AsyncExitStack() as stack:
        running = []
        for number, seed in enumerate(hash_seeds):
            name, registry = f"w{number}", CollectorRegistry()
            os.environ["PYTHONHASHSEED"] = seed
            engine = VllmEngine("demo", "demo", settings, SIZE, kv_events=True)
            stack.push_async_callback(engine.stop)
            theirs, ours = await Bus.connect(nats, name), await Bus.connect(nats, "r")
            stack.push_async_callback(theirs.close)
            stack.push_async_callback(ours.close)
            receiver = KvReceiver(ours, SUBJECTS, name)
            await receiver.listen()
            info = await engine.start(lambda _: None)
            publisher = KvPublisher(theirs, SUBJECTS, name, "life-1", registry)
            await publisher.listen()
            publishing = asyncio.create_task(publisher.run(engine.kv_updates()))
            stack.callback(publishing.cancel)
            running.append(Worker(name, engine, info, receiver, registry))
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before
        yield running


class Conversations:
    """Random prompts that share prefixes with earlier ones, often within a block, often to the token."""

    def __init__(self, seed: int, max_tokens: int) -> None:
        self._rng = random.Random(seed)
        self._max_tokens = max_tokens
        self._prompts: list[list[int]] = []

    def next(self) -> list[int]:
        """Return the next prompt."""
        rng, known = self._rng, self._prompts
        base = max(rng.choices(known, k=2), key=len) if known and rng.random() < 0.9 else []
        cut = rng.choice([len(base), len(base), rng.randrange(len(base) + 1), rng.randrange(len(base) + 1) // SIZE * SIZE])
        prompt = base[:cut] + [rng.randrange(300, 800) for _ in range(rng.choice([0, 1, SIZE, rng.randrange(400)]))]
        known.append(prompt[: self._max_tokens] or [300])
        return known[-1]

    def salt(self) -> str | None:
        """Return a tenant's salt, or mostly none."""
        return self._rng.choice([None, None, None, "tenant"])

    def answered(self, prompt: list[int], answer: Answer) -> None:
        """Let the conversation go on behind an answer."""
        self._prompts.append((prompt + answer.token_ids)[: self._max_tokens])


async def test_predictions_are_exact(tmp_path: Path) -> None:
    """Two engines whose own hashes differ, 150 random requests each, without eviction: every block was predicted."""
    async with workers(tmp_path, ["1", "2"], kv_blocks=8192) as pair:
        talk, reused = Conversations(seed=11, max_tokens=700), 0
        for _ in range(150):
            prompt, salt = talk.next(), talk.salt()
            answers = []
            for worker in pair:
                expected = worker.predicted(prompt, salt)
                answer = await worker.ask(prompt, salt)
                assert answer.cached_tokens == expected
                await worker.hear((prompt + answer.token_ids)[:-1], salt)
                reused += expected
                answers.append(answer)
            talk.answered(prompt, answers[0])
        assert reused > 10_000
        for worker in pair:
            assert worker.registry.get_sample_value("penstock_worker_kv_complete") == 1
            assert worker.registry.get_sample_value("penstock_worker_kv_orphan_blocks_total") == 0


async def test_predictions_hold_under_eviction(tmp_path: Path) -> None:
    """With room for a few prompts only, many at once, then probed one by one: never more predicted than reused."""
    async with workers(tmp_path, ["0"], kv_blocks=64) as (worker,):
        assert worker.info.kv_blocks == 64
        talk, exact, probes = Conversations(seed=12, max_tokens=900), 0, 0
        for _ in range(12):
            prompts = [talk.next() for _ in range(8)]
            await asyncio.gather(*(worker.ask(prompt, max_tokens=20) for prompt in prompts))
            for prompt in prompts:
                await worker.silence()
                expected = worker.predicted(prompt)
                answer = await worker.ask(prompt)
                assert answer.cached_tokens is not None
                assert expected <= answer.cached_tokens
                probes += 1
                exact += expected == answer.cached_tokens
        assert exact == probes
        assert (worker.registry.get_sample_value("penstock_worker_kv_removed_blocks_total") or 0) > 200


@pytest.mark.parametrize("args", [{"kv_events_config": {"enable_kv_cache_events": True}}, {"data_parallel_size": 2}])
async def test_settings_that_leave_no_place(args: dict[str, object]) -> None:
    """They are refused by name."""
    engine = VllmEngine("demo", "demo", schema.VllmEngine(args=args), SIZE, kv_events=True)
    with pytest.raises(EngineStartError, match=next(iter(args))):
        await engine.start(lambda _: None)
    await engine.stop()
