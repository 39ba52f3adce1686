"""The frame of an HTTP server, around routes of the test's own."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from components.graph.keys import ApiKeys
from components.http.edge import API_KEY, REQUEST_ID, Edge, Limits, json_response
from components.http.server import Address, ListenError, listen
from components.wire.errors import OverloadedError
from tests.support.edge import free_port

LIMITS = Limits(max_body_bytes=1000, stall_timeout_s=0.5)


class Routes:
    """Some good and some bad routes, and what the edge said was answered."""

    def __init__(self, keys: list[str]) -> None:
        self.answered: list[tuple[str, int]] = []
        self.edge = Edge(ApiKeys(keys), LIMITS, lambda route, status: self.answered.append((route, status)))

    def make(self) -> web.Application:
        return self.edge.application(
            [
                web.get("/health", self.health),
                web.post("/echo", self.echo),
                web.get("/bug", self.bug),
                web.get("/busy", self.busy),
                web.get("/late", self.late),
                web.get("/endless", self.endless),
                web.get("/socket", self.socket),
            ]
        )

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def echo(self, request: web.Request) -> web.Response:
        body = await self.edge.read(request)
        return json_response({"bytes": len(body), "key": request[API_KEY], "id": request[REQUEST_ID]})

    async def bug(self, request: web.Request) -> web.Response:
        raise ValueError(f"the secret is {request.query['secret']}")

    async def busy(self, _: web.Request) -> web.Response:
        raise OverloadedError("too much to do", retry_after_s=7)

    async def late(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await self.edge.write(request, response, b"begun")
        raise ValueError("too late for a status")

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await self.edge.write(request, response, bytes(1 << 20))

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        async for message in response:
            await response.send_str(message.data)
        return response


@asynccontextmanager
async def serving(*keys: str) -> AsyncIterator[tuple[Routes, aiohttp.ClientSession]]:
    """Serve the routes, and give a client of theirs."""
    routes, port = Routes(list(keys)), free_port()
    runner = await listen(routes.make(), Address("127.0.0.1", port), drain_s=0.1)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            yield routes, client
    finally:
        await runner.cleanup()


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the error in `response`, whose shape is checked."""
    error: dict[str, Any] = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return error


async def test_a_bug_in_a_route_costs_one_request_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """500 in the shape of all errors; the log says where, and repeats nothing that was sent; the server goes on."""
    with caplog.at_level(logging.ERROR):
        async with serving() as (routes, client):
            async with client.get("/bug?secret=sk-secret") as response:
                assert (response.status, (await error_of(response))["code"]) == (500, "internal")
                assert "sk-secret" not in await response.text()
            assert (await client.get("/health")).status == 200
    assert routes.answered == [("/bug", 500), ("/health", 200)]
    assert [record.getMessage() for record in caplog.records] == ["a request failed"]
    assert "ValueError" in str(vars(caplog.records[0])["error"])
    assert "sk-secret" not in str(vars(caplog.records[0]))


async def test_a_bug_after_the_first_byte_closes_the_connection() -> None:
    """No second response follows in the first one."""
    async with serving() as (routes, client):
        async with client.get("/late") as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        assert routes.answered == [("/late", 499)]


async def test_errors_keep_their_code_and_headers() -> None:
    """Ours, and aiohttp's own."""
    async with serving() as (_, client):
        async with client.get("/busy") as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "7")
            assert (await error_of(response))["type"] == "rate_limit_error"
        for method, path, status, code in (
            ("GET", "/nothing", 404, "not_found"),
            ("GET", "/echo", 405, "method_not_allowed"),
            ("POST", "/echo", 413, "body_too_large"),
        ):
            async with client.request(method, path, data=bytes(1001) if status == 413 else None) as response:
                assert (response.status, (await error_of(response))["code"]) == (status, code)


async def test_a_key_opens_everything_but_the_probes() -> None:
    """Routes are told which key it was; an id that was sent is kept, without what an id may not hold."""
    async with serving("one", "two") as (_, client):
        assert (await client.get("/health")).status == 200
        for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}):
            async with client.post("/echo", headers=headers) as response:
                assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert (await error_of(response))["code"] == "invalid_api_key"
        headers = {"Authorization": "Bearer two", "x-request-id": "a/b c-1"}
        async with client.post("/echo", data=b"abc", headers=headers) as response:
            assert await response.json() == {"bytes": 3, "key": "two", "id": "abc-1"}
            assert response.headers["x-request-id"] == "abc-1"


async def test_a_web_socket_needs_a_key_as_well() -> None:
    """It is refused at the handshake; with a key it outlives the time a head may take."""
    async with serving("one") as (_, client):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await client.ws_connect("/socket")
        async with client.ws_connect("/socket", headers={"Authorization": "Bearer one"}) as ws:
            await asyncio.sleep(2 * LIMITS.stall_timeout_s)
            await ws.send_str("still here")
            assert await ws.receive_str(timeout=5) == "still here"


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """The route ends, so nothing is held for it any more."""
    async with serving() as (routes, client):
        async with client.get("/endless"), asyncio.timeout(10):
            while not routes.answered:
                await asyncio.sleep(0.02)
        assert routes.answered == [("/endless", 499)]


async def test_what_cannot_be_listened_on_names_the_setting(tmp_path: Path) -> None:
    """A port that is taken, a certificate that is none."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"^port: cannot listen on 127\.0\.0\.1:{port}: .*[Ii]n use"):
            await listen(Routes([]).make(), Address("127.0.0.1", port), drain_s=0.1)
    (tmp_path / "cert.pem").write_text("nothing")
    address = Address("127.0.0.1", 0, str(tmp_path / "cert.pem"), str(tmp_path / "cert.pem"))
    with pytest.raises(ListenError, match=r"^tls_cert_file: cannot be used"):
        await listen(Routes([]).make(), address, drain_s=0.1)
