"""From workers' KV batches to the index: in order, without gaps, or not at all. Pure; told the time.

A worker's batches are numbered. While they come one after the other, the index knows all the worker holds. A missing number,
a new incarnation, a newcomer or a reset ends that: what was known of the worker is dropped, it scores nothing, and `due`
names it until its snapshot is here. Batches that come meanwhile wait, and those after the snapshot's number go on top.

What a worker tells of its store (LMCache) goes to that store's index, and outlives the worker. Prefill workers are no
candidates: nothing else is taken from them.

Knows numbering and tiers, no bus. Workers that are not on the roster are not listened to, so strangers take no memory.
"""

import itertools
from dataclasses import dataclass, field

import msgspec

from components.router.chooser import Chooser
from components.router.kv_index import KvIndex
from components.wire.kv import KvBatch, KvCleared, KvRemoved, KvStored, SnapshotChunk, Tier
from components.wire.routing import Trust

_PAUSE_S = 0.5
_PATIENCE_S = 1.0
_MAX_PATIENCE_S = 15.0
_MAX_WAITING_BLOCKS = 2_000_000


@dataclass(slots=True)
class Counts:
    """What has happened so far.

    Attributes:
        batches: with changes, taken into the index.
        stored_blocks: told as stored.
        removed_blocks: told as removed.
        gaps: missing numbers noticed.
        restarts: new incarnations of known workers.
        snapshots: completed.
        lost_snapshots: given up, because a chunk was lost or late.
        ignored: batches and chunks of strangers, late or repeated ones.
    """

    batches: int = 0
    stored_blocks: int = 0
    removed_blocks: int = 0
    gaps: int = 0
    restarts: int = 0
    snapshots: int = 0
    lost_snapshots: int = 0
    ignored: int = 0


class Ask(msgspec.Struct, frozen=True):
    """A worker's snapshot is wanted now."""

    worker: str
    snapshot_id: str


@dataclass(slots=True)
class _Source:
    """One worker's events.

    Attributes:
        incarnation: of its process.
        store: the LMCache server it tells of; empty without one.
        only_shared: its own tiers do not count.
        why: it lost trust the last time.
        in_step: all its events are known, up to the one before `expected`.
        expected: the number of its next batch.
        complete: false when the worker itself has missed some of its engine's events.
        snapshot_id: of the snapshot that was asked for; empty before.
        chunk: number of its next chunk.
        as_of: the batch up to which that snapshot is true.
        ask_at_s: when to ask, or to ask again.
        tries: how often was asked in vain.
        waiting: batches that came since.
    """

    incarnation: str
    store: str
    only_shared: bool
    why: str
    ask_at_s: float
    in_step: bool = False
    expected: int = 0
    complete: bool = True
    snapshot_id: str = ""
    chunk: int = 0
    as_of: int = 0
    tries: int = 0
    asked_s: float = float("-inf")
    waiting: list[KvBatch] = field(default_factory=list)
    waiting_blocks: int = 0


class Feed:
    """All workers' events."""

    def __init__(self, chooser: Chooser, router: str) -> None:
        """Listen to nobody yet.

        Args:
            chooser: whose indexes to fill.
            router: part of snapshot ids, so that replicas do not take each other's.
        """
        self._chooser = chooser
        self._router = router
        self._numbers = itertools.count()
        self._sources: dict[str, _Source] = {}
        self.counts = Counts()

    def listen_to(self, worker: str, incarnation: str, now_s: float, store: str = "", *, only_shared: bool = False) -> None:
        """Note that a worker lives; a new one, or a new incarnation, is not trusted yet.

        Args:
            worker: its name.
            incarnation: of its process.
            now_s: now.
            store: the LMCache server it tells of; empty without one.
            only_shared: it is a prefill worker: only what it tells of its store counts.
        """
        source = self._sources.get(worker)
        if source is None:
            self._sources[worker] = _Source(incarnation, store, only_shared, "", now_s)
            self._distrust(worker, incarnation, "new here", now_s)
            return
        source.store, source.only_shared = store, only_shared
        if source.incarnation != incarnation:
            self._restarted(worker, incarnation, now_s)

    def store_lost(self, store: str) -> None:
        """Drop all that a store was said to hold: it is another process now, or none. Its workers withdraw it too."""
        self._chooser.shared.forget(store)

    def forget(self, worker: str) -> None:
        """Listen to a worker no more."""
        self._sources.pop(worker, None)

    def reset(self, worker: str, why: str, now_s: float) -> None:
        """Drop all that is known of a worker's KV, and have it told anew.

        Raises:
            KeyError: the worker is unknown.
        """
        self._distrust(worker, self._sources[worker].incarnation, why, now_s)

    def trust(self, worker: str) -> Trust:
        """Return how far a worker's overlap can be trusted."""
        source = self._sources.get(worker)
        if source is None or not source.in_step:
            return Trust.FALLBACK
        refused = self._chooser.device.refused(worker) or self._chooser.host.refused(worker)
        return Trust.EXACT if source.complete and not refused else Trust.DEGRADED

    def why(self, worker: str) -> str:
        """Return why a worker is not trusted fully, for a person; empty when it is."""
        source = self._sources.get(worker)
        if source is None or not source.in_step:
            return source.why if source else "not heard of"
        if not source.complete:
            return "it missed some of its engine's events"
        return "" if self.trust(worker) is Trust.EXACT else "the index is full"

    def seq(self, worker: str) -> int | None:
        """Return the number of the last batch in the index; None when out of step."""
        source = self._sources.get(worker)
        return source.expected - 1 if source and source.in_step else None

    def batch(self, batch: KvBatch, now_s: float) -> None:
        """Take in a batch: apply it, or let it wait for a snapshot."""
        source = self._sources.get(batch.worker)
        if source is None:
            self.counts.ignored += bool(batch.changes)
            return
        if source.incarnation != batch.incarnation:
            source = self._restarted(batch.worker, batch.incarnation, now_s)
        if not source.in_step:
            self._wait(source, batch)
            return
        newest = batch.seq if batch.changes else batch.seq + 1  # an empty batch repeats the last number
        if newest > source.expected:
            self.counts.gaps += 1
            source = self._distrust(batch.worker, batch.incarnation, "events were lost", now_s)
            self._wait(source, batch)
        elif batch.changes and newest == source.expected:
            source.expected += 1
            self.counts.batches += 1
            for change in batch.changes:
                self._apply(batch.worker, change)
        elif batch.changes:
            self.counts.ignored += 1

    def chunk(self, chunk: SnapshotChunk, now_s: float) -> None:
        """Take in a part of a snapshot; after the last one the worker is in step again."""
        source = self._sources.get(chunk.worker)
        expected = source is not None and not source.in_step and chunk.snapshot_id == source.snapshot_id
        if source is None or not expected or chunk.incarnation != source.incarnation or chunk.index < source.chunk:
            self.counts.ignored += 1
            return
        if chunk.index > source.chunk or (chunk.index and chunk.seq != source.as_of):
            self._give_up(chunk.worker, source, now_s)
            return
        source.chunk += 1
        source.as_of = chunk.seq
        source.ask_at_s = now_s + _PATIENCE_S
        for stored in chunk.stored:
            self._apply(chunk.worker, stored)
        if chunk.last:
            self._finish(chunk, source, now_s)

    def due(self, now_s: float) -> list[Ask]:
        """Return whose snapshot must be asked for now, the first time or again."""
        asks = []
        for worker, source in self._sources.items():
            if source.in_step or source.ask_at_s > now_s:
                continue
            if source.chunk:
                self._give_up(worker, source, now_s)
            source.snapshot_id = f"{self._router}-{next(self._numbers)}"
            source.asked_s = now_s
            source.ask_at_s = now_s + min(_PATIENCE_S * 2**source.tries, _MAX_PATIENCE_S)
            source.tries = min(source.tries + 1, 8)
            asks.append(Ask(worker, source.snapshot_id))
        return asks

    def _restarted(self, worker: str, incarnation: str, now_s: float) -> _Source:
        self.counts.restarts += 1
        return self._distrust(worker, incarnation, "it was restarted", now_s)

    def _distrust(self, worker: str, incarnation: str, why: str, now_s: float) -> _Source:
        before = self._sources[worker]
        self._chooser.distrust(worker)
        self._chooser.loading.add(worker)
        ask_at_s = now_s
        if before.incarnation == incarnation:
            ask_at_s = max(now_s, before.asked_s + _PAUSE_S)  # gap after gap: no storm of snapshots
        source = self._sources[worker] = _Source(incarnation, before.store, before.only_shared, why, ask_at_s)
        return source

    def _give_up(self, worker: str, source: _Source, now_s: float) -> None:
        """Drop a snapshot that is not whole."""
        self.counts.lost_snapshots += 1
        self._chooser.distrust(worker)
        source.snapshot_id, source.chunk = "", 0
        source.ask_at_s = max(now_s, source.asked_s + _PAUSE_S)

    def _wait(self, source: _Source, batch: KvBatch) -> None:
        """Keep a batch until the snapshot is here; too many are dropped, which is a gap then, and another snapshot."""
        source.waiting_blocks += sum(0 if isinstance(change, KvCleared) else len(change.blocks) for change in batch.changes)
        if source.waiting_blocks > _MAX_WAITING_BLOCKS:
            source.waiting.clear()
            source.waiting_blocks = 0
        elif batch.changes:
            source.waiting.append(batch)

    def _finish(self, chunk: SnapshotChunk, source: _Source, now_s: float) -> None:
        """Go on with what came meanwhile."""
        self.counts.snapshots += 1
        source.in_step, source.expected, source.complete = True, chunk.seq + 1, chunk.complete
        source.tries = 0
        self._chooser.loading.discard(chunk.worker)
        waiting, source.waiting, source.waiting_blocks = source.waiting, [], 0
        for batch in waiting:
            if batch.seq > chunk.seq:
                self.batch(batch, now_s)

    def _apply(self, worker: str, change: KvStored | KvRemoved | KvCleared) -> None:
        if isinstance(change, KvCleared):
            self._chooser.distrust(worker)
            return
        place = self._place(change.tier, worker)
        if place is None:
            return
        index, holder = place
        if isinstance(change, KvStored):
            index.stored(holder, change.blocks, change.parent)
            if change.tier is Tier.SHARED:
                self._chooser.predictions.stored(change.blocks)
            self.counts.stored_blocks += len(change.blocks)
        else:
            index.removed(holder, change.blocks, change.parents)
            self.counts.removed_blocks += len(change.blocks)

    def _place(self, tier: Tier, worker: str) -> tuple[KvIndex, str] | None:
        """Return where a tier's blocks are kept, and under whose name; None if they do not count."""
        source = self._sources[worker]
        if tier is Tier.SHARED:
            return (self._chooser.shared, source.store) if source.store else None
        if source.only_shared:
            return None
        return (self._chooser.device if tier is Tier.DEVICE else self._chooser.host), worker
