"""One process's life under supervision, told the time."""

import signal

from hypothesis import given
from hypothesis import strategies as st

from components.graph.schema import Supervision
from components.launch.plan import ProcessSpec
from components.launch.watch import HEALTHY_S, Phase, Watch
from components.wire.process import ProcessState, ProcessStatus

RULES = Supervision()


def watch(rules: Supervision = RULES) -> Watch:
    """Return a process started at 0 with pid 7."""
    made = Watch(ProcessSpec("decode-0", "decode", "components.decode"), rules, "here")
    made.starts(0)
    made.lives(7)
    return made


def says(state: ProcessState, detail: str = "", pid: int = 7, host: str = "here") -> ProcessStatus:
    """Return what the process says."""
    return ProcessStatus("decode-0", "decode", "i", pid, host, state, detail)


def test_it_is_ready_when_it_says_so() -> None:
    """Its word counts, another incarnation's does not."""
    process = watch()
    process.hear(says(ProcessState.READY, pid=6), 1)
    process.hear(says(ProcessState.READY, host="another machine"), 1)
    assert process.phase is Phase.STARTING
    process.hear(says(ProcessState.READY, "vllm"), 2)
    assert (process.phase, process.detail, process.ready_after_s) == (Phase.READY, "vllm", 2)


def test_its_last_words_explain_its_death() -> None:
    """A FAILED status beats the last line of the log; a signal needs no words."""
    process = watch()
    process.hear(says(ProcessState.FAILED, "no such model"), 1)
    process.died(1, "some line", 2)
    assert process.last_death == "exit code 1: no such model"
    process.starts(3)
    process.died(1, "some line", 4)
    assert process.last_death == "exit code 1: some line"
    process.starts(5)
    process.died(-signal.SIGSEGV, "some line", 6)
    assert process.last_death == "killed by SIGSEGV"


@given(deaths=st.integers(1, 10))
def test_backoff_doubles_up_to_its_limit(deaths: int) -> None:
    """The n-th death in a row waits 2^(n-1) times the first wait, at most the longest."""
    process = watch()
    for _ in range(deaths):
        process.starts(0)
        process.lives(7)
        process.died(1, "", 0)
    assert process.restart_at_s == min(2 ** (deaths - 1), 30)
    assert not process.due(process.restart_at_s - 0.01)
    assert process.due(process.restart_at_s)


def test_it_is_given_up_after_too_many_deaths() -> None:
    """The death after the last restart is final."""
    process = watch(Supervision(max_restarts=1))
    process.died(1, "", 0)
    assert process.phase is Phase.RESTARTING
    process.died(1, "out of memory", 1)
    assert process.phase is Phase.FAILED
    assert process.detail == "given up after 2 deaths: exit code 1: out of memory"
    assert not process.due(1e9)


def test_a_healthy_minute_forgives() -> None:
    """Deaths before a healthy minute do not count."""
    process = watch(Supervision(max_restarts=1))
    process.died(1, "", 0)
    process.starts(1)
    process.lives(7)
    process.hear(says(ProcessState.READY), 2)
    process.died(1, "", 2 + HEALTHY_S)
    assert process.phase is Phase.RESTARTING


def test_late_and_silent() -> None:
    """Not ready in time, or silent for too long: a sentence, once; silence nobody could have heard is excused."""
    process = watch()
    assert process.overdue(RULES.start_timeout_s) is None
    assert process.overdue(RULES.start_timeout_s + 1) == "not ready within 300 s"
    process.hear(says(ProcessState.READY), 10)
    assert process.overdue(10 + RULES.status_timeout_s) is None
    assert process.overdue(11 + RULES.status_timeout_s) == "silent for 10 s"
    process.excuse(11 + RULES.status_timeout_s)
    assert process.overdue(12 + RULES.status_timeout_s) is None
    process.sentence("silent for 10 s")
    assert process.overdue(1e9) is None
    process.died(-signal.SIGKILL, "", 100)
    assert process.last_death == "silent for 10 s"
