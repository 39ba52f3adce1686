"""The simulated engine's KV events on their way out: gathered until somebody asks. Knows no scheduling and no time."""

import asyncio
from collections.abc import Iterable

from components.engine.kv_changes import KvChanges
from components.engine.protocol import KvUpdate
from components.engine.sim_cache import BlockEvent, BlockStored


class KvFeed:
    """Events since the last update."""

    def __init__(self) -> None:
        self._changes = KvChanges()
        self._events = 0
        self._ended = False
        self._changed = asyncio.Event()

    def add(self, events: Iterable[BlockEvent]) -> None:
        """Take a step's events."""
        for event in events:
            self._events += 1
            if isinstance(event, BlockStored):
                self._changes.stored([event.block_hash], event.parent_hash)
            else:
                self._changes.removed([event.block_hash])
        if self._events:
            self._changed.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._changed.set()

    async def next_update(self) -> KvUpdate | None:
        """Wait for events and return all there are; None after the end."""
        await self._changed.wait()
        if not self._events:
            return None
        if not self._ended:
            self._changed.clear()
        events, self._events = self._events, 0
        return KvUpdate(self._changes.take(), events)
