"""Which worker is least busy, and which are gone."""

import msgspec

from components.processor.fleet import Fleet
from components.wire.process import ProcessState, ProcessStatus, WorkerLoad, WorkerStatus


def status(
    name: str,
    running: int = 0,
    state: ProcessState = ProcessState.READY,
    incarnation: str = "1",
    model: str = "demo",
    context: int = 100,
) -> ProcessStatus:
    """Return a worker's status."""
    offer = WorkerStatus(model, context, 32, 10, WorkerLoad(running_requests=running, waiting_requests=0))
    return ProcessStatus(name, "decode", incarnation, 1, "host", state, worker=offer)


def fleet(*statuses: ProcessStatus) -> Fleet:
    """Return a fleet that has heard `statuses` at time 0."""
    made = Fleet("demo")
    for each in statuses:
        assert made.hear(each, 0.0) == []
    return made


def chosen(made: Fleet, *avoid: str) -> str | None:
    """Return the name of the choice."""
    worker = made.choose(frozenset(avoid))
    return worker.name if worker else None


def test_the_least_busy_is_chosen() -> None:
    """By what they told."""
    assert chosen(fleet(status("a", 3), status("b", 1), status("c", 2))) == "b"


def test_equals_take_turns() -> None:
    """The one longest not chosen."""
    made = fleet(status("a"), status("b"), status("c"))
    assert [chosen(made) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_what_was_given_since_the_last_status_counts() -> None:
    """And counts once, when the next status tells it too."""
    made = fleet(status("a", 1), status("b", 2))
    worker = made.choose()
    assert worker is not None
    worker.inflight += 2
    assert worker.busy == 3
    assert chosen(made) == "b"
    made.hear(status("a", 3), 1.0)
    assert worker.busy == 3
    worker.inflight -= 2
    assert worker.busy == 1


def test_avoided_workers_are_the_last_resort() -> None:
    """One of them is better than none."""
    made = fleet(status("a"), status("b", 9))
    assert chosen(made, "a") == "b"
    assert chosen(made, "a", "b") == "a"


def test_a_draining_worker_gets_nothing_new_and_is_not_gone() -> None:
    """Its requests go on."""
    made = fleet(status("a"))
    assert made.hear(status("a", state=ProcessState.DRAINING), 1.0) == []
    assert chosen(made) is None
    assert made.expire(2.0, 3.0) == []


def test_stopped_failed_restarted_and_silent_workers_are_gone() -> None:
    """Each way is told once."""
    for state in (ProcessState.STOPPED, ProcessState.FAILED, ProcessState.STARTING):
        made = fleet(status("a"))
        assert [worker.name for worker in made.hear(status("a", state=state), 1.0)] == ["a"]
        assert made.ready() == []
    made = fleet(status("a"))
    assert [worker.incarnation for worker in made.hear(status("a", incarnation="2"), 1.0)] == ["1"]
    assert [worker.incarnation for worker in made.ready()] == ["2"]
    assert made.expire(3.9, 3.0) == []
    assert [worker.name for worker in made.expire(4.1, 3.0)] == ["a"]


def test_the_last_word_of_a_former_life_ends_nobody() -> None:
    """It may come after its successor's first: the successor keeps its requests."""
    made = fleet(status("a", incarnation="new"))
    for state in (ProcessState.STOPPED, ProcessState.FAILED):
        assert made.hear(status("a", incarnation="old", state=state), 1.0) == []
    assert chosen(made) == "a"
    assert "a" in made.processes


def test_silence_is_excused_after_an_absence_of_the_bus() -> None:
    """Time starts again."""
    made = fleet(status("a"))
    made.excuse(10.0)
    assert made.expire(12.0, 3.0) == []


def test_time_in_which_nobody_listened_is_no_silence() -> None:
    """A process held up for ten seconds forgets nobody for it, now or at its next turn; real silence still counts."""
    made = fleet(status("a"), status("b"))
    made.hear(status("b"), 2.0)
    assert made.expire(12.0, 3.0, late_s=10.0) == []
    assert set(made.processes) == {"a", "b"}
    assert made.expire(12.9, 3.0) == []
    assert [worker.name for worker in made.expire(13.2, 3.0)] == ["a"]
    assert made.ready()[0].heard_s == 12.0
    assert [worker.name for worker in made.expire(15.1, 3.0)] == ["b"]


def test_other_models_and_other_processes_are_not_chosen() -> None:
    """Only workers of our model; every living process is counted for scrapes."""
    made = fleet(status("a", model="other"), ProcessStatus("processor-0", "processor", "1", 1, "host", ProcessState.READY))
    assert chosen(made) is None
    assert set(made.processes) == {"a", "processor-0"}
    assert not made.ever_ready


def test_the_context_is_what_every_worker_takes() -> None:
    """The shortest of them."""
    assert fleet(status("a", context=50), status("b", context=40)).context_tokens() == 40
    assert fleet().context_tokens() is None


def test_progress_is_tokens_in_or_out() -> None:
    """Of whatever request; the same counts told again are a standstill, and so is a queue that grows."""

    def told(prompt: int, output: int, waiting: int = 0) -> ProcessStatus:
        load = WorkerLoad(waiting_requests=waiting, prompt_tokens=prompt, output_tokens=output)
        return msgspec.structs.replace(status("a"), worker=WorkerStatus("demo", 100, 32, 10, load))

    made = fleet(told(0, 0))
    (worker,) = made.ready()
    progress = []
    for now_s, each in enumerate([told(0, 0), told(8, 0), told(8, 0, 5), told(8, 1), told(8, 1)], start=1):
        made.hear(each, float(now_s))
        progress.append(worker.progress_s)
    assert progress == [0.0, 2.0, 2.0, 4.0, 4.0]


def test_a_worker_that_does_not_listen_is_still_expected() -> None:
    """Its running requests are there yet: it is gone, and they with it, only when it falls silent."""
    made = fleet(status("a"))
    (worker,) = made.ready()
    made.remove(worker)
    assert made.ready() == []
    assert made.expire(4.0, 3.0) == [worker]


def test_a_worker_that_does_not_listen_comes_back_with_its_next_status() -> None:
    """Removing is not for ever."""
    made = fleet(status("a"))
    made.remove(made.ready()[0])
    assert chosen(made) is None
    made.hear(status("a"), 1.0)
    assert chosen(made) == "a"
