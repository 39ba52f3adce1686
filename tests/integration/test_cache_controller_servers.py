"""The cache controller in front of a real LMCache server and coordinator, as a graph runs them."""

import asyncio
import time
from itertools import count
from pathlib import Path

import aiohttp
import pytest

from tests.support.cache_controller import Api, controller, until
from tests.support.lmcache_fleet import CHUNK, MODEL, fleet

PROMPT = list(range(200, 800))  # nine full chunks and a tail
FULL = len(PROMPT) // CHUNK * CHUNK


async def held(api: Api, tokens: list[int] = PROMPT) -> dict[str, tuple[str, int]]:
    """Return what each server holds of a prompt."""
    matches = (await api.post("/full_lookup", tokens=tokens))["matches"]
    return {each["instance_id"]: (each["location"], each["matched_tokens"]) for each in matches}


@pytest.mark.timeout(300)
async def test_a_fleet_is_listed_looked_up_and_cleared_and_outlives_its_parts() -> None:
    """Engines are listed, stores found, clear empties; coordinator, server and engine may be restarted in turn."""
    async with fleet() as lmcache, controller(coordinators=[lmcache.coordinator_url], worker_timeout_s=4.0) as api:
        before = time.time()
        await until(lambda: api.workers("kv"))
        [info] = await api.workers("kv")
        assert set(info) == {
            "instance_id",
            "worker_id",
            "ip",
            "port",
            "peer_init_url",
            "registration_time",
            "last_heartbeat_time",
        }
        assert (info["worker_id"], info["ip"], info["port"]) == (0, "127.0.0.1", lmcache.settings.http_port)
        assert before - 60 < info["registration_time"] <= info["last_heartbeat_time"]
        [view] = (await api.get("/controller/workers"))["workers"]
        assert (view["kind"], view["details"]) == ("server", {"model_name": MODEL, "world_size": 1})

        assert await held(api) == {}
        await lmcache.store(PROMPT)

        async def found() -> bool:
            return await held(api) == {"kv": ("l1", FULL)}

        await until(found)
        answer = await api.post("/lookup", tokens=[*PROMPT, 7])
        assert answer["layout_info"] == {"kv": ["l1", FULL]}
        assert "warnings" not in answer
        assert await held(api, [5, *PROMPT]) == {}
        assert (await api.post("/health", instance_id="kv"))["error_codes"] == {"0": 0}

        cleared = await api.post("/clear", instance_id="kv", location="LocalCPUBackend")
        assert cleared["num_tokens"] == FULL
        assert await lmcache.readable(PROMPT) == 0

        async def empty() -> bool:
            return await held(api) == {}

        await until(empty)
        for path, body in (("/clear", {}), ("/pin", {"tokens": PROMPT}), ("/compress", {"method": "m"})):
            await api.post(path, 400, instance_id="kv", location="moon", **body)

        # Without its coordinator a server is still there; what it holds cannot be looked up, and the answer says so.
        await lmcache.store(PROMPT)
        await until(found)
        await lmcache.kill("coordinator")

        async def warned() -> bool:
            return bool((await api.post("/full_lookup", tokens=PROMPT))["warnings"])

        await until(warned)
        assert len(await api.workers("kv")) == 1
        await lmcache.start_coordinator()

        async def forgot() -> bool:
            warnings = (await api.post("/full_lookup", tokens=PROMPT))["warnings"]
            return any("its coordinator" in each for each in warnings)

        await until(forgot)
        await lmcache.store(list(range(100)))

        # A server that dies is forgotten; a new one of its name is found.
        await lmcache.kill("server")

        async def gone() -> bool:
            return not await api.workers("kv")

        await until(gone)
        await api.post("/clear", 404, instance_id="kv", location="l1")
        await lmcache.kill("engine")
        await lmcache.start_server()
        await lmcache.start_engine()
        await until(lambda: api.workers("kv"))
        await lmcache.store(PROMPT)
        await until(found)


@pytest.mark.timeout(200)
async def test_a_coordinator_with_a_file_knows_everything_again(tmp_path: Path) -> None:
    """As a graph runs it: killed and started anew, it knows what was stored before, meanwhile and after."""
    coordinated = fleet(tmp_path / "checkpoint", relayed=True)
    async with coordinated as lmcache, controller(coordinators=[lmcache.coordinator_url]) as api:
        await until(lambda: api.workers("kv"))
        await lmcache.store(PROMPT)
        await until(lambda: _has(tmp_path / "checkpoint", MODEL.encode()))
        await until(lambda: held(api))
        last, away, after = ([token + shift for token in PROMPT] for shift in (1000, 2000, 3000))
        await lmcache.store(last)
        await until(lambda: held(api, last))
        await lmcache.kill("coordinator")  # less than a second later: not in the checkpoint yet
        await lmcache.store(away)
        await lmcache.start_coordinator()

        async def found() -> bool:
            answers = [await api.post("/full_lookup", tokens=tokens) for tokens in (PROMPT, last, away)]
            return all(answer["matches"] and not answer["warnings"] for answer in answers)

        await until(found)
        await lmcache.store(after)
        await until(lambda: held(api, after))


@pytest.mark.timeout(120)
async def test_a_relay_hears_what_a_server_stores_evicts_and_clears() -> None:
    """As it happens, by the server's own word; whether there is a coordinator does not matter."""
    async with fleet(relayed=True) as lmcache, aiohttp.ClientSession() as http:
        await lmcache.store(PROMPT)
        chunks = FULL // CHUNK

        async def stored() -> bool:
            return len(lmcache.held) == chunks

        await until(stored)
        assert lmcache.held == set(await lmcache.names(PROMPT))  # so workers know what the server speaks of
        first = set(lmcache.held)
        await lmcache.kill("coordinator")
        steps = count(1)

        async def evicted() -> bool:
            step = next(steps)
            await lmcache.store([step * 10_000 + index for index in range(50 * CHUNK)])
            return not first & lmcache.held

        await until(evicted, timeout_s=60)
        assert await lmcache.readable(PROMPT) == 0
        async with http.post(f"http://127.0.0.1:{lmcache.settings.http_port}/cache/clear", json={"tier": "l1"}) as answer:
            assert answer.status == 200

        async def empty() -> bool:
            return not lmcache.held

        assert await until(empty) < 10


async def _has(file: Path, words: bytes) -> bool:
    return words in await asyncio.to_thread(file.read_bytes) if await asyncio.to_thread(file.exists) else False


@pytest.mark.timeout(200)
async def test_a_pinned_prompt_outlives_pressure_until_it_is_cleared() -> None:
    """A level that is filled over and over keeps what is pinned, and nothing else of that age."""
    async with fleet() as lmcache, controller(coordinators=[lmcache.coordinator_url]) as api:
        await until(lambda: api.workers("kv"))
        other = [token + 1000 for token in PROMPT]
        await lmcache.store(PROMPT)
        await lmcache.store(other)
        assert (await api.post("/pin", instance_id="kv", location="l1", tokens=PROMPT))["num_tokens"] == FULL
        again = await api.post("/pin", instance_id="kv", location="LocalCPUBackend", tokens=PROMPT)
        assert again["num_tokens"] == FULL
        steps = count(1)

        async def other_is_gone() -> bool:
            step = next(steps)
            await lmcache.store([step * 10_000 + index for index in range(50 * CHUNK)])
            return await held(api, other) == {}

        await until(other_is_gone, timeout_s=60)
        assert await held(api) == {"kv": ("l1", FULL)}
        assert await lmcache.readable(PROMPT) == FULL
        await api.post("/clear", instance_id="kv", location="l1")
        assert await lmcache.readable(PROMPT) == 0


@pytest.mark.timeout(120)
async def test_a_frozen_server_is_a_504_in_time() -> None:
    """The call ends by its timeout, others are answered meanwhile. A frozen coordinator is a warning, in time too."""
    async with fleet() as lmcache, controller(coordinators=[lmcache.coordinator_url], request_timeout_s=1.0) as api:
        await until(lambda: api.workers("kv"))
        lmcache.freeze("server")
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(api.post("/clear", 504, instance_id="kv", location="l1"))
            assert await api.workers("kv")
            assert "has not answered" in (await call)["error"]["message"]
        lmcache.freeze("coordinator")
        assert any("cannot be asked" in each for each in (await api.post("/full_lookup", tokens=PROMPT))["warnings"])
        assert time.monotonic() - began < 10


async def test_a_coordinator_that_is_not_there_is_a_warning() -> None:
    """In-process workers are answered for all the same."""
    async with controller(coordinators=["http://127.0.0.1:9"]) as api:
        answer = await api.post("/lookup", tokens=PROMPT)
        assert answer["layout_info"] == {}
        assert answer["warnings"] == ["the coordinator http://127.0.0.1:9 does not answer"]
