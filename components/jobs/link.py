"""A worker's connection to the queue: found again with growing pauses, registered anew, frames handed to the worker."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import aiohttp

from components.jobs.frames import Frame, FrameError, FromQueue, Register, encode, from_queue
from components.jobs.worker_settings import WorkerSettings

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_PING_S = 10.0
_MAX_FRAME_BYTES = 64 * 1024 * 1024
_HANDSHAKE_S = 10.0


class RefusedError(Exception):
    """The queue does not let this worker in."""


class Link:
    """The connection; `run` keeps it.

    Attributes:
        connected: whether there is one now.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        register: Callable[[], Register],
        opened: Callable[[], Awaitable[None]],
        hear: Callable[[FromQueue], Awaitable[None]],
    ) -> None:
        """Prepare.

        Args:
            settings: where, and with which token.
            register: makes the first frame of each connection.
            opened: is called after it.
            hear: is called with each frame, one after the other.
        """
        self._settings = settings
        self._register = register
        self._opened = opened
        self._hear = hear
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._socket is not None and not self._socket.closed

    async def run(self) -> None:
        """Connect, again and again.

        Raises:
            RefusedError: the queue refuses our token.
        """
        token = self._settings.api_token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        pauses = 0
        async with aiohttp.ClientSession(headers=headers) as session:
            while True:
                if await self._connect(session):
                    pauses = 0
                longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**pauses)
                pauses += 1
                await asyncio.sleep(longest_s * random.uniform(0.5, 1.0))

    async def send(self, frame: Frame) -> bool:
        """Send `frame`; returns False when there is no connection."""
        if self._socket is None or self._socket.closed:
            return False
        try:
            await self._socket.send_str(encode(frame))
        except (ConnectionError, aiohttp.ClientError):
            return False
        return True

    async def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            await self._socket.close()

    async def _connect(self, session: aiohttp.ClientSession) -> bool:
        """Live through one connection; returns whether there was one."""
        url = f"{self._settings.ws_url}/ws"
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                socket = await session.ws_connect(url, heartbeat=_PING_S, max_msg_size=_MAX_FRAME_BYTES)
        except aiohttp.WSServerHandshakeError as error:
            if error.status in {401, 403}:
                raise RefusedError(f"CASOLA_API_TOKEN: the queue at {url} refuses it ({error.status})") from error
            log.warning("the queue answers no WebSocket", extra={"url": url, "status": error.status})
            return False
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("the queue is away", extra={"url": url, "error": type(error).__name__})
            return False
        self._socket = socket
        try:
            await socket.send_str(encode(self._register()))
            log.info("connected to the queue", extra={"url": url})
            await self._opened()
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    await self._take(message.data)
        except (aiohttp.ClientError, ConnectionError) as error:
            log.info("the connection broke", extra={"error": type(error).__name__})
        finally:
            self._socket = None
            await socket.close()
        log.warning("the connection to the queue has ended")
        return True

    async def _take(self, text: str) -> None:
        try:
            frame = from_queue(text)
        except FrameError as error:
            log.warning("the queue sends a strange frame", extra={"error": str(error)})
            return
        await self._hear(frame)
