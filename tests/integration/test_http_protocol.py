"""What is no HTTP, or comes too slowly, is refused in OpenAI's shape; nothing that was sent is repeated."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from components.graph.schema import Nats
from tests.support.edge import edge
from tests.support.nats import nats_server
from tests.support.raw_http import converse

SECRET = b"sk-secret"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-secret\r\n"


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A private NATS server."""
    async with nats_server(tmp_path) as settings:
        yield settings


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nsk-secret", id="two lengths"),
        pytest.param(POST + b"Content-Length: -5\r\n\r\nsk-secret", id="a negative length"),
        pytest.param(POST + b"Content-Length: sk-secret\r\n\r\n", id="no length"),
        pytest.param(POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nsk-secret", id="length and chunks"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\nsk-secret\r\n\r\n", id="bad chunks"),
        pytest.param(
            POST + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}sk-secret sk-secret\r\n\r\n", id="a lying length"
        ),
        pytest.param(POST + b"X-Long: " + SECRET * 2000 + b"\r\n\r\n", id="a long header"),
        pytest.param(POST + b"X-Many: sk-secret\r\n" * 500 + b"\r\n", id="many headers"),
        pytest.param(b"GET /" + SECRET * 2000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="a long URL"),
        pytest.param(b"SK-SECRET! sk-secret HTTP/1.1\r\nHost: x\r\n\r\n", id="an unknown method"),
        pytest.param(b"\x16\x03\x01sk-secret\r\n\r\n", id="TLS"),
        pytest.param(POST + b"sk-secret\r\n\r\n", id="a header without a colon"),
        pytest.param(POST + b"Expect: sk-secret\r\nContent-Length: 2\r\n\r\n{}", id="an expectation"),
        pytest.param(
            POST + b"Content-Encoding: gzip\r\nConnection: close\r\nContent-Length: 9\r\n\r\nsk-secret", id="no gzip"
        ),
        pytest.param(POST + b"Content-Encoding: br\r\nConnection: close\r\nContent-Length: 9\r\n\r\nsk-secret", id="no br"),
    ],
)
async def test_what_is_no_http_is_refused_without_repeating_it(
    nats: Nats, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither to the client nor to the log."""
    async with edge(nats) as server:
        received = await converse(server.port, sent)
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), received
        assert b"application/json" in head
        assert received.count(b"HTTP/1.") == 1 or sent.endswith(b"sk-secret sk-secret\r\n\r\n"), received
        error = msgspec.json.decode(body.split(b"HTTP/1.")[0])["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert SECRET not in received.lower()
        assert b"text/plain" not in received
        assert "sk-secret" not in caplog.text
        assert (await server.http.get(server.url + "/health")).status == 200


@pytest.mark.parametrize("drip", [[b""], [b"GET /"] + [b"a"] * 20, [b"GET /health HTTP/1.1\r\n"] + [b"X-A: b\r\n"] * 20])
async def test_a_head_that_does_not_come_is_not_waited_for(nats: Nats, drip: list[bytes]) -> None:
    """Nothing at all, or a byte now and then: the connection is closed when the time is over."""
    async with edge(nats, client_stall_timeout_s=0.5) as server:
        began_s = time.monotonic()
        assert await converse(server.port, *drip, pause_s=0.1) == b""
        assert 0.4 < time.monotonic() - began_s < 3.0


async def test_a_second_head_must_come_in_time_too(nats: Nats) -> None:
    """A connection may be idle between requests, for longer than a head may take; but not within a head."""
    async with edge(nats, client_stall_timeout_s=0.5) as server:
        whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        received = await converse(server.port, whole, b"", b"", whole, *([b"G", b"E"] * 10), pause_s=0.3)
        assert received.count(b"HTTP/1.1 200 OK") == 2
        assert received.count(b"HTTP/1.1") == 2


async def test_a_body_too_long_by_its_own_account_is_refused_at_once(nats: Nats) -> None:
    """Before any of it came; both numbers are told."""
    async with edge(nats, max_body_bytes=1000) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(POST + b"Content-Length: 123456789\r\n\r\n")
        async with asyncio.timeout(2):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readuntil(b"}}")
        writer.close()
        assert head.startswith(b"HTTP/1.1 413 ")
        error = msgspec.json.decode(body)["error"]
        assert error["code"] == "body_too_large"
        assert "123456789" in error["message"]
        assert "1000" in error["message"]


async def test_a_body_that_does_not_come_is_a_408(nats: Nats) -> None:
    """It may come whole another time; the request itself may be good."""
    async with edge(nats, client_stall_timeout_s=0.3) as server:
        received = await converse(server.port, POST + b"Connection: close\r\nContent-Length: 10\r\n\r\n{")
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in received
