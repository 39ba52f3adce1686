"""The state folder: written whole, read back, locked by one, and honest about the dead."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from components.launch.state import (
    GraphPhase,
    GraphRunningError,
    GraphState,
    ProcessRecord,
    StateFolder,
    all_states,
    created_s,
    graph_process,
)
from components.launch.watch import Phase
from components.telemetry.folders import state_root
from components.wire.process import WorkerLoad, WorkerStatus

STATE = GraphState(
    graph="agg",
    run="r",
    supervisor_pid=os.getpid(),
    supervisor_created_s=created_s(os.getpid()) or 0.0,
    phase=GraphPhase.READY,
    url="http://127.0.0.1:8181",
    model="demo",
    started_unix_s=1.0,
    processes=(
        ProcessRecord(
            "decode-0", "decode", Phase.READY, pid=1, worker=WorkerStatus("demo", 1, 2, 3, WorkerLoad(kv_usage=0.5))
        ),
    ),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFolder:
    """A folder of the graph `agg`."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path))
    made = StateFolder("agg")
    made.make()
    return made


def test_what_is_written_is_read(folder: StateFolder) -> None:
    """A state comes back as it was, and the folder is the owner's alone."""
    assert folder.read() is None
    folder.write(STATE)
    assert folder.read() == STATE
    assert all_states() == [STATE]
    assert folder.path.stat().st_mode & 0o077 == 0


def test_a_foreign_file_is_no_state(folder: StateFolder) -> None:
    """A file of another version is as good as none."""
    (folder.path / "state.json").write_text('{"other": 1}')
    assert folder.read() is None
    assert all_states() == []


def test_one_supervisor_a_graph(folder: StateFolder) -> None:
    """The second lock is refused and names the holder; another graph's is not; after unlock it is free."""
    folder.write(STATE)
    folder.lock()
    with pytest.raises(GraphRunningError, match=rf"graph agg is already running \(supervisor pid {os.getpid()}, http:"):
        StateFolder("agg").lock()
    other = StateFolder("other")
    other.make()
    other.lock()
    other.unlock()
    folder.unlock()
    StateFolder("agg").lock()


def test_a_dead_supervisor_is_recognised() -> None:
    """A pid that is gone, or belongs to another process now, does not run the graph."""
    from msgspec.structs import replace

    assert STATE.running
    assert not replace(STATE, supervisor_created_s=STATE.supervisor_created_s - 1).running
    assert not replace(STATE, supervisor_pid=2**22 + 1).running


def test_names_make_safe_folders(tmp_path: Path) -> None:
    """A graph's name cannot leave the state folder."""
    assert StateFolder("../../etc", tmp_path).path.parent == tmp_path


def test_where_the_state_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PENSTOCK_STATE_DIR, then XDG_STATE_HOME, then the home directory."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "b"))
    assert state_root() == tmp_path / "a"
    monkeypatch.delenv("PENSTOCK_STATE_DIR")
    assert state_root() == tmp_path / "b" / "penstock"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_root() == tmp_path / ".local" / "state" / "penstock"


def test_a_running_graph_is_refused_without_a_lock(folder: StateFolder) -> None:
    """A living supervisor counts, whatever ports are free; a dead one's state does not."""
    folder.refuse_running()
    folder.write(STATE)
    with pytest.raises(GraphRunningError, match="graph agg is already running"):
        folder.refuse_running()
    folder.write(replace(STATE, supervisor_created_s=1.0))
    folder.refuse_running()


def test_a_graph_s_process_is_known_by_its_pid(folder: StateFolder) -> None:
    """Named with its graph while the supervisor lives; pids of dead graphs may be anybody's by now."""
    folder.write(STATE)
    assert graph_process(1) == "decode-0 of graph agg"
    assert graph_process(2) is None
    folder.write(replace(STATE, supervisor_created_s=1.0))
    assert graph_process(1) is None


def test_the_graph_is_replaced_whole(tmp_path: Path) -> None:
    """Who reads it meanwhile sees the old or the new one; no draft is left."""
    folder = StateFolder("g", tmp_path)
    folder.make()
    folder.write_graph("model: one\n")
    folder.write_graph("model: two\n")
    assert folder.graph_file.read_text() == "model: two\n"
    assert {file.name for file in folder.path.iterdir()} == {"logs", "graph.yaml"}
