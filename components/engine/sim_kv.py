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

LOOK_S = 1.0
"""How often is looked whether the shared cache has lost something."""


class KvPending:
    """Events since the last update. Pure; told the time.

    Attributes:
        events: how many there are.
    """

    def __init__(self, shared: Chunks | None = None) -> None:
        """Begin with nothing; `shared` is the shared cache."""
        self.events = 0
        self._changes = KvChanges()
        self._shared = shared
        self._told: dict[int, list[int]] = {}  # chunk put into the shared cache → its blocks
        self._look_at_s = 0.0

    @property
    def may_be_lost(self) -> bool:
        """Whether the shared cache holds anything that was told of."""
        return bool(self._told)

    def add(self, events: Iterable[BlockEvent], shared: Iterable[KvStored]) -> None:
        """Take a step's events, and the chunks it put into the shared cache."""
        for event in events:
            self.events += 1
            if isinstance(event, BlockStored):
                self._changes.stored([event.block_hash], event.parent_hash)
            else:
                self._changes.removed([event.block_hash])
        for chunk in shared:
            self.events += 1
            self._changes.stored(chunk.blocks, chunk.parent, Tier.SHARED)
            self._told[chunk.blocks[-1]] = chunk.blocks

    def look(self, now_s: float) -> None:
        """Withdraw what is no longer in the shared cache, now and then."""
        if self._shared is None or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_S
        chunks = list(self._told)
        for chunk, held in zip(chunks, self._shared.holds(chunks), strict=True):
            if not held:
                self._changes.removed(self._told.pop(chunk), Tier.SHARED)
                self.events += 1

    def take(self) -> KvUpdate | None:
        """Return all there are, and begin anew; None without any."""
        if not self.events:
            return None
        events, self.events = self.events, 0
        return KvUpdate(self._changes.take(), events)


class KvFeed:
    """Events since the last update, for one who waits for them."""

    def __init__(self, shared: Chunks | None = None) -> None:
        """Begin with nothing; `shared` is the shared cache."""
        self._pending = KvPending(shared)
        self._ended = False
        self._changed = asyncio.Event()

    def add(self, events: Iterable[BlockEvent], shared: Iterable[KvStored]) -> None:
        """See `KvPending.add`."""
        self._pending.add(events, shared)
        if self._pending.events:
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
        update = self._pending.take()
        if update is not None and not self._ended:
            self._changed.clear()
        return update

    async def _wait(self) -> bool:
        """Wait for events or the end, but not for long where the shared cache must be looked at."""
        try:
            async with asyncio.timeout(LOOK_S if self._pending.may_be_lost else None):
                return await self._changed.wait()
        except TimeoutError:
            return False

    def _look(self) -> None:
        if self._ended:
            return
        self._pending.look(asyncio.get_running_loop().time())
        if self._pending.events:
            self._changed.set()
