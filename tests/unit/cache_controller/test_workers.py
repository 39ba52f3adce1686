"""The roster and the workers' reports, on a clock that stands still unless told."""

from components.cache_controller.hashing import Root, Scheme
from components.cache_controller.holdings import Change, Trust
from components.cache_controller.limits import Counts, Limits
from components.cache_controller.lookup import Lookup
from components.cache_controller.reports import SyncBegin, WorkerAddress
from components.cache_controller.roster import Instant, Kind, Roster, WorkerKey
from components.cache_controller.workers import WorkerReports

A = WorkerAddress(WorkerKey("a", 0), "10.0.0.1", 8001, "10.0.0.1:8200")
B = WorkerAddress(WorkerKey("b", 0), "10.0.0.2", 8001)


class Bench:
    """Reports with all that is around them."""

    def __init__(self, **limits: float) -> None:
        self.now_s = 100.0
        self.roster, self.counts = Roster(), Counts()
        bounds = {"workers": 10, "chunks": 100, "worker_timeout_s": 30.0, "request_timeout_s": 1.0} | limits
        lookup = Lookup(Scheme(Root("builtin", 0, ""), 256), [])
        self.reports = WorkerReports(self.roster, lookup, Limits(**bounds), self.counts, self.clock)  # type: ignore[arg-type]

    def clock(self) -> Instant:
        return Instant(1e9 + self.now_s, self.now_s)

    def trust(self, worker: WorkerAddress) -> Trust:
        holdings = self.reports.holdings(worker.key)
        assert holdings is not None
        return holdings.trust


def test_a_late_heartbeat_registers_and_asks_for_everything() -> None:
    """Once it is told, it is asked no more."""
    bench = Bench()
    assert bench.reports.beat(A)
    assert bench.trust(A) is Trust.UNKNOWN
    assert bench.reports.sync_begins(A.key, SyncBegin("s", "cpu", 2, 1))
    assert bench.reports.beat(A) is None
    assert bench.reports.sync_state(A.key, "s").missing == [0]
    bench.reports.sync_batch(A.key, "s", 0, [1, 2])
    bench.reports.sync_ends(A.key, "s")
    state = bench.reports.sync_state(A.key, "s")
    assert (state.complete, state.over) == (True, True)
    assert (bench.trust(A), bench.reports.chunks, bench.counts.syncs) == (Trust.EXACT, 2, 1)
    assert bench.reports.beat(A) is None


def test_a_sync_nobody_knows_is_over() -> None:
    """Its worker stores nothing until it hears so."""
    bench = Bench()
    bench.reports.registered(A)
    state = bench.reports.sync_state(A.key, "of before")
    assert (state.complete, state.over) == (False, True)
    assert not bench.reports.sync_begins(B.key, SyncBegin("s", "cpu", 0, 1))


def test_two_workers_of_one_name() -> None:
    """The living one keeps it; one that fell silent loses it."""
    bench = Bench()
    bench.reports.registered(A)
    twin = WorkerAddress(A.key, "10.0.0.9", 8001)
    assert bench.reports.beat(twin) is None
    assert bench.counts.conflicts == 1
    bench.reports.deregistered(twin)
    found = bench.roster.find(A.key)
    assert found is not None
    assert found.ip == A.ip
    bench.now_s += 20
    assert bench.reports.beat(twin)
    assert [worker.ip for worker in bench.roster.everyone()] == ["10.0.0.9"]


def test_chunks_are_counted_and_go_with_their_worker() -> None:
    """Also when a report comes from nobody."""
    bench = Bench()
    bench.reports.registered(A)
    bench.reports.changed(A.key, "cpu", [Change(True, 1, 0), Change(True, 2, 1)])
    bench.reports.changed(B.key, "cpu", [Change(True, 1, 0)])
    assert (bench.reports.chunks, bench.counts.stray_reports) == (2, 1)
    bench.reports.registered(A)
    assert (bench.reports.chunks, bench.counts.replaced, len(bench.roster)) == (0, 1, 1)
    bench.reports.deregistered(A)
    assert len(bench.roster) == 0
    assert bench.roster.instances() == []


def test_a_peer_is_another_instance_that_can_send() -> None:
    """The one that holds most."""
    bench = Bench()
    bench.reports.registered(A)
    bench.reports.registered(B)
    for worker in (A, B):
        bench.reports.changed(worker.key, "cpu", [Change(True, 1, 0), Change(True, 2, 1)])
    found = bench.reports.peer_match("b", [1, 2, 3])
    assert found is not None
    assert (found.instance_id, found.location, found.chunks, found.peer_url) == ("a", "cpu", 2, "10.0.0.1:8200")
    assert bench.reports.peer_match("a", [1, 2]) is None
    assert bench.reports.peer_match("b", []) is None


def test_silence_is_told_by_the_last_sign_of_life() -> None:
    """Any report is one."""
    bench = Bench()
    bench.reports.registered(A)
    bench.reports.registered(B)
    bench.now_s += 20
    bench.reports.changed(A.key, "cpu", [])
    assert [each.key for each in bench.roster.silent(Kind.WORKER, bench.clock(), 15.0)] == [B.key]
