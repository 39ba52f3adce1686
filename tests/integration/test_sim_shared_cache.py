"""Simulated engines that share a cache through a server process: one computes, the other loads; the server may die."""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from components.engine.protocol import EngineInfo, EngineStartError
from components.engine.sim import SimEngine
from components.engine.sim_shared import SharedFile
from components.engine.sim_table import table_path
from components.engine.sim_timing import load_timing
from components.graph import schema
from components.model.folder import model_folder
from components.model.tokenizer import Tokenizer
from components.wire.block_hash import block_hashes, root_hash
from components.wire.kv import KvCleared, KvStored, Tier
from tests.support.engine_contract import EngineContract, ask, load_becomes, make_prompt, make_request, metric

FAST = schema.SimEngine(speed=20.0, max_model_len=1024, kv_blocks=256)
PORT = 5555


@pytest.fixture(scope="module")
def part() -> str:
    """The name of a graph that is nobody else's."""
    return f"test-{secrets.token_hex(4)}"


@asynccontextmanager
async def cache_server(part: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a server; it goes away in good order unless it was killed."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.cache_server", part, str(PORT)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        assert await asyncio.wait_for(server.stdout.readline(), 30) == b"ready\n"
        yield server
    finally:
        server.stdin.close()
        await asyncio.wait_for(server.wait(), 30)


@asynccontextmanager
async def engine_of(part: str, chunk_tokens: int = 64, settings: schema.SimEngine = FAST) -> AsyncIterator[SimEngine]:
    """Run an engine of the graph."""
    engine = SimEngine("demo", settings, 32, kv_events=True, shared=SharedFile(table_path(part, PORT), chunk_tokens))
    await engine.start(lambda _: None)
    yield engine
    await engine.stop()


@pytest.fixture
async def server(part: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server, for one test."""
    async with cache_server(part) as server:
        yield server


@pytest.fixture
async def engine(part: str, server: asyncio.subprocess.Process) -> AsyncIterator[SimEngine]:
    """A started engine."""
    async with engine_of(part) as engine:
        yield engine


@pytest.fixture
async def other(part: str, server: asyncio.subprocess.Process) -> AsyncIterator[SimEngine]:
    """Another one beside it."""
    async with engine_of(part) as engine:
        yield engine


@pytest.fixture
async def fresh_engine(engine: SimEngine) -> SimEngine:
    """Every test has an engine of its own."""
    return engine


@pytest.fixture
def info() -> EngineInfo:
    """What `start` returns."""
    return EngineInfo("sim", max_model_len=1024, block_size=32, kv_blocks=256)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The demo model's tokenizer."""
    return Tokenizer(model_folder("demo"))


class TestSimEngineWithSharedCache(EngineContract):
    """The contract holds with a shared cache too."""


class SharedMirror:
    """What somebody knows of the shared cache who hears one engine."""

    def __init__(self, engine: SimEngine) -> None:
        self.blocks: set[int] = set()
        self._engine = engine

    async def listen(self) -> None:
        """Follow the engine until it ends."""
        async for update in self._engine.kv_updates():
            for change in update.changes:
                assert not isinstance(change, KvCleared)
                if change.tier is not Tier.SHARED:
                    continue
                if isinstance(change, KvStored):
                    assert change.parent is None or change.parent in self.blocks
                    self.blocks.update(change.blocks)
                else:
                    self.blocks.difference_update(change.blocks)

    async def becomes(self, blocks: list[int]) -> None:
        """Wait until just `blocks` are known."""
        async with asyncio.timeout(10):
            while self.blocks != set(blocks):
                await asyncio.sleep(0.01)


async def test_one_computes_and_the_other_loads(engine: SimEngine, other: SimEngine) -> None:
    """The second engine computes the tail only, says the same, and counts what it loaded; salts stay apart."""
    prompt = make_prompt(300)
    request = make_request(prompt)
    assert await other.shared_tokens(request) == 0
    first = await ask(engine, request)
    assert await other.shared_tokens(request) == 4 * 64
    assert await other.shared_tokens(make_request(prompt[:128])) == 128
    assert await other.shared_tokens(make_request(prompt, cache_salt="a")) == 0
    second = await ask(other, make_request(prompt))
    assert (first.cached_tokens, second.cached_tokens) == (0, 256)
    assert first.token_ids == second.token_ids
    assert metric(other, "vllm:external_prefix_cache_queries_total") == 300
    assert metric(other, "vllm:external_prefix_cache_hits_total") == 256
    assert metric(other, "vllm:prefix_cache_hits_total") == 0
    assert (await ask(other, make_request(prompt, cache_salt="a"))).cached_tokens == 0


async def test_a_prefill_leaves_its_kv_behind(engine: SimEngine, other: SimEngine) -> None:
    """A request for one token is enough: once it is answered, the chunks are there, and the engine has told of them."""
    heard = SharedMirror(engine)
    listening = asyncio.create_task(heard.listen())
    prompt = make_prompt(200)
    await ask(engine, make_request(prompt, max_tokens=1))
    assert await engine.shared_tokens(make_request(prompt)) == 192
    await heard.becomes(block_hashes(prompt[:192], 32, root_hash("demo")))
    assert (await ask(other, make_request(prompt))).cached_tokens == 192
    await engine.stop()
    await asyncio.wait_for(listening, 2)


async def test_loading_holds_up_nobody_else(engine: SimEngine, part: str, tmp_path: Path) -> None:
    """A request waits, and holds room, while its KV is loaded; others are served, and if it goes away it gives all back."""
    hours = msgspec.structs.replace(load_timing("h200-8b"), shared_hit_ms=1e9)
    table = tmp_path / "hours.json"
    await asyncio.to_thread(table.write_bytes, msgspec.json.encode(hours))
    prompt = make_prompt(1000)
    await ask(engine, make_request(prompt, max_tokens=1))
    async with engine_of(part, settings=msgspec.structs.replace(FAST, timing=str(table))) as slow:
        loading = asyncio.create_task(ask(slow, make_request(prompt)))
        await load_becomes(slow, lambda load: load.kv_usage == 30 / 256 and load.waiting_requests == 1)
        assert len((await ask(slow, make_request(make_prompt(50)))).token_ids) == 16
        assert slow.load().waiting_requests == 1
        loading.cancel()
        await asyncio.wait([loading])
        await load_becomes(slow, lambda load: load.kv_usage == load.waiting_requests == load.running_requests == 0)


async def test_the_server_dies_and_comes_back(part: str) -> None:
    """Without a server engines compute; a new one begins with nothing, and what was told of the old one is withdrawn."""
    prompt, request = make_prompt(300), make_request(make_prompt(300))
    async with engine_of(part) as engine, engine_of(part) as other:
        heard = SharedMirror(engine)
        listening = asyncio.create_task(heard.listen())
        assert (await ask(engine, make_request(prompt))).cached_tokens == 0
        assert await other.shared_tokens(make_request(prompt)) == 0
        async with cache_server(part) as server:
            assert await other.shared_tokens(make_request(prompt)) == 0
            answer = await ask(engine, request)
            assert await other.shared_tokens(request) == 256
            shared = block_hashes(request.token_ids[:256], 32, root_hash("demo"))
            await heard.becomes(shared)
            server.kill()
            await server.wait()
            assert await other.shared_tokens(request) == 0
            await heard.becomes([])
            again = await ask(other, make_request(request.token_ids))
            assert (again.cached_tokens, again.token_ids) == (0, answer.token_ids)
        async with cache_server(part):
            assert await other.shared_tokens(request) == 0
            await ask(other, make_request(prompt))
            assert await engine.shared_tokens(make_request(prompt)) == 256
    await asyncio.wait_for(listening, 2)


async def test_chunks_are_whole_blocks(part: str) -> None:
    """A chunk that is no whole number of blocks is refused by the setting's name."""
    with pytest.raises(EngineStartError, match=r"lmcache\.chunk_tokens: must be a multiple of kv\.block_size 32, not 48"):
        async with engine_of(part, chunk_tokens=48):
            pytest.fail("it started")
