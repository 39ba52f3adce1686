"""The supervisor with real processes and a real nats-server; the processes do nothing but live, speak, and die as told."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from components.engine.vllm_args import IPC_FOLDER
from components.launch.guard import processes_of
from components.launch.launch import stop_graph
from components.launch.plan import Plan
from components.launch.state import GraphPhase, GraphState, ProcessRecord, StateFolder
from components.launch.supervisor import Supervisor
from components.launch.watch import Phase
from tests.support.nats import nats_server
from tests.support.stub_graph import ROOT, stub_plan


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own state folder, and no secrets left behind in the environment."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("PENSTOCK_NATS_TOKEN", "")


class Running:
    """A supervisor at work in this process, and the states it told."""

    def __init__(self, plan: Plan) -> None:
        self.states: list[GraphState] = []
        self._changed = asyncio.Event()
        self.folder = StateFolder(plan.graph.name)
        self.folder.make()
        self.supervisor = Supervisor(plan, self.folder, self._show)

    async def until(self, condition: Callable[[GraphState], bool], wait_s: float = 20) -> GraphState:
        """Wait for a state that fulfils `condition`, and return it."""
        async with asyncio.timeout(wait_s):
            while not (self.states and condition(self.states[-1])):
                self._changed.clear()
                await self._changed.wait()
        return self.states[-1]

    def _show(self, state: GraphState) -> None:
        self.states.append(state)
        self._changed.set()


@asynccontextmanager
async def running(plan: Plan) -> AsyncIterator[Running]:
    """Run a supervisor, stop it at the end, and see that it left no process."""
    graph = Running(plan)
    task = asyncio.create_task(graph.supervisor.run())
    try:
        yield graph
    finally:
        graph.supervisor.stop()
        async with asyncio.timeout(20):
            await task
    assert processes_of(graph.states[0].run) == []


def is_ready(state: GraphState) -> bool:
    """Whether the graph came up."""
    return state.phase is GraphPhase.READY


def record(state: GraphState, name: str) -> ProcessRecord:
    """Return the record of one process."""
    return next(process for process in state.processes if process.name == name)


def is_there(folder: Path) -> bool:
    """Whether there is such a folder."""
    return folder.is_dir()


def recovered(name: str, restarts: int = 1) -> Callable[[GraphState], bool]:
    """Return a condition: the process was restarted so often and is ready again."""

    def condition(state: GraphState) -> bool:
        process = record(state, name)
        return process.restarts >= restarts and process.phase is Phase.READY

    return condition


async def test_all_come_up_and_all_go() -> None:
    """A graph is ready when all its processes said so; stopped, all of them have ended by themselves, their sockets too."""
    async with running(stub_plan({"a": "good", "b": "good"})) as graph:
        state = await graph.until(is_ready)
        assert {process.name for process in state.processes} == {"nats", "a", "b"}
        assert all(process.pid and process.phase is Phase.READY for process in state.processes)
        assert record(state, "a").worker is not None
        sockets = Path(psutil.Process(record(state, "a").pid).environ()[IPC_FOLDER])
        assert is_there(sockets)
    assert not is_there(sockets)
    assert graph.states[-1].phase is GraphPhase.STOPPED
    assert graph.supervisor.failure == ""


async def test_a_killed_process_is_restarted_and_the_reason_kept() -> None:
    """SIGKILL from outside: a new process with a new pid, and the reason in the state."""
    async with running(stub_plan({"a": "good", "b": "good"})) as graph:
        pid = record(await graph.until(is_ready), "a").pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        after = record(await graph.until(recovered("a")), "a")
        assert after.pid != pid
        assert after.last_death == "killed by SIGKILL"
        assert record(graph.states[-1], "b").restarts == 0


async def test_a_crash_loop_backs_off_and_ends() -> None:
    """A process that dies again and again is given up after max_restarts, with its own words; the others live on."""
    plan = stub_plan({"a": "good", "b": "crashes"}, max_restarts=2)
    async with running(plan) as graph:
        state = await graph.until(lambda state: record(state, "b").phase is Phase.FAILED)
        assert record(state, "b").restarts == 2
        assert "exit code 1: the stub crashes" in record(state, "b").detail
        assert record(state, "a").phase is Phase.READY
        assert state.phase is GraphPhase.READY


async def test_workers_of_one_gpu_start_one_after_another() -> None:
    """Each would count the other's memory as it comes; those of other GPUs do not wait. So do restarts."""
    plan = stub_plan(dict.fromkeys(("a", "b", "c", "d"), "good"))
    gpus = {"a": ("0", "1"), "b": ("1",), "c": ("0",), "d": ()}
    stubs = [
        replace(spec, shared_gpus=gpus[spec.name], environment={**spec.environment, "STUB_READY_S": "0.5"})
        for spec in plan.processes[1:]
    ]

    def starting(state: GraphState) -> set[str]:
        return {process.name for process in state.processes[1:] if process.pid and process.phase is Phase.STARTING}

    async with running(Plan(plan.graph, (plan.processes[0], *stubs))) as graph:
        await graph.until(is_ready)
        at_once = [starting(state) for state in graph.states]
        assert {"a", "d"} in at_once
        assert {"b", "c"} in at_once
        assert not any("a" in names and names & {"b", "c"} for names in at_once)
        assert "waits for a, which starts on the same GPU" in {record(state, "b").detail for state in graph.states}
        seen = len(graph.states)
        for name in ("a", "b"):
            os.kill(record(graph.states[-1], name).pid or 0, signal.SIGKILL)
        await graph.until(lambda state: recovered("a")(state) and recovered("b")(state))
        assert not any({"a", "b"} <= starting(state) for state in graph.states[seen:])


async def test_a_refusal_to_start_fails_the_launch() -> None:
    """What ends by itself during the launch would do so again: the launch fails with its words, and all are stopped."""
    async with running(stub_plan({"a": "good", "b": "refuses"})) as graph:
        state = await graph.until(lambda state: state.phase is GraphPhase.FAILED)
        assert state.failure == "b: exit code 1: the stub refuses to start"
        assert all(process.pid is None for process in state.processes)


@pytest.mark.parametrize("behaviour", ["good", "refuses"])
async def test_nobody_waits_for_a_late_process(behaviour: str) -> None:
    """It is started when the others are ready; whatever becomes of it, the graph is."""
    plan = stub_plan({"a": "good", "b": behaviour}, max_restarts=1)
    specs = [replace(spec, late=True) if spec.name == "b" else spec for spec in plan.processes]
    async with running(Plan(plan.graph, tuple(specs))) as graph:
        ready = await graph.until(is_ready)
        assert record(ready, "b").pid is None
        end = Phase.READY if behaviour == "good" else Phase.FAILED
        state = await graph.until(lambda state: record(state, "b").phase is end)
        assert (state.phase, record(state, "a").phase, record(state, "a").restarts) == (GraphPhase.READY, Phase.READY, 0)
    assert graph.supervisor.failure == ""


async def test_never_ready_fails_the_launch() -> None:
    """A process that is not ready in time ends the launch."""
    async with running(stub_plan({"a": "never ready"}, start_timeout_s=1.5)) as graph:
        state = await graph.until(lambda state: state.phase is GraphPhase.FAILED)
        assert state.failure == "a: not ready within 1.5 s"


async def test_a_frozen_process_is_killed_and_restarted() -> None:
    """A process that falls silent (SIGSTOP) is replaced."""
    async with running(stub_plan({"a": "freezes"}, status_timeout_s=1.5)) as graph:
        state = await graph.until(lambda state: record(state, "a").restarts >= 1)
        assert record(state, "a").last_death == "silent for 1.5 s"


async def test_nats_dies_and_comes_back_at_the_same_place() -> None:
    """NATS killed: restarted on its port with its token; nobody else is restarted, and everybody is heard again."""
    async with running(stub_plan({"a": "good"}, status_timeout_s=3)) as graph:
        state = await graph.until(is_ready)
        nats, a = record(state, "nats"), record(state, "a")
        assert nats.pid
        assert a.pid
        os.kill(nats.pid, signal.SIGKILL)
        await graph.until(recovered("nats"))
        await asyncio.sleep(4)  # longer than silence is borne
        assert record(graph.states[-1], "a").pid == a.pid
        os.kill(a.pid, signal.SIGKILL)
        await graph.until(recovered("a"))


async def test_inner_processes_die_with_their_process() -> None:
    """What a process leaves behind in its group or elsewhere is gone when the graph is."""
    async with running(stub_plan({"a": "leaves a child"})) as graph:
        state = await graph.until(is_ready)
        await asyncio.sleep(0.2)
        assert len(processes_of(state.run)) == 3  # nats, a, and a's child


async def test_a_deaf_process_is_killed_at_the_stop_timeout() -> None:
    """A process that ignores SIGTERM does not keep the graph from stopping."""
    async with running(stub_plan({"a": "deaf"}, stop_timeout_s=1.0)) as graph:
        await graph.until(is_ready)
        before = time.monotonic()
    assert time.monotonic() - before < 8


async def test_an_unreachable_nats_fails_the_launch() -> None:
    """A server of the user's that is not there is named, and nothing is started."""
    plan = stub_plan({"a": "good"})
    graph = Running(Plan(replace(plan.graph, nats="nats://127.0.0.1:1"), plan.processes[1:]))
    async with asyncio.timeout(30):
        await graph.supervisor.run()
    assert "no NATS server at nats://127.0.0.1:1" in graph.supervisor.failure


async def test_a_nats_server_of_the_users(tmp_path: Path) -> None:
    """With a server of the user's the graph runs without one of its own, and leaves it running."""
    plan = stub_plan({"a": "good"})
    async with nats_server(tmp_path / "nats") as server:
        async with running(Plan(replace(plan.graph, nats=server), plan.processes[1:])) as graph:
            state = await graph.until(is_ready)
            assert [process.name for process in state.processes] == ["a"]
        async with running(Plan(replace(plan.graph, nats=server.url), plan.processes[1:])) as graph:
            await graph.until(is_ready)


@pytest.fixture
def supervised() -> Iterator[tuple[subprocess.Popen[bytes], GraphState]]:
    """A supervisor of two stubs in a process of its own, ready; whatever it leaves is killed."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.support.stub_graph", "a=leaves a child", "b=good"], cwd=ROOT, start_new_session=True
    )
    folder = StateFolder("stubs")
    deadline = time.monotonic() + 20
    while not ((state := folder.read()) and state.phase is GraphPhase.READY):
        assert program.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield program, state
    if program.poll() is None:
        program.kill()
        program.wait()


def _gone(run: str, wait_s: float = 5) -> bool:
    deadline = time.monotonic() + wait_s
    while processes_of(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes_of(run) == []


def test_nothing_survives_a_killed_supervisor(supervised: tuple[subprocess.Popen[bytes], GraphState]) -> None:
    """Kill -9 of the supervisor: every process goes, inner ones too, and the state says it does not run."""
    program, state = supervised
    assert state.running
    program.kill()
    program.wait()
    assert _gone(state.run)
    assert not state.running


def test_ctrl_c_stops_all(supervised: tuple[subprocess.Popen[bytes], GraphState]) -> None:
    """SIGINT to the foreground group stops everything with exit code 0."""
    program, state = supervised
    os.killpg(program.pid, signal.SIGINT)
    assert program.wait(15) == 0
    assert processes_of(state.run) == []


def test_a_supervisor_that_slept_blames_nobody(supervised: tuple[subprocess.Popen[bytes], GraphState]) -> None:
    """A supervisor that was stopped (Ctrl-Z, a closed laptop) for longer than silence is borne restarts nothing."""
    program, before = supervised
    os.kill(program.pid, signal.SIGSTOP)
    time.sleep(5)  # status_timeout_s is 3
    os.kill(program.pid, signal.SIGCONT)
    time.sleep(2)
    after = StateFolder("stubs").read()
    assert after
    assert [(process.pid, process.restarts) for process in after.processes] == [
        (process.pid, 0) for process in before.processes
    ]


def test_down_stops_all(supervised: tuple[subprocess.Popen[bytes], GraphState]) -> None:
    """What `penstock down` does ends the supervisor and all its processes."""
    program, state = supervised
    stopper = psutil.Process(program.pid)
    assert stop_graph(state)
    assert not stopper.is_running() or stopper.status() == psutil.STATUS_ZOMBIE
    assert processes_of(state.run) == []


def test_a_second_supervisor_is_refused(supervised: tuple[subprocess.Popen[bytes], GraphState]) -> None:
    """One supervisor a graph: the second names the first and leaves it alone."""
    program, state = supervised
    second = subprocess.run(
        [sys.executable, "-m", "tests.support.stub_graph", "a=good"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 1
    assert f"graph stubs is already running (supervisor pid {program.pid}" in second.stderr
    assert state.running


async def test_a_supervisor_that_nats_turns_away_fails(tmp_path: Path) -> None:
    """It would hear nobody any more, and could not tell a silent process from a good one."""
    async with running(stub_plan({"decode-0": "good"})) as graph:
        state = await graph.until(is_ready)
        (config,) = await asyncio.to_thread(lambda: list(tmp_path.rglob("nats.conf")))
        config.write_text(config.read_text().replace("$PENSTOCK_NATS_TOKEN", "another"))
        pid = record(state, "nats").pid
        assert pid is not None
        os.kill(pid, signal.SIGHUP)
        await graph.until(lambda state: state.phase is GraphPhase.FAILED)
        assert "NATS closed the connection for good" in graph.supervisor.failure
