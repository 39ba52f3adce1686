"""Stands between an LMCache server and its coordinator: hears what the server tells, and hands it on.

A server tells one coordinator of each change of what it holds, and forgets what could not be delivered. The relay takes it
at once, so that the server never waits, and keeps it until the coordinator has it. A coordinator that starts anew gets the
last seconds again, which it may not have put into its checkpoint; it knows what it has by the numbers. Other calls pass
through. While there is no coordinator the relay welcomes the server itself. Knows HTTP, and what it hears only as
`contents.Events`.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import NamedTuple

import aiohttp
import msgspec
from aiohttp import web

from components.lmcache.contents import Events

log = logging.getLogger(__name__)

EVENT_PATHS = ("/events", "/directory/events")
"""Of LMCache 0.5.6, and of 0.5.3."""
_MAX_BODY_BYTES = 256 * 2**20
_MAX_KEPT_BYTES = 64 * 2**20
_RECENT_S = 3.0
_RETRY_S = 0.5
_TIMEOUT_S = 5.0
_MOST_TRIES = 3  # of a report that a coordinator fails at


class _Report(NamedTuple):
    path: str
    body: bytes


class Relay:
    """One server's relay, on a loopback port of its own.

    Attributes:
        url: what the server shall take for its coordinator; once open.
    """

    def __init__(
        self, coordinator: str, hear: Callable[[Events], Awaitable[None]], max_kept_bytes: int = _MAX_KEPT_BYTES
    ) -> None:
        """Prepare, without listening yet.

        Args:
            coordinator: its URL; empty without one.
            hear: gets what the server tells, in order.
            max_kept_bytes: most of what the coordinator has not taken yet; the oldest goes, and leaves a gap.
        """
        self.url = ""
        self._coordinator = coordinator
        self._hear = hear
        self._max_kept_bytes = max_kept_bytes
        self._kept: deque[_Report] = deque()
        self._kept_bytes = 0
        self._recent: deque[tuple[float, _Report]] = deque()
        self._more = asyncio.Event()
        self._opened = AsyncExitStack()
        self._http: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Listen from now on.

        Raises:
            OSError: there is no port.
        """
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        for path in EVENT_PATHS:
            app.router.add_post(path, self._on_events)
        app.router.add_route("*", "/{path:.*}", self._pass_on if self._coordinator else self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._opened.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._http = await self._opened.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))
        )

    async def close(self) -> None:
        """Listen no more."""
        await self._opened.aclose()

    async def run(self) -> None:
        """Deliver what the server tells to the coordinator, for ever."""
        tries = 0
        while True:
            await self._more.wait()
            while self._kept:
                report, tries = self._kept[0], tries + 1
                try:
                    taken = await self._deliver(report)
                except aiohttp.ClientError:
                    self._again()
                    taken, tries = False, 0
                if not taken and tries < _MOST_TRIES:
                    await asyncio.sleep(_RETRY_S)
                    continue
                if not taken:
                    log.warning("the coordinator does not take a report", extra={"bytes": len(report.body)})
                tries = 0
                self._delivered(report)
            self._more.clear()

    async def _on_events(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self._coordinator:
            self._keep(_Report(request.path, body))
        try:
            events = msgspec.json.decode(body, type=Events)
        except msgspec.DecodeError as error:
            log.warning("the LMCache server's events make no sense", extra={"error": str(error)})
        else:
            await self._hear(events)
        return web.json_response({})

    async def _pass_on(self, request: web.Request) -> web.Response:
        """Hand any other call to the coordinator, and its answer back."""
        if self._http is None:
            raise web.HTTPServiceUnavailable
        body = await request.read()
        url, headers = f"{self._coordinator}{request.path_qs}", {"Content-Type": request.content_type}
        try:
            async with self._http.request(request.method, url, data=body, headers=headers) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
        except (aiohttp.ClientError, TimeoutError):
            self._again()
            return await self._answer(request)

    async def _answer(self, request: web.Request) -> web.Response:
        """Welcome a server that registers, and its heartbeats; a coordinator that comes has it register again."""
        if request.method == "GET":
            raise web.HTTPServiceUnavailable(text="there is no coordinator")
        body = msgspec.json.decode(await request.read() or b"{}", type=dict[str, object])
        return web.json_response({"instance_id": body.get("instance_id", ""), "re_registered": False})

    def _keep(self, report: _Report) -> None:
        self._kept.append(report)
        self._kept_bytes += len(report.body)
        while self._kept_bytes > self._max_kept_bytes:
            self._kept_bytes -= len(self._kept.popleft().body)
        self._more.set()

    async def _deliver(self, report: _Report) -> bool:
        """Return whether the coordinator takes a report, or refuses it for good.

        Raises:
            aiohttp.ClientError: there is no coordinator.
        """
        if self._http is None:
            return False
        url, headers = f"{self._coordinator}{report.path}", {"Content-Type": "application/json"}
        try:
            async with self._http.post(url, data=report.body, headers=headers) as answer:
                if answer.status >= 400:
                    log.warning("the coordinator refuses a report", extra={"status": answer.status})
                return answer.status < 500
        except TimeoutError:
            return False

    def _delivered(self, report: _Report) -> None:
        now_s = time.monotonic()
        if self._kept and self._kept[0] is report:  # else it made room meanwhile
            self._kept_bytes -= len(self._kept.popleft().body)
        self._recent.append((now_s, report))
        while self._recent[0][0] < now_s - _RECENT_S:
            self._recent.popleft()

    def _again(self) -> None:
        """The coordinator is away: it may have forgotten the last of what it took."""
        while self._recent:
            _, report = self._recent.pop()
            self._kept.appendleft(report)
            self._kept_bytes += len(report.body)
            self._more.set()
