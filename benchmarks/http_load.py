"""A load generator that costs little: HTTP/1.1 over kept connections, bodies made beforehand, answers only skimmed.

It runs on the cores of what it measures, where aiohttp's client takes as much time for a request as some of the servers. It
reads what these servers send (a length, or chunks), and is no HTTP client for anything else.
"""

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

_LAST_CHUNK = b"0\r\n\r\n"
_TEXT = b'"content":"'


@dataclass
class Load:
    """What came of one load.

    Attributes:
        took_s: from the first request to the last answer.
        ttft_s: until the first text of each streamed answer, or until the whole of one that is not streamed.
        failed: answers with another status than 200, or cut off.
    """

    took_s: float = 0.0
    ttft_s: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.ttft_s) / self.took_s if self.took_s else 0.0


class _Connection(asyncio.Protocol):
    """One kept connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket
        self._answered: asyncio.Future[None] | None = None
        self._head = b""
        self._body_left = 0
        self._chunked = False
        self._tail = b""
        self._first_s = 0.0
        self._closed = False
        self.status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._socket = transport.get_extra_info("socket")

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._end(ConnectionResetError("the server closed the connection"))

    async def ask(self, request: bytes) -> float:
        """Send a request and wait for its answer; returns when its first text came, on the performance counter."""
        if self._transport is None or self._closed:
            raise ConnectionResetError("the server closed the connection")
        self._head, self._tail, self._first_s, self.status = b"", b"", 0.0, 0
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answered
        return self._first_s or time.perf_counter()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        # Servers that leave Nagle's algorithm on would wait 40 ms for the acknowledgement of a kernel that waits for more.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if not self.status:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[:end].lower(), self._head[end + 4 :]
            self.status = int(head[9:12])
            self._chunked = b"transfer-encoding: chunked" in head
            self._body_left = 0 if self._chunked else int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if not self._chunked:
            self._body_left -= len(data)
            if self._body_left <= 0:
                self._end(None)
            return
        self._tail = self._tail[-64:] + data
        if not self._first_s and has_text(self._tail):
            self._first_s = time.perf_counter()
        if self._tail.endswith(_LAST_CHUNK):
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            if error is None:
                self._answered.set_result(None)
            else:
                self._answered.set_exception(error)


def has_text(data: bytes) -> bool:
    """Return whether a piece of a stream holds a delta with text."""
    at = data.find(_TEXT)
    while at >= 0:
        after = data[at + len(_TEXT) : at + len(_TEXT) + 1]
        if after and after != b'"':
            return True
        at = data.find(_TEXT, at + 1)
    return False


def request_bytes(url: str, body: bytes) -> bytes:
    """Return a POST of a chat completion as it goes over the wire."""
    host = urlsplit(url).netloc
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def load(url: str, bodies: Sequence[bytes], concurrency: int, seconds: float, wait_s: float = 30.0) -> Load:
    """Ask for `seconds`, `concurrency` at a time, going round and round through `bodies`.

    Raises:
        TimeoutError: the last answers did not come within `wait_s` after the time was up.
    """
    requests = [request_bytes(url, body) for body in bodies]
    found = Load()
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    turn = _round(requests)

    async def one_after_the_other() -> None:
        connection: _Connection | None = None
        try:
            while time.perf_counter() < began + seconds:
                if connection is None:
                    _, connection = await loop.create_connection(_Connection, address.hostname, address.port)
                sent = time.perf_counter()
                try:
                    first = await connection.ask(next(turn))
                except ConnectionError:
                    found.failed += 1
                    connection = None
                    continue
                if connection.status == 200:
                    found.ttft_s.append(first - sent)
                else:
                    found.failed += 1
        finally:
            if connection is not None:
                connection.close()

    async with asyncio.timeout(seconds + wait_s), asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(one_after_the_other())
    found.took_s = time.perf_counter() - began
    return found


def _round(requests: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from requests
