"""Pins in the first level of multi-process servers, held by a child (`engine/lmcache_pins`) that the first one starts."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Any

from components.wire.errors import BadGatewayError, DeadlineExceededError

_START_TIMEOUT_S = 60.0  # for LMCache's imports
_STOP_TIMEOUT_S = 10.0
_MAX_LINE_BYTES = 1 << 20


class ServerPins:
    """Asks the child."""

    def __init__(self) -> None:
        self._child: Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._pinned: set[str] = set()

    @property
    def holds_any(self) -> bool:
        """Whether anything is pinned anywhere."""
        return bool(self._pinned)

    async def pin(self, url: str, model: str, ranks: int, tokens: list[int]) -> int:
        """Keep what a server holds of a prompt until `release`, or until this process ends. Return how many tokens that is.

        Raises:
            BadGatewayError: the server, or LMCache's client, does not answer.
        """
        self._pinned.add(url)
        return int((await self._ask({"do": "pin", "url": url, "model": model, "ranks": ranks, "tokens": tokens}))["tokens"])

    async def release(self, url: str) -> None:
        """Give back what is held at a server."""
        if url in self._pinned:
            self._pinned.discard(url)
            await self._ask({"do": "release", "url": url})

    async def close(self) -> None:
        """Give everything back."""
        child, self._child = self._child, None
        if child is None or child.stdin is None:
            return
        child.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()

    async def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        async with self._one_at_a_time:
            child = await self._running()
            line = b""
            try:
                async with asyncio.timeout(_START_TIMEOUT_S):
                    if child.stdin is not None and child.stdout is not None:
                        child.stdin.write(json.dumps(command).encode() + b"\n")
                        await child.stdin.drain()
                        line = await child.stdout.readline()
            except TimeoutError:
                child.kill()  # what comes late would be taken for the next answer
                raise DeadlineExceededError("LMCache's client does not answer") from None
            except ConnectionError:
                pass  # it has ended
        if not line:
            raise BadGatewayError("LMCache's client has ended; is LMCache installed here?")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BadGatewayError(answer["error"])
        return answer

    async def _running(self) -> Process:
        if self._child is None or self._child.returncode is not None:
            environment = {**os.environ, "LMCACHE_TRACK_USAGE": "false", "LMCACHE_LOG_LEVEL": "ERROR"}
            words = [sys.executable, "-m", "components.engine.lmcache_pins"]
            self._child = await asyncio.create_subprocess_exec(
                *words, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, limit=_MAX_LINE_BYTES
            )
        return self._child
