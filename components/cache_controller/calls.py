"""Calls of LMCache's coordinators and servers over HTTP: each ends in time, with what was expected or with why not."""

import asyncio
from typing import Any

import aiohttp
import msgspec

from components.wire.errors import BadGatewayError, DeadlineExceededError


class Calls:
    """Makes calls.

    Args:
        http: a client; its owner closes it.
        timeout_s: how long a call may take unless it says otherwise.
    """

    def __init__(self, http: aiohttp.ClientSession, timeout_s: float) -> None:
        self._http = http
        self._timeout_s = timeout_s

    async def ask(self, method: str, url: str, kind: Any, body: Any = None, timeout_s: float | None = None) -> Any:
        """Return the answer of a coordinator or a server.

        Raises:
            BadGatewayError: it cannot be reached, refuses, or answers something else.
            DeadlineExceededError: it does not answer in time.
        """
        limit_s = timeout_s or self._timeout_s
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with (
                asyncio.timeout(limit_s),
                self._http.request(method, url, data=data, headers={"Content-Type": "application/json"}) as answer,
            ):
                content = await answer.read()
                if answer.status >= 300:
                    raise BadGatewayError(f"{url} answers {answer.status}: {content[:300].decode(errors='replace')}")
                return msgspec.json.decode(content, type=kind)
        except TimeoutError:
            raise DeadlineExceededError(f"{url} has not answered for {limit_s:g} s") from None
        except aiohttp.ClientError as error:
            raise BadGatewayError(f"{url} cannot be reached: {error}") from None
        except msgspec.DecodeError as error:
            raise BadGatewayError(f"{url} answers what was not expected: {error}") from None
