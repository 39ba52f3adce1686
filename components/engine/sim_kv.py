"""The simulated engine's KV events on their way out: gathered until somebody asks. Knows no scheduling.

What the engine put into the shared cache it also withdraws, once it is no longer there: evicted, or gone with the server.
"""

import asyncio
from collections.abc import Iterable

from components.engine.kv_changes import KvChanges
from components.engine.protocol import KvUpdate
from components.engine.sim_cache import BlockEvent, BlockStored
from components.engine.sim_shared import Chunks
from components.wire.kv import KvStored, Tier

_LOOK_S = 1.0


class KvFeed:
    """Events since the last update."""

    def __init__(self, shared: Chunks | None = None) -> None:
        """Begin with nothing; `shared` is the shared cache."""
        self._changes = KvChanges()
        self._events = 0
        self._ended = False
        self._changed = asyncio.Event()
        self._shared = shared
        self._told: dict[int, list[int]] = {}  # chunk put into the shared cache → its blocks
        self._look_at_s = 0.0

    def add(self, events: Iterable[BlockEvent], shared: Iterable[KvStored]) -> None:
        """Take a step's events, and the chunks it put into the shared cache."""
        for event in events:
            self._events += 1
            if isinstance(event, BlockStored):
                self._changes.stored([event.block_hash], event.parent_hash)
            else:
                self._changes.removed([event.block_hash])
        for chunk in shared:
            self._events += 1
            self._changes.stored(chunk.blocks, chunk.parent, Tier.SHARED)
            self._told[chunk.blocks[-1]] = chunk.blocks
        if self._events:
            self._changed.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._changed.set()

    async def next_update(self) -> KvUpdate | None:
        """Wait for events and return all there are; None after the end."""
        while not await self._wait():
            self._look()
        self._look()
        if not self._events:
            return None
        if not self._ended:
            self._changed.clear()
        events, self._events = self._events, 0
        return KvUpdate(self._changes.take(), events)

    async def _wait(self) -> bool:
        """Wait for events or the end, but not for long where the shared cache must be looked at."""
        try:
            async with asyncio.timeout(_LOOK_S if self._told else None):
                return await self._changed.wait()
        except TimeoutError:
            return False

    def _look(self) -> None:
        """Withdraw what is no longer in the shared cache, now and then."""
        now_s = asyncio.get_running_loop().time()
        if self._shared is None or self._ended or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + _LOOK_S
        chunks = list(self._told)
        for chunk, held in zip(chunks, self._shared.holds(chunks), strict=True):
            if not held:
                self._changes.removed(self._told.pop(chunk), Tier.SHARED)
                self._events += 1
        if self._events:
            self._changed.set()
