"""The simulated server: engines find each other's chunks while it lives, and a new one begins with nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from components.engine import sim_server
from components.engine.protocol import EngineStartError
from components.engine.sim_server import SimCacheServer
from components.engine.sim_shared import SharedFile, capacity_chunks
from components.graph.schema import LMCache

SETTINGS = LMCache(port=1, chunk_tokens=64, l1_gb=2.0)
CHUNKS = [11, 12, 13]


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test's table lies: not where those of real graphs are."""
    monkeypatch.setattr(sim_server, "table_path", lambda part, port: tmp_path / f"{part}-{port}")
    return tmp_path / "test-1"


async def started() -> SimCacheServer:
    """Return a server that runs."""
    server = SimCacheServer(SETTINGS, "test")
    assert await server.start(lambda _: None) == "sim"
    return server


@pytest.fixture
async def server() -> AsyncIterator[SimCacheServer]:
    """A server that runs."""
    server = await started()
    yield server
    await server.stop()


def engine(path: Path) -> SharedFile:
    """Return what one engine sees of it."""
    return SharedFile(path, SETTINGS.chunk_tokens)


def metrics(server: SimCacheServer) -> dict[str, float]:
    """Return the server's metrics by name."""
    return {family.name: family.samples[0].value for family in server.metrics()}


async def test_restart(server: SimCacheServer, path: Path) -> None:
    """What one engine stores, another finds; without a server nobody finds or stores anything; a new one is empty."""
    first, second = engine(path), engine(path)
    assert first.store(CHUNKS) == CHUNKS
    assert second.match(CHUNKS) == 3
    await server.stop()
    assert (first.match(CHUNKS), first.store(CHUNKS), first.holds(CHUNKS)) == (0, [], [False] * 3)
    again = await started()
    assert (first.match(CHUNKS), second.match(CHUNKS)) == (0, 0)
    assert second.store(CHUNKS[:2]) == CHUNKS[:2]
    assert first.match(CHUNKS) == 2
    await again.stop()
    await again.stop()
    first.close()
    first.close()


async def test_capacity(server: SimCacheServer, path: Path) -> None:
    """Memory for KV counts as an 8B model's: 2 GiB are 256 chunks of 64 tokens."""
    assert capacity_chunks(SETTINGS) == 256
    assert capacity_chunks(LMCache(l1_gb=0.001)) == 1
    engine(path).store(CHUNKS)
    assert metrics(server) == {
        "lmcache_mp_l1_memory_usage_bytes": 3 * 64 * 128 * 1024,
        "lmcache_mp_l1_usage_ratio": 3 / 256,
        "lmcache_mp_sim_chunks": 3,
        "lmcache_mp_sim_capacity_chunks": 256,
    }
    assert SimCacheServer(SETTINGS, "other").metrics() == []


@pytest.mark.parametrize("replaced", [False, True])
async def test_fails_without_its_file(server: SimCacheServer, path: Path, replaced: bool) -> None:
    """A file that is gone, or not the server's any more, is its end; another's file stays."""
    failed = asyncio.create_task(server.failed())
    await asyncio.sleep(0)
    assert not failed.done()
    await asyncio.to_thread(path.unlink)
    if replaced:
        await asyncio.to_thread(path.touch)
    assert str(path) in await asyncio.wait_for(failed, 10)
    await server.stop()
    assert await asyncio.to_thread(path.exists) == replaced


async def test_one_server_a_port(server: SimCacheServer, path: Path) -> None:
    """A second one is refused by the name of the setting, and harms nobody."""
    engine(path).store(CHUNKS)
    second = SimCacheServer(SETTINGS, "test")
    with pytest.raises(EngineStartError, match=r"lmcache\.port: 1"):
        await second.start(lambda _: None)
    await second.stop()
    assert engine(path).match(CHUNKS) == 3


async def test_nowhere_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear line."""
    monkeypatch.setattr(sim_server, "table_path", lambda *_: Path("/no/such/folder/chunks"))
    with pytest.raises(EngineStartError, match=r"/no/such/folder.*No such file"):
        await SimCacheServer(SETTINGS, "test").start(lambda _: None)
