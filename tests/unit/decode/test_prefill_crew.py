"""Which prefill workers a decode worker counts on."""

import pytest

from components.decode.prefill_crew import PrefillCrew
from components.wire.process import ProcessState, ProcessStatus, WorkerRole, WorkerStatus

SILENT_S = 3.0


def status(
    name: str = "prefill-0",
    state: ProcessState = ProcessState.READY,
    role: WorkerRole = WorkerRole.PREFILL,
    model: str = "demo",
    store: str = "lmcache-0",
) -> ProcessStatus:
    """Return what a worker tells of itself."""
    return ProcessStatus(name, "prefill", "a1", 1, "h", state, worker=WorkerStatus(model, 64, 32, 8, role=role, store=store))


def crew(*heard: ProcessStatus, at_s: float = 100.0) -> PrefillCrew:
    """Return a crew that has heard these statuses."""
    known = PrefillCrew("demo", "lmcache-0", SILENT_S)
    for each in heard:
        known.hear(each, at_s)
    return known


def test_ready_ones_count() -> None:
    """Each once, however often it speaks."""
    assert crew().ready(100) == 0
    assert crew(status(), status(), status("prefill-1")).ready(100) == 2


@pytest.mark.parametrize(
    "other", [status(role=WorkerRole.DECODE), status(model="another"), status(store="lmcache-b-0"), status(store="")]
)
def test_strangers_do_not(other: ProcessStatus) -> None:
    """Who decodes, serves another model or shares KV through another server is of no use."""
    assert crew(other).ready(100) == 0
    assert not crew(other).lives(other.name, 100)


def test_who_is_silent_is_gone() -> None:
    """Its jobs are given up, and it comes back with its next status."""
    known = crew(status(), at_s=100)
    assert known.lives("prefill-0", 100 + SILENT_S - 0.01)
    assert not known.lives("prefill-0", 100 + SILENT_S)
    assert known.ready(100 + SILENT_S) == 0
    known.hear(status(), 200)
    assert known.ready(200) == 1


def test_a_draining_one_takes_nothing_but_finishes() -> None:
    """It lives, so its jobs are waited for; nothing new is counted on it."""
    known = crew(status(), status(state=ProcessState.DRAINING))
    assert known.ready(100) == 0
    assert known.lives("prefill-0", 100)


@pytest.mark.parametrize("state", [ProcessState.STOPPED, ProcessState.FAILED, ProcessState.STARTING])
def test_one_that_ended_is_gone_at_once(state: ProcessState) -> None:
    """Nobody waits for its silence; a restart is news."""
    known = crew(status(), status(state=state))
    assert known.ready(100) == 0
    assert not known.lives("prefill-0", 100)
