"""A graph's folder on disk: what runs, its logs, its lock. Written by its one supervisor, read by every other command.

``$PENSTOCK_STATE_DIR``, else ``$XDG_STATE_HOME/penstock``, else ``~/.local/state/penstock`` holds one folder a graph:
``state.json`` (replaced whole), ``graph.yaml`` (resolved), ``logs/<process>.log``, ``nats/`` and ``lock``.
"""

import fcntl
from enum import StrEnum
from pathlib import Path
from typing import IO

import msgspec
import psutil
from msgspec.structs import replace

from components.launch.watch import Phase
from components.telemetry.folders import state_root
from components.wire.process import WorkerStatus
from components.wire.subjects import token


class GraphPhase(StrEnum):
    """Where a graph stands."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class ProcessRecord(msgspec.Struct, frozen=True):
    """One process as others see it; see `Watch` and `ProcessSpec` for the fields.

    Attributes:
        started_unix_s: when this incarnation was started.
        ready_after_s: how long it took to be ready.
    """

    name: str
    component: str
    phase: Phase
    detail: str = ""
    pid: int | None = None
    started_unix_s: float | None = None
    ready_after_s: float | None = None
    restarts: int = 0
    last_death: str = ""
    gpus: tuple[str, ...] = ()
    worker: WorkerStatus | None = None


class GraphState(msgspec.Struct, frozen=True):
    """One run of a graph.

    Attributes:
        graph: its name; of a part of a graph that several machines run, that part's.
        run: unique to this run; all its processes carry it.
        supervisor_pid: who runs it.
        supervisor_created_s: when that process was created, which tells a reused pid.
        phase: where it stands.
        url: the OpenAI endpoint, ``http://127.0.0.1:8181``; empty where other machines serve it.
        model: the name clients use.
        started_unix_s: when it was launched.
        ready_after_s: how long all processes took to be ready; None until they are.
        failure: why the launch failed.
        stop_timeout_s: how long it may take to stop.
        processes: in the plan's order.
    """

    graph: str
    run: str
    supervisor_pid: int
    supervisor_created_s: float
    phase: GraphPhase
    url: str
    model: str
    started_unix_s: float
    ready_after_s: float | None = None
    failure: str = ""
    stop_timeout_s: float = 40.0
    processes: tuple[ProcessRecord, ...] = ()

    @property
    def running(self) -> bool:
        """Whether the supervisor that wrote this still lives."""
        return created_s(self.supervisor_pid) == self.supervisor_created_s


def as_it_is(state: GraphState) -> GraphState:
    """Return `state`, corrected when its supervisor was killed: then its processes are gone, whatever it wrote last."""
    if state.running or state.phase in {GraphPhase.STOPPED, GraphPhase.FAILED}:
        return state
    gone = [replace(p, phase=Phase.STOPPED, pid=None, worker=None, detail="", started_unix_s=None) for p in state.processes]
    return replace(state, phase=GraphPhase.FAILED, failure="its supervisor was killed", processes=tuple(gone))


class GraphRunningError(Exception):
    """Another supervisor runs the graph of this name."""


def created_s(pid: int) -> float | None:
    """Return when the living process `pid` was created; None when there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


class StateFolder:
    """The folder of one graph. `make` and `lock` before writing."""

    def __init__(self, graph: str, root: Path | None = None) -> None:
        self.graph = graph
        self.path = (root or state_root()).absolute() / token(graph)
        self.nats = self.path / "nats"
        self.graph_file = self.path / "graph.yaml"
        self._state_file = self.path / "state.json"
        self._lock: IO[bytes] | None = None

    def make(self) -> None:
        """Make the folder, readable by its owner only."""
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)

    def log(self, process: str) -> Path:
        """Return the log file of `process`."""
        return self.path / "logs" / f"{process}.log"

    def forget_logs(self) -> None:
        """Remove the logs of earlier runs; ``up.log`` is this run's already."""
        for file in self.path.glob("logs/*.log"):
            if file != self.log("up"):
                file.unlink()

    def lock(self) -> None:
        """Become the one supervisor of this graph, until `unlock` or death.

        Raises:
            GraphRunningError: somebody else is.
        """
        lock = (self.path / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise GraphRunningError(self._who_runs_it()) from error
        self._lock = lock

    def unlock(self) -> None:
        """Let another supervisor run this graph."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def refuse_running(self) -> None:
        """Make sure that nobody runs this graph, writing nothing.

        Raises:
            GraphRunningError: somebody does.
        """
        if (state := self.read()) and state.running:
            raise GraphRunningError(self._who_runs_it())

    def _who_runs_it(self) -> str:
        state = self.read()
        where = f" (supervisor pid {state.supervisor_pid}{state.url and f', {state.url}'})" if state else ""
        return f"graph {self.graph} is already running{where}; `penstock down {self.graph}` stops it"

    def write(self, state: GraphState) -> None:
        """Replace the state; readers see the old or the new one, never half."""
        draft = self._state_file.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(state))
        draft.replace(self._state_file)

    def write_graph(self, text: str) -> None:
        """Replace the resolved graph, which a process reads when it starts; readers see the old or the new one."""
        draft = self.graph_file.with_suffix(".new")
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.graph_file)

    def read(self) -> GraphState | None:
        """Return the last state written; None when there is none, or another version of penstock wrote it."""
        return _read(self._state_file)


def all_states() -> list[GraphState]:
    """Return the last state of every graph there is a folder of, by name."""
    return [state for file in sorted(state_root().glob("*/state.json")) if (state := _read(file))]


def graph_process(pid: int) -> str | None:
    """Return ``decode-0 of graph agg`` for a process that a living supervisor started; None for any other."""
    for state in all_states():
        for process in state.processes if state.running else ():
            if process.pid == pid:
                return f"{process.name} of graph {state.graph}"
    return None


def _read(file: Path) -> GraphState | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=GraphState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
