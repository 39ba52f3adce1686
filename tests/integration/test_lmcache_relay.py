"""The relay between an LMCache server and a coordinator that comes, goes, refuses and forgets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from components.lmcache.contents import Events
from components.lmcache.relay import Relay
from tests.support.cache_controller import until
from tests.support.edge import free_port


class Coordinator:
    """What a coordinator gets to hear."""

    def __init__(self) -> None:
        self.port = free_port()
        self.status = 200
        self.heard: list[tuple[str, str]] = []

    @asynccontextmanager
    async def there(self) -> AsyncIterator[None]:
        """It answers meanwhile."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.heard.append((f"{request.method} {request.path_qs}", await request.text()))
        return web.json_response({"is": "the coordinator's"}, status=self.status)


@asynccontextmanager
async def relay(coordinator: str, max_kept_bytes: int = 2**20) -> AsyncIterator[tuple[Relay, list[Events]]]:
    """Run a relay; what it hears is gathered."""
    heard: list[Events] = []

    async def hear(events: Events) -> None:
        heard.append(events)

    running = Relay(coordinator, hear, max_kept_bytes)
    await running.open()
    delivering = asyncio.create_task(running.run())
    try:
        yield running, heard
    finally:
        delivering.cancel()
        await running.close()


async def call(url: str, body: bytes = b"{}", method: str = "POST") -> tuple[int, str]:
    """Do what a server does."""
    async with aiohttp.ClientSession() as http, http.request(method, url, data=body) as answer:
        return answer.status, await answer.text()


async def test_reports_wait_for_the_coordinator_and_are_told_again() -> None:
    """In order, and never in the server's way; after an absence the last ones come again."""
    coordinator = Coordinator()
    async with relay(f"http://127.0.0.1:{coordinator.port}") as (running, heard):
        for path in ("/events", "/directory/events"):
            assert (await call(running.url + path, b'{"batches": []}'))[0] == 200
        assert len(heard) == 2
        assert (await call(f"{running.url}/instances"))[0] == 200
        assert (await call(f"{running.url}/instances", b"", "GET"))[0] == 503
        reports = [("POST /events", '{"batches": []}'), ("POST /directory/events", '{"batches": []}')]

        async def all_heard() -> bool:
            return [each for each in coordinator.heard if "events" in each[0]] == reports

        async with coordinator.there():
            await until(all_heard)
            assert await call(f"{running.url}/instances/kv?a=b", b"x", "PUT") == (200, '{"is": "the coordinator\'s"}')
            assert coordinator.heard[-1] == ("PUT /instances/kv?a=b", "x")
        assert (await call(f"{running.url}/instances/kv/heartbeat", method="PUT"))[0] == 200
        coordinator.heard.clear()
        async with coordinator.there():
            await until(all_heard)


@pytest.mark.parametrize(("status", "again"), [(422, False), (500, True)])
async def test_a_refused_report_is_dropped_and_a_broken_coordinator_asked_again(status: int, again: bool) -> None:
    """The next reports come through in either case."""
    coordinator = Coordinator()
    coordinator.status = status
    async with coordinator.there(), relay(f"http://127.0.0.1:{coordinator.port}") as (running, _):
        await call(f"{running.url}/events", b'{"batches": [], "number": 1}')

        async def came(number: int) -> bool:
            return any(f'"number": {number}' in body for _, body in coordinator.heard)

        await until(lambda: came(1))
        coordinator.status = 200
        coordinator.heard.clear()
        await call(f"{running.url}/events", b'{"batches": [], "number": 2}')
        await until(lambda: came(2))
        assert await came(1) == again


async def test_a_report_that_the_coordinator_always_fails_at_stops_no_other() -> None:
    """It is given up after three tries."""
    coordinator = Coordinator()
    coordinator.status = 500
    async with coordinator.there(), relay(f"http://127.0.0.1:{coordinator.port}") as (running, _):
        for number in (1, 2):
            await call(f"{running.url}/events", b'{"batches": [], "number": %d}' % number)

        async def both_came() -> bool:
            return sum('"number": 2' in body for _, body in coordinator.heard) > 0

        await until(both_came)
        assert sum('"number": 1' in body for _, body in coordinator.heard) == 3


async def test_what_is_kept_is_bounded() -> None:
    """The oldest reports make room."""
    coordinator = Coordinator()
    async with relay(f"http://127.0.0.1:{coordinator.port}", max_kept_bytes=100) as (running, heard):
        for number in range(10, 30):
            await call(f"{running.url}/events", b'{"batches": [], "number": %d}' % number)
        assert len(heard) == 20

        async def last_came() -> bool:
            return any('"number": 29' in body for _, body in coordinator.heard)

        async with coordinator.there():
            await until(last_came)
        assert len(coordinator.heard) < 5


async def test_without_a_coordinator_the_relay_is_one() -> None:
    """A server registers and beats, and is heard; nonsense is ignored."""
    async with relay("") as (running, heard):
        status, text = await call(f"{running.url}/instances", b'{"instance_id": "kv", "http_port": 1}')
        assert (status, text) == (200, '{"instance_id": "kv", "re_registered": false}')
        assert (await call(f"{running.url}/instances/kv/heartbeat", b"", "PUT"))[0] == 200
        for body in (b"no json", b'{"batches": 7}', b'{"batches": []}'):
            assert (await call(f"{running.url}/events", body))[0] == 200
        assert heard == [Events()]
