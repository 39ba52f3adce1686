"""Tests for the roster: who is there, who drains, who is gone, and whether there are other routers."""

from components.router.roster import Roster
from components.wire.process import ProcessState, ProcessStatus, WorkerRole, WorkerStatus

SILENT_S = 3.0
ROLES = {role.value for role in WorkerRole}


def status(
    name: str,
    state: ProcessState = ProcessState.READY,
    model: str = "demo",
    component: str = "decode",
    incarnation: str = "a1",
) -> ProcessStatus:
    """What a process tells of itself."""
    worker = WorkerStatus(model, 4096, 32, 100, role=WorkerRole(component)) if component in ROLES else None
    return ProcessStatus(name, component, incarnation, 1, "host", state, worker=worker)


def test_workers_of_the_model_are_there() -> None:
    """Those of another model are not, nor are processes that are no workers."""
    roster = Roster("demo", "router-0", SILENT_S)
    for each in (status("decode-0"), status("other-0", model="else"), status("processor-0", component="processor")):
        assert not roster.hear(each, 1.0)
    assert list(roster.workers) == ["decode-0"]


def test_prefill_workers_are_heard_but_no_candidates() -> None:
    """They come and go like others."""
    roster = Roster("demo", "router-0", SILENT_S)
    for each in (status("decode-0"), status("prefill-0", component="prefill"), status("prefill-1", component="prefill")):
        assert not roster.hear(each, 1.0)
    assert (list(roster.workers), list(roster.prefill_workers)) == (["decode-0"], ["prefill-0", "prefill-1"])
    assert roster.hear(status("prefill-0", ProcessState.STOPPED, component="prefill"), 2.0)
    assert roster.expire(1.1 + SILENT_S) == ["decode-0", "prefill-1"]
    assert roster.everybody == {}


def test_a_draining_worker_is_there_but_marked() -> None:
    """Until it is ready again or gone."""
    roster = Roster("demo", "router-0", SILENT_S)
    roster.hear(status("decode-0", ProcessState.DRAINING), 1.0)
    assert (list(roster.workers), roster.draining) == (["decode-0"], {"decode-0"})
    roster.hear(status("decode-0"), 2.0)
    assert roster.draining == set()
    roster.hear(status("decode-0", ProcessState.DRAINING), 3.0)
    assert roster.hear(status("decode-0", ProcessState.STOPPED), 4.0)
    assert (roster.workers, roster.draining) == ({}, set())
    assert not roster.hear(status("decode-0", ProcessState.STOPPED), 4.0)


def test_the_last_word_of_a_former_life_ends_nobody() -> None:
    """It may come after its successor's first."""
    roster = Roster("demo", "router-0", SILENT_S)
    roster.hear(status("decode-0", incarnation="new"), 1.0)
    for state in (ProcessState.STOPPED, ProcessState.FAILED):
        assert not roster.hear(status("decode-0", state, incarnation="old"), 2.0)
    assert list(roster.workers) == ["decode-0"]


def test_who_is_silent_is_gone() -> None:
    """Unless the bus was away, which excuses all."""
    roster = Roster("demo", "router-0", SILENT_S)
    roster.hear(status("decode-0"), 1.0)
    roster.hear(status("decode-1"), 1.0)
    assert roster.expire(1.0 + SILENT_S) == []
    roster.hear(status("decode-1"), 2.0)
    assert roster.expire(1.1 + SILENT_S) == ["decode-0"]
    roster.excuse(100.0)
    assert roster.expire(100.0 + SILENT_S) == []
    assert roster.expire(100.1 + SILENT_S) == ["decode-1"]


def test_other_routers_are_heard() -> None:
    """A router alone tells nobody of its choices; it does not count itself."""
    roster = Roster("demo", "router-0", SILENT_S)
    roster.hear(status("router-0", component="router"), 1.0)
    assert roster.alone
    roster.hear(status("router-1", component="router"), 1.0)
    assert not roster.alone
    roster.expire(1.1 + SILENT_S)
    assert roster.alone
    roster.hear(status("router-1", component="router"), 10.0)
    roster.hear(status("router-1", ProcessState.STOPPED, component="router"), 11.0)
    assert roster.alone
