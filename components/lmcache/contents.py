"""Which chunks an LMCache server can give to engines, by the events it tells its coordinator. Pure.

A chunk goes when the server evicts it from its first level, or clears that, and no slower level (`lmcache.l2`) has it. Of an
event only what this needs is read; source: ``CacheEventsRequest`` in LMCache's ``v1/mp_coordinator/schemas.py``. What is
stored under a cache salt is left out, because engines tell of it without the salt (ADR 9).
"""

from collections.abc import Iterable

import msgspec

_MAX_SLOWER = 2**20


class EntryKey(msgspec.Struct, frozen=True):
    """What LMCache files one chunk's KV of one rank under; its hash is hexadecimal.

    Attributes:
        object_group_id: 0 for what every model has; others are layers with a sliding window, which may rightly miss chunks.
    """

    chunk_hash_hex: str
    kv_rank: int = 0
    object_group_id: int = 0
    cache_salt: str = ""

    @property
    def counts(self) -> bool:
        """Whether engines' own events say the same of this chunk."""
        return not self.cache_salt and not self.object_group_id


class Entry(msgspec.Struct, frozen=True):
    """One key an event is about."""

    key: EntryKey


class EventBatch(msgspec.Struct, frozen=True):
    """Events of one kind (``store``, ``delete``, others) at one backend of one level (``l1``, ``l2``)."""

    event_type: str
    tier: str
    backend: str = ""
    entries: list[Entry] = []


class Events(msgspec.Struct, frozen=True):
    """What a server posts."""

    batches: list[EventBatch] = []


class Change(msgspec.Struct, frozen=True):
    """What some events amount to; chunks are named by the low 64 bits of LMCache's hashes.

    Attributes:
        held: chunks that can be given now.
        gone: chunks that cannot any more.
    """

    held: list[int]
    gone: list[int]


class _Slower:
    """Where a chunk lies beside the first level."""

    def __init__(self) -> None:
        self.backends: set[str] = set()
        self.in_first = True


class Contents:
    """One server's chunks."""

    def __init__(self, max_slower: int = _MAX_SLOWER) -> None:
        """Begin with an empty server.

        Args:
            max_slower: most chunks of slower levels to remember; the eviction of others counts as their end.
        """
        self._max_slower = max_slower
        self._slower: dict[tuple[int, int], _Slower] = {}

    def apply(self, batches: Iterable[EventBatch]) -> Change:
        """Follow events, in order; a chunk is gone as soon as one rank's part of it is."""
        now: dict[int, bool] = {}
        for batch in batches:
            if batch.event_type not in {"store", "delete"}:
                continue
            for key in (entry.key for entry in batch.entries if entry.key.counts):
                chunk = int(key.chunk_hash_hex[-16:], 16)
                if batch.event_type == "store":
                    self._stored((chunk, key.kv_rank), batch)
                    now[chunk] = True
                elif self._deleted((chunk, key.kv_rank), batch):
                    now[chunk] = False
        return Change([chunk for chunk, held in now.items() if held], [chunk for chunk, held in now.items() if not held])

    def _stored(self, key: tuple[int, int], batch: EventBatch) -> None:
        if batch.tier == "l2":
            self._slower.setdefault(key, _Slower()).backends.add(batch.backend)
            if len(self._slower) > self._max_slower:
                del self._slower[next(iter(self._slower))]
        elif key in self._slower:
            self._slower[key].in_first = True

    def _deleted(self, key: tuple[int, int], batch: EventBatch) -> bool:
        """Return whether that was the last copy."""
        slower = self._slower.get(key)
        if slower is None:
            return batch.tier != "l2"
        if batch.tier != "l2":
            slower.in_first = False
            return False
        slower.backends.discard(batch.backend)
        if slower.backends:
            return False
        del self._slower[key]
        return not slower.in_first
