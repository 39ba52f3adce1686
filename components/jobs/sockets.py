"""A worker's WebSocket: frames in, frames out, an error frame for whatever is none. Knows aiohttp, not what frames do."""

import asyncio
import logging

from aiohttp import WSMsgType, web

from components.bus.client import BusError
from components.jobs.book import Worker
from components.jobs.frames import Error, Frame, FrameError, FromWorker, Register, encode, from_worker
from components.jobs.service import JobService

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 1024 * 1024
_HARD_LIMIT_BYTES = 16 * 1024 * 1024  # beyond this a frame is not read to its end, and ends the connection
_PING_S = 10.0
_STALL_S = 30.0
_MAX_UNSENT = 10_000


class Socket:
    """One connection; a `Link`.

    Attributes:
        base_url: the queue's address, as the worker reached it.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self._socket = web.WebSocketResponse(heartbeat=_PING_S, max_msg_size=_HARD_LIMIT_BYTES)
        self._unsent: asyncio.Queue[Frame | None] = asyncio.Queue()

    def send(self, frame: Frame) -> None:
        """Send `frame` after those before it; lost when the connection is, or takes too long to read."""
        if self._unsent.qsize() < _MAX_UNSENT:
            self._unsent.put_nowait(frame)
        else:
            self._unsent.put_nowait(None)

    def close(self, reason: str) -> None:
        """End the connection, after what is still to be sent."""
        log.info("closing a connection", extra={"reason": reason})
        self._unsent.put_nowait(None)

    async def run(self, request: web.Request, service: JobService) -> web.StreamResponse:
        """Speak with the worker until either side ends it."""
        await self._socket.prepare(request)
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write())
            try:
                await self._read(service)
            finally:
                writing.cancel()
        return self._socket

    async def _read(self, service: JobService) -> None:
        worker: Worker | None = None
        try:
            async for message in self._socket:
                if message.type is WSMsgType.ERROR:
                    break
                frame = self._frame(message.type, message.data)
                if frame is None:
                    continue
                try:
                    if worker is not None:
                        await service.hear(self, worker, frame)
                    elif isinstance(frame, Register):
                        worker = await service.register(self, frame)
                    else:
                        self.send(Error("the first frame must be register"))
                except BusError as error:
                    self.send(Error(f"the queue's store does not answer, try again: {error}"))
        finally:
            if worker is not None:
                service.left(self, worker)

    def _frame(self, kind: WSMsgType, data: object) -> FromWorker | None:
        if kind is not WSMsgType.TEXT or not isinstance(data, str):
            self.send(Error("frames are JSON text"))
            return None
        if len(data) > MAX_FRAME_BYTES:
            self.send(Error(f"a frame of {len(data)} characters; at most {MAX_FRAME_BYTES} are taken, upload long results"))
            return None
        try:
            return from_worker(data)
        except FrameError as error:
            self.send(Error(str(error)))
            return None

    async def _write(self) -> None:
        while (frame := await self._unsent.get()) is not None:
            try:
                async with asyncio.timeout(_STALL_S):
                    await self._socket.send_str(encode(frame))
            except (TimeoutError, ConnectionError):
                break
        await self._socket.close()
