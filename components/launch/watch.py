"""One process under supervision: what is known of it, and what to do when it dies or falls silent. Pure; told the time.

Knows no pids' owners, no bus, no files: `supervisor` feeds it and acts on its answers. Times are monotonic seconds.
"""

import signal
from enum import StrEnum

from components.graph.schema import Supervision
from components.launch.plan import ProcessSpec
from components.wire.process import ProcessState, ProcessStatus, WorkerStatus

HEALTHY_S = 60.0


class Phase(StrEnum):
    """Where a supervised process stands; `ProcessState` plus the wait before a restart."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


class Watch:
    """One process of a graph, through all its incarnations.

    Attributes:
        spec: what it is.
        phase: where it stands.
        detail: for a person: what it is doing, or why it does nothing.
        pid: its process id while it lives.
        started_s: when this incarnation was started.
        worker: what it last told about its engine and load.
        restarts: how often it was started again.
        last_death: why the last incarnation died.
        restart_at_s: when to start it again; None when it lives or stays dead.
    """

    def __init__(self, spec: ProcessSpec, rules: Supervision, host: str) -> None:
        """Watch a process of this machine, `host`, by `rules`."""
        self.spec = spec
        self.phase = Phase.STARTING
        self.detail = "waiting"
        self.pid: int | None = None
        self.started_s = 0.0
        self.worker: WorkerStatus | None = None
        self.restarts = 0
        self.last_death = ""
        self.restart_at_s: float | None = None
        self._rules = rules
        self._host = host
        self._ready_s: float | None = None
        self._heard_s: float | None = None
        self._failures = 0
        self._last_words = ""
        self._sentence = ""

    @property
    def alive(self) -> bool:
        """Whether a process is there."""
        return self.pid is not None

    @property
    def ready_after_s(self) -> float | None:
        """How long this incarnation took to be ready; None before."""
        return None if self._ready_s is None else self._ready_s - self.started_s

    def starts(self, now: float) -> None:
        """An incarnation is being started."""
        self.phase, self.started_s = Phase.STARTING, now
        self.detail = "importing vLLM, once for all workers" if self.spec.warm else ""
        self.worker, self.restart_at_s = None, None
        self._ready_s = self._heard_s = None
        self._last_words = self._sentence = ""

    def waits(self, reason: str, now: float) -> None:
        """It cannot be started just now; it is due again at once."""
        self.detail, self.restart_at_s = reason, now

    def lives(self, pid: int) -> None:
        """The incarnation's process exists."""
        self.pid = pid

    def hear(self, status: ProcessStatus, now: float) -> None:
        """Take in what the process says of itself; another incarnation's words are ignored."""
        if (status.pid, status.host) != (self.pid, self._host):
            return
        self._heard_s = now
        if status.state is ProcessState.FAILED:
            self._last_words = status.detail
            return
        if status.state is ProcessState.READY and self._ready_s is None:
            self._ready_s = now
        if status.detail or status.state is not ProcessState.STARTING:
            self.detail = status.detail
        self.phase, self.worker = Phase(status.state), status.worker

    def ready(self, now: float) -> None:
        """It is ready, by other means than its own word (nats-server speaks no status)."""
        self.phase, self.detail, self._ready_s = Phase.READY, "", now

    def excuse(self, now: float) -> None:
        """Forgive silence so far: it could not be heard."""
        if self._heard_s is not None:
            self._heard_s = now

    def overdue(self, now: float) -> str | None:
        """Return why the process must be killed, or None; a second call does not sentence it again."""
        if not self.alive or self._sentence:
            return None
        rules = self._rules
        if self._ready_s is None and now - self.started_s > rules.start_timeout_s:
            return f"not ready within {rules.start_timeout_s:g} s"
        if self._heard_s is not None and now - self._heard_s > rules.status_timeout_s:
            return f"silent for {rules.status_timeout_s:g} s"
        return None

    def sentence(self, reason: str) -> None:
        """The supervisor kills it for `reason`, which becomes the reason of its death."""
        self._sentence = reason

    @property
    def sentenced(self) -> bool:
        """Whether the supervisor decided to kill this incarnation."""
        return bool(self._sentence)

    def died(self, exit_code: int | None, last_line: str, now: float) -> None:
        """The process is gone: choose between a restart and giving up.

        Args:
            exit_code: negative for a signal; None when it could not even be started.
            last_line: the last line of its log, or why it could not be started.
            now: the time.
        """
        self.pid, self.worker, self.restart_at_s = None, None, None
        self.last_death = self._sentence or _explain(exit_code, self._last_words or last_line)
        if self._ready_s is not None and now - self._ready_s >= HEALTHY_S:
            self._failures = 0
        self._failures += 1
        if self._failures > self._rules.max_restarts:
            self.phase, self.detail = Phase.FAILED, f"given up after {self._failures} deaths: {self.last_death}"
            return
        wait_s = min(self._rules.restart_backoff_s * 2 ** (self._failures - 1), self._rules.max_restart_backoff_s)
        self.restart_at_s = now + wait_s
        self.restarts += 1
        self.phase, self.detail = Phase.RESTARTING, f"{self.last_death}; restarts in {wait_s:g} s"

    def stopped(self) -> None:
        """The process ended because it was asked to."""
        self.pid, self.worker, self.restart_at_s = None, None, None
        self.phase, self.detail = Phase.STOPPED, ""

    def due(self, now: float) -> bool:
        """Whether to start it again now."""
        return self.restart_at_s is not None and now >= self.restart_at_s


def _explain(exit_code: int | None, last_words: str) -> str:
    """Return ``killed by SIGKILL`` or ``exit code 1: <what it said last>``."""
    if exit_code is None:
        return f"cannot be started: {last_words}"
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}: {last_words}" if last_words else f"exit code {exit_code}"
