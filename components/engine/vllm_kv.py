"""vLLM's KV events as they come out of its core: numbered batches on a ZeroMQ socket in a folder of this worker alone.

Knows the numbering: a batch that is missing is asked for again, one second of silence is used to ask whether the last one
is, and only what vLLM no longer remembers is lost. Source: ``ZmqEventPublisher`` in vLLM's ``distributed/kv_events.py``.
"""

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zmq

from components.engine.kv_translate import EngineEvent, KvTranslator
from components.engine.protocol import EngineStartError, KvUpdate
from components.engine.vllm_args import IPC_FOLDER

log = logging.getLogger(__name__)

QUIET_S = 1.0
REPLAY_TIMEOUT_S = 2.0
MAX_BATCHES_A_TURN = 16
"""So many long batches keep the event loop busy for two milliseconds, and still lie in the processor's caches."""
_END = -1


class Batch(NamedTuple):
    """One message: its number, and vLLM's bytes."""

    seq: int
    payload: bytes | memoryview


class KvFollower:
    """Puts batches in order and translates them."""

    def __init__(
        self,
        translator: KvTranslator,
        decode: Callable[[bytes | memoryview], Iterable[EngineEvent]],
        replay: Callable[[int], Awaitable[list[Batch]]],
    ) -> None:
        """Begin before batch 0.

        Args:
            translator: gets the events.
            decode: raises `msgspec.DecodeError` for bytes that are none of vLLM's.
            replay: returns the batches from a number on that vLLM remembers; none when it does not answer.
        """
        self._translator = translator
        self._decode = decode
        self._replay = replay
        self._expected = 0
        self._last_live: int | None = None

    async def take(self, batch: Batch) -> None:
        """Follow a batch that just came."""
        if self._last_live is not None and batch.seq <= self._last_live:
            log.warning("the engine's KV events begin anew", extra={"seq": batch.seq})
            self._translator.restart()
            self._expected = 0
        self._last_live = batch.seq
        if batch.seq > self._expected:
            await self.catch_up()
        self._apply(batch)

    async def catch_up(self) -> None:
        """Ask for everything after the last batch seen."""
        for batch in await self._replay(self._expected):
            self._apply(batch)

    def settle(self) -> None:
        """Nothing is under way any more: from now on an old number is no batch that was replayed too, but a new life."""
        if self._expected:
            self._last_live = self._expected - 1

    def _apply(self, batch: Batch) -> None:
        if batch.seq < self._expected:
            return
        if batch.seq > self._expected:
            log.warning("KV events of the engine are lost", extra={"batches": batch.seq - self._expected})
            self._translator.lose()
        self._expected = batch.seq + 1
        try:
            self._translator.apply(self._decode(batch.payload))
        except (msgspec.DecodeError, ValueError) as error:
            log.warning("KV events of the engine make no sense", extra={"seq": batch.seq, "error": str(error)})
            self._translator.lose()


class KvStream:
    """One engine's KV events. Make it, `open` it before the engine starts, `close` it after.

    Attributes:
        config: vLLM's `kv_events_config`, once it is open.
    """

    def __init__(self, model: str, block_size: int, decode: Callable[[bytes | memoryview], Iterable[EngineEvent]]) -> None:
        self.config: dict[str, Any] = {}
        self._translator = KvTranslator(model, block_size)
        self._follower = KvFollower(self._translator, decode, self._ask_again)
        self._woken = asyncio.Event()
        self._closed = False
        self._folder: Path | None = None
        self._context: zmq.Context[Any] | None = None
        self._socket: zmq.Socket[Any] | None = None
        self._stop_reading = ExitStack()

    def open(self) -> None:
        """Listen from now on.

        Raises:
            EngineStartError: there is no place for the sockets.
        """
        try:
            beside_vllm = os.environ.get(IPC_FOLDER)
            self._folder = Path(tempfile.mkdtemp(prefix="penstock-kv-", dir=beside_vllm))  # only this user may enter
            self._context = zmq.Context()
            self._socket = self._context.socket(zmq.SUB)
            self._socket.set_hwm(0)
            self._socket.set(zmq.RECONNECT_IVL, 10)
            self._socket.subscribe(b"")
            self._socket.connect(self._endpoint("events"))
        except (OSError, zmq.ZMQError) as error:
            self.close()
            raise EngineStartError(f"no socket for KV events: {error}") from error
        self.config = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self._endpoint("events"),
            "replay_endpoint": self._endpoint("replay"),
        }

    async def updates(self) -> AsyncIterator[KvUpdate]:
        """Yield what happens in the engine's cache until `close`."""
        if self._socket is None:
            return
        loop, descriptor = asyncio.get_running_loop(), self._socket.fileno()
        loop.add_reader(descriptor, self._wake)
        self._stop_reading.callback(loop.remove_reader, descriptor)  # before its number is another's
        with self._stop_reading:
            caught_up = False
            while not self._closed:
                batches = self._drain()
                for batch in batches:
                    await self._follower.take(batch)
                if update := self._translator.take():
                    yield update
                if batches:
                    caught_up = False
                    await asyncio.sleep(0)  # tokens go first
                elif not await self._wait():
                    if caught_up:
                        self._follower.settle()
                    else:
                        await self._follower.catch_up()
                    caught_up = True

    def shared_changed(self, held: Sequence[int], gone: Sequence[int]) -> None:
        """Take in what the LMCache server holds; `updates` tells of it."""
        self._translator.shared_changed(held, gone)
        self._woken.set()

    def shared_lost(self) -> None:
        """Take in that the LMCache server holds nothing any more; `updates` tells of it."""
        self._translator.shared_lost()
        self._woken.set()

    def learn(self, chunks: Sequence[int], token_ids: Sequence[int]) -> None:
        """Take in what LMCache calls the chunks of a prompt, and their tokens; see `KvTranslator.learn`."""
        self._translator.learn(chunks, token_ids)

    def close(self) -> None:
        """Free the socket and the folder."""
        self._closed = True
        self._woken.set()
        self._stop_reading.close()
        if self._socket is not None:
            self._socket.close(linger=0)
        if self._context is not None:
            self._context.term()
        self._socket = self._context = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _endpoint(self, name: str) -> str:
        return f"ipc://{self._folder}/{name}"

    def _wake(self) -> None:
        """Called when something may have come; looking calms the descriptor, which then waits for the next change."""
        if self._socket is not None and self._socket.poll(0):
            self._woken.set()

    async def _wait(self) -> bool:
        """Wait for a batch; False after a quiet second."""
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                await self._woken.wait()
        return self._woken.is_set()

    def _drain(self) -> list[Batch]:
        """Return what has come, but no more than a turn's work."""
        self._woken.clear()
        batches: list[Batch] = []
        with suppress(zmq.Again):
            while self._socket is not None and len(batches) < MAX_BATCHES_A_TURN:
                batches.append(_receive(self._socket, zmq.NOBLOCK))
        return batches

    async def _ask_again(self, first: int) -> list[Batch]:
        return await asyncio.to_thread(_replay, self._endpoint("replay"), first)


def _replay(endpoint: str, first: int) -> list[Batch]:
    """Return the batches from number `first` on that the publisher remembers; blocks."""
    batches: list[Batch] = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.rcvtimeo = int(REPLAY_TIMEOUT_S * 1000)
        socket.connect(endpoint)
        socket.send_multipart([b"", first.to_bytes(8, "big")])
        with suppress(zmq.Again):
            while (batch := _receive(socket)).seq != _END:
                batches.append(batch)
    return batches


def _receive(socket: "zmq.Socket[Any]", flags: int = 0) -> Batch:
    """Return the next message's last two frames; what stands before differs between versions, and live and replay.

    Frame by frame, because `recv_multipart` asks the socket after each whether there is more, which takes longer.
    """
    frames = [socket.recv(flags, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(flags, copy=False))
    return Batch(int.from_bytes(frames[-2].bytes, "big", signed=True), frames[-1].buffer)
