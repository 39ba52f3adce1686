"""What travels by reference: long payloads and results over HTTP, from and to nobody but the queue and public addresses.

A URL in a frame may come from a stranger. It must not make a worker talk to its own machine or network, nor show the
queue's token to anybody else.
"""

import ipaddress
import socket
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

MAX_BYTES = 64 * 1024 * 1024
_TIMEOUT_S = aiohttp.ClientTimeout(total=60.0, connect=5.0)


class ForbiddenUrlError(Exception):
    """A URL leads where no stranger may send us, or is none."""


class FetchError(Exception):
    """What a URL names cannot be had, or be put there."""


class Fetcher:
    """HTTP for references in frames."""

    def __init__(self, queue_url: str, token: str | None) -> None:
        self._queue = _origin(queue_url)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def __aenter__(self) -> Self:
        self._own = aiohttp.ClientSession(headers=self._headers, timeout=_TIMEOUT_S)
        connector = aiohttp.TCPConnector(resolver=_PublicResolver())
        self._public = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._own.close()
        await self._public.close()

    async def get(self, url: str) -> bytes:
        """Return what is at `url`.

        Raises:
            ForbiddenUrlError: we may not go there.
            FetchError: it cannot be had, or is too long.
        """
        try:
            async with self._session(url).get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise FetchError(f"the payload's URL answers {response.status}")
                data = bytearray()
                async for piece in response.content.iter_chunked(1 << 16):
                    data += piece
                    if len(data) > MAX_BYTES:
                        raise FetchError(f"the payload is longer than {MAX_BYTES} bytes")
                return bytes(data)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FetchError(f"the payload cannot be fetched: {type(error).__name__}") from error

    async def put(self, url: str, data: bytes) -> None:
        """Send `data` to `url`.

        Raises:
            ForbiddenUrlError: we may not go there.
            FetchError: it is not taken.
        """
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session(url).put(url, data=data, headers=headers, allow_redirects=False) as response:
                if response.status >= 300:
                    raise FetchError(f"the result's URL answers {response.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FetchError(f"the result cannot be uploaded: {type(error).__name__}") from error

    def _session(self, url: str) -> aiohttp.ClientSession:
        """Return the session for `url`: with our token to the queue, without it to public addresses."""
        if _origin(url) == self._queue:
            return self._own
        host = urlsplit(url).hostname or ""
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            return self._public  # a name: its addresses are checked when it is resolved
        if not literal.is_global:
            raise ForbiddenUrlError("the URL leads to a private address")
        return self._public


class _PublicResolver(AbstractResolver):
    """Resolves names to public addresses only; what is connected to is what was checked."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Return the public addresses of `host`.

        Raises:
            OSError: it has none.
        """
        found = await self._inner.resolve(host, port, family)
        public = [each for each in found if ipaddress.ip_address(each["host"].partition("%")[0]).is_global]
        if not public:
            raise OSError(None, f"{host} has no public address")
        return public

    async def close(self) -> None:
        """Close."""
        await self._inner.close()


def _origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port.

    Raises:
        ForbiddenUrlError: it is no URL for HTTP.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ForbiddenUrlError("not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ForbiddenUrlError("not a URL of http or https")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)
