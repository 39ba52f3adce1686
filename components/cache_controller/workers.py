"""In-process workers of LMCache: what they report, who of them is still there, and what they are told to do.

Takes reports from `lmcache_protocol`. Pure but for the clock it is given; `liveness` asks the silent ones.
"""

import logging
from collections.abc import Callable

from components.cache_controller.holdings import Change, Holdings, Trust
from components.cache_controller.limits import Counts, Limits
from components.cache_controller.lookup import Lookup
from components.cache_controller.reports import PeerMatch, SyncBegin, SyncState, WorkerAddress
from components.cache_controller.roster import Instant, Kind, Roster, Worker, WorkerKey

log = logging.getLogger(__name__)

_SYNC_PATIENCE_S = 30.0

Clock = Callable[[], Instant]


class WorkerReports:
    """Keeps roster and holdings as workers report. Implements `Reports`.

    Args:
        roster: all workers, also those of other kinds.
        lookup: is told when an instance may hash otherwise than before.
        limits: how much is kept.
        counts: what happened.
        clock: tells the time.
    """

    def __init__(self, roster: Roster, lookup: Lookup, limits: Limits, counts: Counts, clock: Clock) -> None:
        self._roster = roster
        self._lookup = lookup
        self._limits = limits
        self._counts = counts
        self._clock = clock
        self._holdings: dict[WorkerKey, Holdings] = {}
        self._chunks = 0
        self.addresses_changed = False

    @property
    def chunks(self) -> int:
        """How many chunk hashes are kept; one counts once for each worker and location."""
        return self._chunks

    def holdings(self, key: WorkerKey) -> Holdings | None:
        """Return what a worker holds; None when it is no in-process worker."""
        return self._holdings.get(key)

    def instances(self) -> dict[str, list[Holdings]]:
        """Return the holdings of every instance's workers."""
        found: dict[str, list[Holdings]] = {}
        for key, holdings in self._holdings.items():
            found.setdefault(key.instance_id, []).append(holdings)
        return found

    def registered(self, worker: WorkerAddress) -> str | None:
        """A worker has just begun: it holds nothing. One of the same name is replaced."""
        former = self._roster.find(worker.key)
        if former is None and len(self._roster) >= self._limits.workers:
            self._counts.refused_registrations += 1
            return f"this controller takes at most {self._limits.workers} workers (max_workers)"
        if former is not None:
            self._counts.replaced += 1
            log.warning("a worker registers again", extra={"instance": worker.key.instance_id, "rank": worker.key.worker_id})
        self.admit(worker, self._clock(), Trust.EXACT)
        return None

    def admit(self, worker: WorkerAddress, registered: Instant, trust: Trust) -> None:
        """Put a worker on the roster, and begin to keep what it holds."""
        self.forget(worker.key)
        seen = self._clock()
        self._roster.put(Worker(worker.key, Kind.WORKER, worker.ip, worker.port, worker.peer_init_url, registered, seen))
        self._holdings[worker.key] = Holdings(trust)
        self._lookup.forget(worker.key.instance_id)
        self._counts.registrations += 1
        self.addresses_changed = True

    def beat(self, worker: WorkerAddress) -> str | None:
        """A worker lives; one that is not known is registered, and asked for all it holds."""
        former, now = self._roster.find(worker.key), self._clock()
        if former is None:
            if len(self._roster) >= self._limits.workers:
                self._counts.refused_registrations += 1
                return None
            self.admit(worker, now, Trust.UNKNOWN)
        elif (former.ip, former.port) != (worker.ip, worker.port):
            if now.monotonic_s - former.seen.monotonic_s < self._limits.worker_timeout_s / 2:
                self._counts.conflicts += 1
                return None
            self.admit(worker, now, Trust.UNKNOWN)
        self._roster.seen(worker.key, now, beat=True)
        holdings = self._holdings.get(worker.key)
        if holdings is None or not holdings.wants_sync(now.monotonic_s, _SYNC_PATIENCE_S):
            return None
        return "reports were lost" if holdings.trust is Trust.GAP else "the controller does not know what the worker holds"

    def deregistered(self, worker: WorkerAddress) -> None:
        """A worker leaves; an older one of the same name takes nothing with it."""
        former = self._roster.find(worker.key)
        if former is not None and (former.ip, former.port) == (worker.ip, worker.port):
            self.forget(worker.key)

    def forget(self, key: WorkerKey) -> None:
        """Drop a worker and all that is known of it."""
        holdings = self._holdings.pop(key, None)
        if holdings is None:
            return
        self._chunks -= len(holdings)
        self._roster.remove(key)
        if not self._roster.instance(key.instance_id):
            self._lookup.forget(key.instance_id)
        self.addresses_changed = True

    def changed(self, key: WorkerKey, location: str, changes: list[Change]) -> None:
        """Chunks came or went."""
        holdings = self._heard(key)
        if holdings is None:
            return
        before = len(holdings)
        self._counts.refused_chunks += holdings.change(location, changes, self._limits.chunks - self._chunks)
        self._chunks += len(holdings) - before

    def sync_begins(self, key: WorkerKey, sync: SyncBegin) -> bool:
        """A worker is going to tell all it holds."""
        holdings = self._heard(key)
        if holdings is None:
            return False
        holdings.begin_sync(sync.sync_id, sync.location, max(1, sync.batches), self._clock().monotonic_s)
        return True

    def sync_batch(self, key: WorkerKey, sync_id: str, batch: int, chunks: list[int]) -> None:
        """A part of what a worker holds."""
        holdings = self._heard(key)
        if holdings is None:
            return
        staged = len(holdings.sync.chunks) if holdings.sync else 0
        room = self._limits.chunks - (self._chunks - len(holdings)) - staged
        refused = holdings.add_batch(sync_id, batch, chunks, room, self._clock().monotonic_s)
        if refused is None:
            self._counts.stray_reports += 1
        else:
            self._counts.refused_chunks += refused

    def sync_ends(self, key: WorkerKey, sync_id: str) -> None:
        """Let what a worker told count."""
        holdings = self._heard(key)
        if holdings is None:
            return
        before = len(holdings)
        if holdings.end_sync(sync_id):
            self._counts.syncs += 1
            self._chunks += len(holdings) - before

    def sync_state(self, key: WorkerKey, sync_id: str) -> SyncState:
        """Tell a worker how far its sync is."""
        holdings = self._heard(key)
        if holdings is None or holdings.sync is None or holdings.sync.sync_id != sync_id:
            complete = holdings is not None and holdings.synced(sync_id)
            return SyncState(complete=complete, over=True, missing=[])
        return SyncState(complete=False, over=False, missing=holdings.sync.missing)

    def peer_match(self, instance_id: str, chunks: list[int]) -> PeerMatch | None:
        """Return the instance, other than the one that asks, that holds most of `chunks` and can send it."""
        best: PeerMatch | None = None
        for key, holdings in self._holdings.items():
            worker = self._roster.find(key)
            if not chunks or worker is None or worker.peer_init_url is None or key.instance_id == instance_id:
                continue
            count = holdings.prefix(chunks)
            if count > (best.chunks if best else 0):
                best = PeerMatch(key.instance_id, holdings.where(chunks[0]) or "", count, worker.peer_init_url)
        return best

    def malformed(self) -> None:
        """Something came that is no message."""
        self._counts.malformed += 1

    def _heard(self, key: WorkerKey) -> Holdings | None:
        """Take note of a sign of life, and return what the worker holds; None when it is not registered."""
        holdings = self._holdings.get(key)
        if holdings is None:
            self._counts.stray_reports += 1
        else:
            self._roster.seen(key, self._clock(), beat=False)
        return holdings
