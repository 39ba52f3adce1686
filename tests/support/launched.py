"""A graph launched by the real command line, in a process of its own, with its own state folder and port."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec
import openai
from prometheus_client.parser import text_string_to_metric_families

from components.launch.guard import processes_of
from components.launch.state import GraphPhase, GraphState, StateFolder
from components.launch.views import GraphView, ProcessRow

ROOT = Path(__file__).parents[2]
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


def free_port() -> int:
    """Return a TCP port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Commands:
    """The ``penstock`` command with a state folder of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.environment = {**os.environ, **OFFLINE, "PENSTOCK_STATE_DIR": str(state_dir)}

    def argv(self, *words: str) -> list[str]:
        """Return the command line of ``penstock <words>``."""
        return [sys.executable, "-m", "components.launch", *words]

    def run(self, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run ``penstock <words>`` to its end."""
        return subprocess.run(
            self.argv(*words), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def ps(self) -> list[GraphView]:
        """Return what ``penstock ps --json`` says."""
        done = self.run("ps", "--json")
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout, type=list[GraphView])


class Launched(Commands):
    """One graph in the foreground of its own session, as on a terminal."""

    def __init__(self, state_dir: Path, name: str, port: int, *words: str) -> None:
        """Start ``penstock <words>``, which runs the graph `name` at `port`."""
        super().__init__(state_dir)
        self.name, self.port = name, port
        self._output = state_dir / f"{name}.out"
        with self._output.open("wb") as output:
            self.program = subprocess.Popen(
                self.argv(*words), cwd=ROOT, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    @classmethod
    def up(cls, state_dir: Path, graph_file: str, *settings: str) -> "Launched":
        """Start ``penstock up`` on a free port."""
        port = free_port()
        words = [word for setting in (f"http.port={port}", *settings) for word in ("--set", setting)]
        return cls(state_dir, Path(graph_file).stem, port, "up", graph_file, *words)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        """What the command printed so far."""
        return self._output.read_text()

    @property
    def state(self) -> GraphState:
        """The state as the supervisor wrote it."""
        state = StateFolder(self.name, self.state_dir).read()
        assert state is not None
        return state

    def wait_ready(self, wait_s: float) -> "Launched":
        """Wait until all processes are ready."""
        deadline = time.monotonic() + wait_s
        while "is ready after" not in self.output:
            assert self.program.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)
        return self

    def wait_restarted(self, name: str, restarts: int, wait_s: float) -> None:
        """Wait until the process `name` was restarted more than `restarts` times, and every process is ready."""
        deadline = time.monotonic() + wait_s
        while self.row(name).restarts <= restarts or not self._all_ready():
            assert time.monotonic() < deadline, self.ps()
            time.sleep(0.2)

    def _all_ready(self) -> bool:
        return all(row.state == "ready" for view in self.ps() if view.graph == self.name for row in view.processes)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a sample's values over all processes; only samples with these labels count."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def row(self, name: str) -> ProcessRow:
        """Return the line of one process in ``penstock ps``."""
        (view,) = [view for view in self.ps() if view.graph == self.name]
        return next(row for row in view.processes if row.process == name)

    def until(self, condition: Callable[[GraphState], bool], wait_s: float = 60) -> GraphState:
        """Wait for a state that fulfils `condition`, and return it."""
        deadline = time.monotonic() + wait_s
        while not condition(self.state):
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        return self.state

    def client(self) -> openai.OpenAI:
        """Return the official client, which does not hide failures by trying again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def interrupt(self) -> int:
        """Do what Ctrl-C on a terminal does, and return the exit code."""
        os.killpg(self.program.pid, signal.SIGINT)
        return self.program.wait(60)

    def left_over(self, wait_s: float = 10) -> list[int]:
        """Return the processes of this run that are still there after a grace of `wait_s` seconds."""
        run = self.state.run
        deadline = time.monotonic() + wait_s
        while (found := processes_of(run)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [process.pid for process in found]

    def close(self) -> None:
        """Stop it if it still runs, however it takes."""
        if self.program.poll() is None:
            self.program.send_signal(signal.SIGTERM)
            try:
                self.program.wait(60)
            except subprocess.TimeoutExpired:
                self.program.kill()
                self.program.wait()


def is_ready(state: GraphState) -> bool:
    """Whether the graph came up."""
    return state.phase is GraphPhase.READY
