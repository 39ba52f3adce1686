"""Which chunks one worker holds, as it reports them: one by one with numbers, or all at once in a full sync. No I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Trust(StrEnum):
    """How far what is known of a worker can be relied on."""

    EXACT = "exact"  # every report since it came has arrived
    UNKNOWN = "unknown"  # it was there before this controller was; a full sync will tell
    GAP = "gap"  # reports were lost; a full sync will tell
    FULL = "full"  # some were refused, because the controller keeps as many chunks as it may


class Change(NamedTuple):
    """A chunk that came or went.

    Attributes:
        admitted: came; else went.
        chunk: its hash.
        number: counts the changes of one worker at one location, from 0.
    """

    admitted: bool
    chunk: int
    number: int


@dataclass
class Sync:
    """A full sync on its way; what is known counts until it is complete.

    Attributes:
        sync_id: the worker's name for it.
        location: which of its locations it tells of.
        batches: how many parts it has.
        heard_s: when its beginning or its last part came, on the monotonic clock.
        chunks: told so far, with the changes that came meanwhile.
        received: the numbers of the parts that came.
        refused: how many chunks there was no room for.
    """

    sync_id: str
    location: str
    batches: int
    heard_s: float
    chunks: set[int] = field(default_factory=set)
    received: set[int] = field(default_factory=set)
    refused: int = 0

    @property
    def missing(self) -> list[int]:
        """The parts that have not come."""
        return sorted(set(range(self.batches)) - self.received)


class Holdings:
    """The chunks of one worker, by location (such as ``LocalCPUBackend``)."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self.sync: Sync | None = None
        self.lost = 0
        self._locations: dict[str, set[int]] = {}
        self._next: dict[str, int] = {}
        self._last_sync: str | None = None

    def __len__(self) -> int:
        return sum(len(chunks) for chunks in self._locations.values())

    @property
    def holds_any(self) -> bool:
        """Whether it holds any chunk."""
        return any(self._locations.values())

    @property
    def locations(self) -> dict[str, int]:
        """How many chunks lie at each location."""
        return {location: len(chunks) for location, chunks in self._locations.items()}

    def where(self, chunk: int) -> str | None:
        """Return a location of a chunk, the first one the worker reported from."""
        for location, chunks in self._locations.items():
            if chunk in chunks:
                return location
        return None

    def prefix(self, chunks: Sequence[int]) -> int:
        """Return how many of `chunks` the worker holds, from the first on without a hole."""
        for index, chunk in enumerate(chunks):
            if self.where(chunk) is None:
                return index
        return len(chunks)

    def change(self, location: str, changes: Sequence[Change], room: int) -> int:
        """Apply numbered changes, in order.

        Args:
            location: where the chunks came or went.
            changes: what happened.
            room: how many more chunks may be kept; further ones are refused.

        Returns:
            How many were refused.
        """
        refused = 0
        chunks = self._locations.setdefault(location, set())
        staged = self.sync.chunks if self.sync and self.sync.location == location else None
        for change in changes:
            self._count(location, change.number)
            if not change.admitted:
                chunks.discard(change.chunk)
                if staged is not None:
                    staged.discard(change.chunk)
            elif room > 0 or change.chunk in chunks:
                room -= change.chunk not in chunks
                chunks.add(change.chunk)
                if staged is not None:
                    staged.add(change.chunk)
            else:
                refused += 1
        if refused:
            self.trust = Trust.FULL
        return refused

    def _count(self, location: str, number: int) -> None:
        """Notice lost changes: numbers that were left out. Where the count of a worker of before is, nobody knows."""
        expected = self._next.get(location, 0 if self.trust is Trust.EXACT else number)
        if number > expected:
            self.lost += number - expected
            self.trust = Trust.GAP
        self._next[location] = number + 1

    def begin_sync(self, sync_id: str, location: str, batches: int, now_s: float) -> None:
        """Await a full sync of one location; a former one that did not end is forgotten."""
        self.sync = Sync(sync_id, location, batches, now_s)

    def add_batch(self, sync_id: str, batch: int, chunks: Iterable[int], room: int, now_s: float) -> int | None:
        """Take a part of a full sync. Return how many of its chunks were refused; None when no such sync is on its way."""
        sync = self.sync
        if sync is None or sync.sync_id != sync_id:
            return None
        wanted = set(chunks) - sync.chunks
        taken = wanted if len(wanted) <= room else set(list(wanted)[: max(0, room)])
        sync.chunks |= taken
        sync.received.add(batch)
        sync.heard_s = now_s
        sync.refused += len(wanted) - len(taken)
        return len(wanted) - len(taken)

    def wants_sync(self, now_s: float, patience_s: float) -> bool:
        """Whether only a full sync makes this exact, and none is on its way, or one that stood still for `patience_s`."""
        waiting = self.sync is not None and now_s - self.sync.heard_s < patience_s
        return self.trust in {Trust.UNKNOWN, Trust.GAP} and not waiting

    def end_sync(self, sync_id: str) -> bool:
        """Let the synced chunks count, if all parts came. Return whether they did."""
        sync = self.sync
        if sync is None or sync.sync_id != sync_id or sync.missing:
            return False
        self._locations[sync.location] = sync.chunks
        self.trust = Trust.FULL if sync.refused else Trust.EXACT
        self.sync, self._last_sync = None, sync_id
        return True

    def synced(self, sync_id: str) -> bool:
        """Whether the sync of this name is complete."""
        return self._last_sync == sync_id
