"""What people see: progress while a graph runs, and tables of plans and processes. Reads states, knows no supervision."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import psutil
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from components.launch.plan import Plan, ProcessSpec
from components.launch.state import GraphPhase, GraphState, ProcessRecord
from components.launch.watch import Phase

_COLOURS = {Phase.READY: "green", Phase.FAILED: "red", Phase.RESTARTING: "yellow", Phase.DRAINING: "yellow"}


class ProcessRow(msgspec.Struct, frozen=True):
    """One line of ``penstock ps``; `ProcessRecord` and what is measured at the moment.

    Attributes:
        rss_bytes: resident memory of the process and its inner processes; what they share counts for each.
        memory_bytes: the same, with shared memory split between those who share it, warm starts among them.
        running: requests being computed; None for processes without an engine.
        trust: how far the router trusts its KV events; None without a router that answers.
    """

    process: str
    component: str
    pid: int | None
    state: Phase
    detail: str
    restarts: int
    last_death: str
    uptime_s: float | None
    rss_bytes: int | None
    memory_bytes: int | None
    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    trust: str | None = None


class GraphView(msgspec.Struct, frozen=True):
    """One graph of ``penstock ps --json``."""

    graph: str
    state: GraphPhase
    url: str
    model: str
    supervisor_pid: int
    ready_after_s: float | None
    processes: list[ProcessRow]


@dataclass
class _Memory:
    """Memory of a group of processes."""

    rss_bytes: int = 0
    pss_bytes: int = 0


class Progress:
    """Follows a graph: a table that redraws itself while it starts on a terminal, else a line for each change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._last: GraphState | None = None
        self._seen: dict[str, tuple[Phase, str]] = {}

    def show(self, state: GraphState) -> None:
        """Show `state`."""
        self._last = state
        changed = [process for process in state.processes if self._is_news(process)]
        starting = state.phase is GraphPhase.STARTING
        if self._live and not starting:
            self.close()
        elif starting and self._live is None and self._console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4)
            self._live.start()
        elif self._live is None:
            self._write_lines(state, changed)

    def close(self) -> None:
        """Leave the table as it stands."""
        if self._live:
            self._live.stop()
            self._live = None

    def _is_news(self, process: ProcessRecord) -> bool:
        now = (process.phase, process.detail)
        changed = self._seen.get(process.name) != now
        self._seen[process.name] = now
        return changed

    def _write_lines(self, state: GraphState, changed: Iterable[ProcessRecord]) -> None:
        elapsed_s = time.time() - state.started_unix_s
        for process in changed:
            line = f"{elapsed_s:7.1f} s  {process.name:<12} {process.phase.value:<10} {process.detail}"
            self._console.out(line.rstrip(), highlight=False)

    def _table(self) -> Table:
        table = make_table("process", "state", "detail", "elapsed")
        for process in self._last.processes if self._last else ():
            elapsed_s = process.ready_after_s
            if elapsed_s is None and process.started_unix_s is not None:
                elapsed_s = time.time() - process.started_unix_s
            table.add_row(process.name, _coloured(process.phase), escape(process.detail), _seconds(elapsed_s))
        return table


def welcome(state: GraphState, *, with_key: bool) -> str:
    """Return what to tell when a graph is ready: its address, and a command that works as it stands."""
    ready = f"\n{state.graph} is ready after {state.ready_after_s or 0:.1f} s"
    if not state.url:
        return f"{ready}; requests come through the processors of other machines\n"
    body = {"model": state.model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 30}
    key = ' -H "Authorization: Bearer $PENSTOCK_API_KEY"' if with_key else ""
    return (
        f"{ready}: {state.url}/v1\n\n"
        f"  curl {state.url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'\n"
    )


def plan_table(plan: Plan) -> Table:
    """Return the processes of a plan with their ports and devices."""
    table = make_table("process", "module", "ports", "devices", "start", title=f"graph {plan.graph.part}")
    for spec in plan.processes:
        start = "warm" if spec.warm else "fresh"
        table.add_row(spec.name, spec.module or "nats-server", _ports(spec), _devices(spec), start)
    return table


def graph_view(state: GraphState, trusts: Mapping[str, str]) -> GraphView:
    """Return `state` with what can be measured now, and how far the router trusts each worker's KV events."""
    memory = _memory_by_group({process.pid for process in state.processes if process.pid})
    rows = [_row(process, memory.get(process.pid or 0), trusts.get(process.name)) for process in state.processes]
    return GraphView(
        state.graph, state.phase, state.url, state.model, state.supervisor_pid, state.ready_after_s, processes=rows
    )


def processes_table(view: GraphView) -> Table:
    """Return the processes of a graph, with what they are doing."""
    columns = ["process", "component", "pid", "state", "detail", "restarts", "uptime", "memory", "running", "waiting", "KV"]
    routed = any(row.trust for row in view.processes)
    columns += ["trust"] if routed else []
    table = make_table(*columns, title=f"graph {view.graph}: {view.state.value}{view.url and f', {view.url}'}")
    for row in view.processes:
        table.add_row(
            row.process,
            row.component,
            _or_dash(row.pid),
            _coloured(row.state),
            escape(row.detail),
            escape(f"{row.restarts} ({row.last_death})" if row.last_death else str(row.restarts)),
            _seconds(row.uptime_s),
            "-" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.0f} MB",
            _or_dash(row.running),
            _or_dash(row.waiting),
            "-" if row.kv_usage is None else f"{row.kv_usage:.0%}",
            *([row.trust or "-"] if routed else []),
        )
    return table


def _row(process: ProcessRecord, memory: _Memory | None, trust: str | None) -> ProcessRow:
    load = process.worker.load if process.worker else None
    return ProcessRow(
        process=process.name,
        component=process.component,
        pid=process.pid,
        state=process.phase,
        detail=process.detail,
        restarts=process.restarts,
        last_death=process.last_death,
        uptime_s=None if process.started_unix_s is None else time.time() - process.started_unix_s,
        rss_bytes=memory.rss_bytes if memory else None,
        memory_bytes=memory.pss_bytes if memory else None,
        running=load.running_requests if load else None,
        waiting=load.waiting_requests if load else None,
        kv_usage=load.kv_usage if load else None,
        trust=trust,
    )


def _memory_by_group(pids: set[int]) -> dict[int, _Memory]:
    """Return the memory of the process groups led by `pids`: each a process and its inner processes."""
    groups = {pid: _Memory() for pid in pids}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if group := groups.get(os.getpgid(process.pid)):
                used = process.memory_full_info()
                group.rss_bytes += used.rss
                group.pss_bytes += used.pss
    return groups


def make_table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table in the one style of all tables."""
    table = Table(*columns, box=None, title=title, title_justify="left", pad_edge=False, title_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    return table


def _coloured(phase: Phase) -> str:
    colour = _COLOURS.get(phase)
    return f"[{colour}]{phase.value}[/{colour}]" if colour else phase.value


def _ports(spec: ProcessSpec) -> str:
    if spec.component == "nats":
        return "a free one"
    return ", ".join(f"{spec.host}:{port}" for port in spec.ports) or "-"


def _devices(spec: ProcessSpec) -> str:
    if spec.gpus:
        return f"GPU {', '.join(spec.gpus)}{' (shared)' if spec.shared_gpus else ''}"
    cores = spec.environment.get("VLLM_CPU_OMP_THREADS_BIND")
    return f"CPU {cores}" if cores else "CPU"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
