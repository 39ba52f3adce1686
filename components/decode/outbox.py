"""Sends tokens back: at most one message a millisecond and processor, holding the new tokens of all its requests, numbered.

What comes after a pause leaves at once; only what follows within a millisecond is gathered: nothing beside the step of an
engine, and a message less for each token of a fast one. Where they do not fit one message, it sends as many as it takes.

That a request was taken in, its first tokens tell; where they are slow to come, an empty delta does.

Knows nothing of engines. A message lost on the way leaves a gap in the numbers, which the processor notices and repairs.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from components.bus.client import Bus, BusError
from components.wire.errors import PenstockError
from components.wire.messages import TokenBatch, TokenDelta, encode
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

KEEPALIVE_INTERVAL_S = 1.0
REPEAT_FOR_S = 10.0
GATHER_S = 0.001
"""What is added so soon after a batch waits for the next one."""
ACKNOWLEDGE_S = 0.02
"""First tokens that take longer are announced by an empty delta."""

_FRAME_BYTES = 256
"""What a batch takes beside its deltas and names, amply."""


@dataclass
class _Stream:
    """What goes to one processor."""

    deltas: list[TokenDelta] = field(default_factory=list)
    owed: set[str] = field(default_factory=set)  # requests of which nothing has been said
    seq: int = -1
    used_at_s: float = 0.0


class Outbox:
    """The way back from one worker to all processors."""

    def __init__(self, bus: Bus, subjects: Subjects, worker: str, incarnation: str) -> None:
        self._bus = bus
        self._subjects = subjects
        self._worker = worker
        self._incarnation = incarnation
        self._streams: dict[str, _Stream] = {}
        self._filled = asyncio.Event()
        self._owing = asyncio.Event()
        self._sending = asyncio.Lock()  # numbers leave in order

    def add(self, processor: str, delta: TokenDelta) -> None:
        """Put `delta` into the next batch for `processor`."""
        stream = self._streams.setdefault(processor, _Stream())
        stream.owed.discard(delta.request_id)
        stream.deltas.append(delta)
        self._filled.set()

    def owe(self, processor: str, request_id: str) -> None:
        """Let `processor` hear soon that a request was taken in, if not by its first tokens."""
        self._streams.setdefault(processor, _Stream()).owed.add(request_id)
        self._owing.set()

    def forgive(self, processor: str, request_id: str) -> None:
        """Say nothing of a request that has ended, if nothing has been said."""
        if stream := self._streams.get(processor):
            stream.owed.discard(request_id)

    async def run(self) -> None:
        """Send whatever was added during each turn of the event loop, and what follows at once together; for ever."""
        while True:
            await self._filled.wait()
            await self.flush()
            await asyncio.sleep(GATHER_S)

    async def acknowledge(self) -> None:
        """Say of requests whose tokens are slow to come that they were taken in; for ever."""
        while True:
            await self._owing.wait()
            self._owing.clear()
            await asyncio.sleep(ACKNOWLEDGE_S)
            for processor, stream in self._streams.items():
                for request_id in sorted(stream.owed):
                    self.add(processor, TokenDelta(request_id, 0))

    async def flush(self) -> None:
        """Send everything added so far."""
        self._filled.clear()
        async with self._sending:
            for processor, stream in list(self._streams.items()):
                deltas, stream.deltas = stream.deltas, []
                for portion in portions(deltas, self._room_bytes()):
                    stream.seq += 1
                    stream.used_at_s = time.monotonic()
                    await self._send(processor, stream.seq, portion)

    async def keep_alive(self) -> None:
        """Once a second repeat the last number to each recent processor, so that it notices a lost last batch; for ever."""
        while True:
            await asyncio.sleep(KEEPALIVE_INTERVAL_S)
            now = time.monotonic()
            async with self._sending:
                for processor, stream in list(self._streams.items()):
                    if stream.seq >= 0 and not stream.deltas and now - stream.used_at_s < REPEAT_FOR_S:
                        await self._send(processor, stream.seq, [])

    def _room_bytes(self) -> int:
        """Return how many bytes of deltas fit one batch."""
        names = len(self._worker.encode()) + len(self._incarnation.encode())
        return self._bus.max_payload_bytes - names - _FRAME_BYTES

    async def _send(self, processor: str, seq: int, deltas: list[TokenDelta]) -> None:
        batch = TokenBatch(self._worker, self._incarnation, seq, deltas)
        try:
            await self._bus.publish(self._subjects.tokens(processor), batch)
        except BusError as error:
            log.warning("lost a token batch", extra={"processor": processor, "seq": seq, "error": str(error)})


def portions(deltas: Iterable[TokenDelta], max_bytes: int) -> Iterator[list[TokenDelta]]:
    """Cut `deltas` into lists that take at most `max_bytes` bytes each, in order; none is empty.

    One that is too long by itself becomes the error that ends its request.
    """
    portion: list[TokenDelta] = []
    room_bytes = max_bytes
    for each in deltas:
        delta, size_bytes = each, len(encode(each))
        if size_bytes > max_bytes:
            error = PenstockError(f"new output takes {size_bytes} bytes, more than a message holds")
            delta = TokenDelta(each.request_id, each.offset, error=error.reply())
            size_bytes = len(encode(delta))
        if portion and size_bytes > room_bytes:
            yield portion
            portion, room_bytes = [], max_bytes
        portion.append(delta)
        room_bytes -= size_bytes
    if portion:
        yield portion
