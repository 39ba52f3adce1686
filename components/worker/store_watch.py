"""One worker's eye on its LMCache server: what it evicts, and whether it still lives.

What this worker told of a server is withdrawn when the server's process ends, is replaced or falls silent. Which chunks go
while it lives the server's process tells, in LMCache's hashes; the engine knows what they mean. What is withdrawn too much
costs time, once.
"""

import asyncio
import logging
import time

from components.bus.client import Bus
from components.engine.protocol import Engine
from components.wire.kv import ChunksChanged, Tier
from components.wire.process import ProcessStatus
from components.wire.store_life import StoreLife
from components.wire.subjects import Subjects
from components.worker.kv_publisher import KvPublisher

log = logging.getLogger(__name__)

_LOOK_S = 1.0


class StoreWatch:
    """One worker's eye on its LMCache server."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        store: str,
        silence_timeout_s: float,
        publisher: KvPublisher,
        engine: Engine,
    ) -> None:
        """Prepare, without listening yet.

        Args:
            bus: the connection.
            subjects: of the graph.
            store: name of the LMCache server's process.
            silence_timeout_s: not heard of for so long, it is gone.
            publisher: withdraws.
            engine: knows what the server's words mean.
        """
        self._bus = bus
        self._subjects = subjects
        self._store = store
        self._silence_timeout_s = silence_timeout_s
        self._publisher = publisher
        self._engine = engine
        self._life = StoreLife()

    async def listen(self) -> None:
        """From now on hear what the server's process tells of itself, and of its chunks."""
        await self._bus.subscribe(self._subjects.store_chunks(self._store), ChunksChanged, self._on_chunks)
        await self._bus.subscribe(self._subjects.status(self._store), ProcessStatus, self._on_status)
        self._bus.on_reconnect(self._on_reconnect)

    async def run(self) -> None:
        """Notice when it falls silent, for ever; a silence that we slept through, or without NATS, is none."""
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(_LOOK_S)
            now_s = time.monotonic()
            if not self._bus.connected or now_s - before_s > 2 * _LOOK_S:
                self._life.excuse(now_s)
            if self._life.fell_silent(now_s, self._silence_timeout_s):
                await self._withdraw("silent")

    async def _on_chunks(self, change: ChunksChanged) -> None:
        self._engine.shared_changed(change.held, change.gone)

    async def _on_status(self, status: ProcessStatus) -> None:
        if self._life.hear(status, time.monotonic()):
            await self._withdraw(status.state.value)

    async def _on_reconnect(self) -> None:
        self._life.excuse(time.monotonic())

    async def _withdraw(self, why: str) -> None:
        self._engine.shared_lost()
        blocks = await self._publisher.withdraw(Tier.SHARED)
        if blocks:
            log.warning("what LMCache held is gone", extra={"store": self._store, "why": why, "blocks": blocks})
