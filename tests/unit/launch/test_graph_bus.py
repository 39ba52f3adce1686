"""Whose NATS secrets a command takes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from components.launch.graph_bus import SECRETS, graph_secrets
from components.launch.guard import RUN_VARIABLE
from components.launch.state import GraphPhase, GraphState, ProcessRecord
from components.launch.watch import Phase

STATE = GraphState("g", "run-1", 1, 1.0, GraphPhase.READY, "", "demo", 1.0)


@pytest.fixture
def pid() -> Iterator[int]:
    """Return a process of run-1 with the embedded server's token."""
    environment = {"PATH": os.environ["PATH"], RUN_VARIABLE: "run-1", "PENSTOCK_NATS_TOKEN": "theirs", "OTHER": "x"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment) as process:
        yield process.pid
        process.kill()


def state(pid: int, run: str = "run-1") -> GraphState:
    """Return the state of a graph with one living process."""
    processes = (ProcessRecord("dead", "decode", Phase.STOPPED), ProcessRecord("nats", "nats", Phase.READY, pid=pid))
    return replace(STATE, run=run, processes=processes)


def test_those_of_the_graph_that_runs(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the caller's own, which are for another server."""
    monkeypatch.setenv("PENSTOCK_NATS_USER", "mine")
    assert graph_secrets(state(pid)) == {"PENSTOCK_NATS_TOKEN": "theirs"}


def test_the_callers_own_where_there_is_none(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that only has the number of one of the graph's tells nothing."""
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PENSTOCK_NATS_USER", "mine")
    assert graph_secrets(state(pid, run="run-2")) == {"PENSTOCK_NATS_USER": "mine"}
