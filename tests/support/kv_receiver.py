"""A receiver of one worker's KV events, as simple as can be: applies batches, asks for a snapshot, checks the numbers."""

import asyncio
import itertools

from components.bus.client import Bus
from components.router.kv_index import KvIndex
from components.wire.kv import KvBatch, KvChange, KvCleared, KvRemoved, KvStored, SnapshotChunk, SnapshotRequest, Tier
from components.wire.subjects import Subjects

_ids = itertools.count()


def apply(index: KvIndex, worker: str, change: KvChange) -> None:
    """Apply one change of the device tier."""
    if isinstance(change, KvCleared):
        index.cleared(worker)
    elif change.tier is not Tier.DEVICE:
        return
    elif isinstance(change, KvStored):
        index.stored(worker, change.blocks, change.parent)
    elif isinstance(change, KvRemoved):
        index.removed(worker, change.blocks, change.parents)


def blocks(index: KvIndex, worker: str) -> set[int]:
    """Return all blocks of `worker` in the index."""
    return set(index.held_by(worker))


class KvReceiver:
    """Hears one worker.

    Attributes:
        index: what the worker holds, as far as heard.
        batches: all that came.
        chunks: of all snapshots.
    """

    def __init__(self, bus: Bus, subjects: Subjects, worker: str) -> None:
        self.index = KvIndex()
        self.batches: list[KvBatch] = []
        self.chunks: list[SnapshotChunk] = []
        self._bus = bus
        self._subjects = subjects
        self._worker = worker

    async def listen(self) -> None:
        """Hear batches and chunks from now on; whoever has missed nothing needs no snapshot."""
        await self._bus.subscribe(self._subjects.kv_events(self._worker), KvBatch, self._hear)
        await self._bus.subscribe(self._subjects.kv_chunks("r"), SnapshotChunk, self._take_chunk)
        await self._bus.flush()

    async def snapshot(self) -> list[SnapshotChunk]:
        """Return a whole snapshot."""
        name = f"snapshot-{next(_ids)}"
        request = SnapshotRequest(name, self._subjects.kv_chunks("r"))
        await self._bus.publish(self._subjects.kv_snapshot(self._worker), request)
        async with asyncio.timeout(5):
            while not ((mine := [chunk for chunk in self.chunks if chunk.snapshot_id == name]) and mine[-1].last):
                await asyncio.sleep(0.01)
        assert [chunk.index for chunk in mine] == list(range(len(mine)))
        assert len({(chunk.seq, chunk.complete) for chunk in mine}) == 1
        return mine

    def rebuilt(self, snapshot: list[SnapshotChunk]) -> KvIndex:
        """Return an index of `snapshot` with all later batches on top."""
        index = KvIndex()
        for chunk in snapshot:
            for run in chunk.stored:
                apply(index, self._worker, run)
        for batch in self.batches:
            for change in batch.changes if batch.seq > snapshot[0].seq else ():
                apply(index, self._worker, change)
        return index

    async def caught_up(self, seq: int) -> None:
        """Wait until batch `seq` was heard."""
        async with asyncio.timeout(5):
            while not (self.batches and self.batches[-1].seq >= seq):
                await asyncio.sleep(0.01)

    async def _hear(self, batch: KvBatch) -> None:
        self.batches.append(batch)
        for change in batch.changes:
            apply(self.index, self._worker, change)

    async def _take_chunk(self, chunk: SnapshotChunk) -> None:
        self.chunks.append(chunk)
