"""From a graph to a running one: checks on this machine, then a supervisor here or in the background.

Knows nothing of command lines. Whatever keeps a graph from running is one `LaunchError`, raised before anything starts, or a
launch that failed and left nothing behind.
"""

import asyncio
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil
from msgspec.structs import replace

from components.bus.server import NatsServerError, find_nats_server
from components.engine.sim_timing import TimingError, load_timing
from components.engine.vllm_args import known_engine_args, mistaken_arg
from components.graph.schema import Graph, SimEngine
from components.launch.child import last_line
from components.launch.devices import PlanError, engine_groups
from components.launch.guard import sweep
from components.launch.machine import free_port, look
from components.launch.plan import Plan, has_coordinator, make_plan, wanted_ports
from components.launch.state import GraphPhase, GraphRunningError, GraphState, StateFolder
from components.launch.supervisor import Supervisor
from components.model.folder import ModelError, model_folder
from components.telemetry.folders import NoFolderError
from components.telemetry.logs import setup_logging

_GRACE_S = 20.0

log = logging.getLogger(__name__)

Show = Callable[[GraphState], None]


class LaunchError(Exception):
    """The graph cannot run here; the text is one line.

    Attributes:
        exit_code: 2 when the input is at fault, 1 otherwise.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def prepare(graph: Graph) -> Plan:
    """Check all that can be checked before starting anything, and return the plan.

    Raises:
        LaunchError: something is wrong.
    """
    _check_engines(graph)
    _refuse_running(StateFolder(graph.part))  # before its own ports are found taken
    try:
        if graph.nats == "embedded":
            find_nats_server()
        graph = _with_ports(graph)
        plan = make_plan(graph, look(wanted_ports(graph)))
        if not graph.only_queues:
            model_folder(graph.model)
    except (PlanError, ModelError, NatsServerError) as error:
        raise LaunchError(str(error)) from error
    return plan


def _with_ports(graph: Graph) -> Graph:
    """Return `graph` with a free port where it leaves one to us: it stays the same while the graph runs.

    Raises:
        PlanError: there is none.
    """
    lmcache = graph.lmcache
    if lmcache is None or lmcache.coordinator_port or not has_coordinator(graph):
        return graph
    port = free_port(lmcache.host, "lmcache.host")
    return replace(graph, lmcache=replace(lmcache, coordinator_port=port))


def _check_engines(graph: Graph) -> None:
    for group in engine_groups(graph):
        path, engine = f"{group.path}.engine", group.engine
        if isinstance(engine, SimEngine):
            try:
                load_timing(engine.timing)
            except TimingError as error:
                raise LaunchError(f"{path}.{error}") from error
        elif known_engine_args() is None:
            raise LaunchError(f"{path}: vLLM is not installed; pip install 'penstock[cpu]' or 'penstock[gpu]'")
        elif mistake := mistaken_arg(engine.args, kv_events=graph.tells_kv, lmcache=graph.lmcache is not None):
            raise LaunchError(f"{path}.{mistake}")


def run_here(plan: Plan, show: Show) -> GraphState:
    """Run `plan` in this process until it is told to stop, and return the last state.

    SIGINT, SIGTERM and SIGHUP stop it with grace, a second one at once. `show` is told each state.

    Raises:
        LaunchError: the graph is running already, or a process failed during the launch; nothing is left of it.
    """
    folder = StateFolder(plan.graph.part)
    _take(folder)
    folder.forget_logs()
    logs = folder.log("supervisor").open("a", encoding="utf-8")
    setup_logging("supervisor", plan.graph.telemetry.log_level, plan.graph.telemetry.log_format, logs)
    try:
        supervisor = Supervisor(plan, folder, show)
        asyncio.run(_supervise(supervisor))
    except NoFolderError as error:
        raise LaunchError(str(error)) from error
    finally:
        logging.shutdown()
        logs.close()
        folder.unlock()
    if supervisor.failure:
        raise LaunchError(f"{supervisor.failure} (see `penstock logs {plan.graph.part}`)", exit_code=1)
    state = folder.read()
    if state is None:
        raise LaunchError(f"{folder.path}: the state of the graph vanished", exit_code=1)
    return state


def _refuse_running(folder: StateFolder) -> None:
    try:
        folder.refuse_running()
    except GraphRunningError as error:
        raise LaunchError(str(error), exit_code=1) from error


def _take(folder: StateFolder) -> None:
    """Lock the folder, and end what a killed supervisor may have left there."""
    try:
        folder.make()
        folder.lock()
    except GraphRunningError as error:
        raise LaunchError(str(error), exit_code=1) from error
    except OSError as error:
        raise LaunchError(f"{folder.path}: {error.strerror}", exit_code=1) from error
    if (before := folder.read()) and before.phase not in {GraphPhase.STOPPED, GraphPhase.FAILED}:
        sweep(before.run)


async def _supervise(supervisor: Supervisor) -> None:
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, supervisor.stop)
    await supervisor.run()


def run_in_background(plan: Plan, command: Sequence[str], show: Show) -> GraphState:
    """Start ``penstock <command>`` in its own session, and return the state once all its processes are ready.

    Raises:
        LaunchError: the launch failed; nothing is left of it.
    """
    folder = StateFolder(plan.graph.part)
    _take(folder)  # refuses a running graph at once
    folder.unlock()
    output = folder.log("up")
    with output.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "components.launch", *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        while True:
            ended = child.poll()
            state = folder.read()
            if state and state.supervisor_pid == child.pid:
                show(state)
                if state.phase is GraphPhase.READY:
                    return state
            if ended is not None:
                raise LaunchError(last_line(output) or f"the supervisor ended with exit code {ended}", ended or 1)
            time.sleep(0.1)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise


def stop_graph(state: GraphState) -> bool:
    """Stop the graph whose supervisor wrote `state`, and what is left of it; return whether it ended by itself.

    Raises:
        LaunchError: it belongs to somebody else.
    """
    try:
        supervisor = psutil.Process(state.supervisor_pid) if state.running else None
        if supervisor:
            supervisor.terminate()
            deadline = time.monotonic() + state.stop_timeout_s + _GRACE_S
            while state.running and time.monotonic() < deadline:  # one that nobody reaps has ended too
                time.sleep(0.05)
            if state.running:
                supervisor.kill()
    except psutil.NoSuchProcess:
        log.debug("it ended meanwhile")
    except psutil.AccessDenied as error:
        raise LaunchError(f"graph {state.graph} belongs to another user", exit_code=1) from error
    left = sweep(state.run)
    folder = StateFolder(state.graph)
    now = folder.read()
    if now and now.phase not in {GraphPhase.STOPPED, GraphPhase.FAILED}:  # it could not say so itself
        folder.write(replace(now, phase=GraphPhase.STOPPED, processes=()))
    return left == 0
