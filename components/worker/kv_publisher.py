"""Tells the routers which KV blocks this worker holds: changes in numbered batches, and everything when somebody asks.

Knows the numbering and the snapshots of `wire.kv`; not where the changes come from. A number is left out on purpose whenever
it changes whether the engine's own events are all known: every router then asks for a snapshot, which tells.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from components.bus.client import Bus, BusError
from components.engine.protocol import KvUpdate
from components.wire.kv import KvBatch, KvChange, KvCleared, KvRemoved, KvStored, SnapshotChunk, SnapshotRequest, Tier
from components.wire.messages import Message
from components.wire.subjects import Subjects
from components.worker.kv_held import HeldBlocks, portions

log = logging.getLogger(__name__)

REPEAT_INTERVAL_S = 1.0
MAX_BATCH_BLOCKS = 4096
MAX_CHUNK_BLOCKS = 20_480
_BLOCK_BYTES = 20
"""What a block takes on the wire, its parent if it is gone, and its share of its run's frame, at most."""
_FRAME_BYTES = 1024
"""What a message takes beside its blocks, amply."""


class KvPublisher:
    """One worker's KV events.

    Attributes:
        held: what the engine holds, as told.
    """

    def __init__(self, bus: Bus, subjects: Subjects, worker: str, incarnation: str, registry: CollectorRegistry) -> None:
        self._bus = bus
        self._subjects = subjects
        self._worker = worker
        self._incarnation = incarnation
        self.held = HeldBlocks()
        self._seq = 0
        self._complete = True
        self._metrics = _Metrics(registry)

    async def listen(self) -> None:
        """Begin with an empty batch 0, and answer whoever asks for a snapshot."""
        await self._bus.subscribe(self._subjects.kv_snapshot(self._worker), SnapshotRequest, self.answer)
        await self.repeat()

    async def run(self, updates: AsyncIterator[KvUpdate]) -> None:
        """Publish what the engine tells, until it ends."""
        async for update in updates:
            self._metrics.count(update)
            if update.complete != self._complete:
                self._complete = update.complete
                self._seq += 1
            await self._tell(update.changes)

    async def withdraw(self, tier: Tier) -> int:
        """Tell that nothing is held on `tier` any more; return how many blocks were."""
        blocks = self.held.on(tier)
        self._metrics.removed.inc(len(blocks))
        if blocks:
            await self._tell([KvRemoved(blocks, tier)])
        return len(blocks)

    async def keep_alive(self) -> None:
        """Once a second repeat the last number, so that a lost last batch is noticed; for ever."""
        while True:
            await asyncio.sleep(REPEAT_INTERVAL_S)
            await self.repeat()

    async def repeat(self) -> None:
        """Tell the last number again."""
        await self._send([])

    async def answer(self, request: SnapshotRequest) -> None:
        """Send all that is held now, as of the last number; batches with later numbers may overtake the chunks."""
        seq, complete = self._seq, self._complete
        chunks = portions(self.held.runs(), self._at_most(MAX_CHUNK_BLOCKS))
        chunk, index = next(chunks, []), 0
        while True:
            following = next(chunks, None)
            stored = [run for run in chunk if isinstance(run, KvStored)]
            last = following is None
            snapshot = SnapshotChunk(
                request.snapshot_id, self._worker, self._incarnation, seq, index, last, complete, stored
            )
            await self._publish(request.reply_to, snapshot)
            if following is None:
                break
            chunk, index = following, index + 1
            await asyncio.sleep(0)  # tokens go first
        self._metrics.snapshots.inc()

    async def _tell(self, changes: Sequence[KvChange]) -> None:
        """Publish changes, in batches that fit a message."""
        for portion in portions(changes, self._at_most(MAX_BATCH_BLOCKS)):
            self._seq += 1
            told = [self.held.apply(change) for change in portion]
            self._metrics.held_blocks.set(len(self.held))
            await self._send(told)

    def _at_most(self, blocks: int) -> int:
        """Return how many blocks to put into one message: `blocks`, or what the server takes."""
        return max(1, min(blocks, (self._bus.max_payload_bytes - _FRAME_BYTES) // _BLOCK_BYTES))

    async def _send(self, changes: list[KvChange]) -> None:
        batch = KvBatch(self._worker, self._incarnation, self._seq, changes)
        await self._publish(self._subjects.kv_events(self._worker), batch)

    async def _publish(self, subject: str, message: Message) -> None:
        try:
            await self._bus.publish(subject, message)
        except BusError as error:
            log.warning("lost KV events", extra={"seq": self._seq, "error": str(error)})


class _Metrics:
    """What this worker's KV events amount to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"penstock_worker_kv_{name}", text, registry=registry)

        self.events = counter("events", "The engine's own KV events.")
        self.stored = counter("stored_blocks", "KV blocks announced.")
        self.removed = counter("removed_blocks", "KV blocks withdrawn one by one.")
        self.cleared = counter("clears", "How often everything was withdrawn.")
        self.orphans = counter("orphan_blocks", "KV blocks not announced because the block before them is unknown.")
        self.gaps = counter("gaps", "How often KV events of the engine were lost for good.")
        self.snapshots = counter("snapshots", "Snapshots sent to routers.")
        self.held_blocks = Gauge("penstock_worker_kv_held_blocks", "KV blocks held, as announced.", registry=registry)
        self.complete = Gauge("penstock_worker_kv_complete", "1: all KV events of the engine are known.", registry=registry)
        self.complete.set(1)

    def count(self, update: KvUpdate) -> None:
        """Add one update."""
        self.events.inc(update.events)
        self.orphans.inc(update.orphan_blocks)
        self.gaps.inc(update.gaps)
        self.complete.set(update.complete)
        for change in update.changes:
            if isinstance(change, KvStored):
                self.stored.inc(len(change.blocks))
            elif isinstance(change, KvRemoved):
                self.removed.inc(len(change.blocks))
            elif isinstance(change, KvCleared):
                self.cleared.inc()
