"""How a process of a plan becomes a running child: its command line, environment, log, and fresh or warm.

Knows no supervision: `start` is called again for every restart.
"""

import asyncio
import os
import secrets
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from components.bus.server import NatsServerPlan
from components.engine.vllm_args import IPC_FOLDER
from components.engine.warm import WarmPool, WarmStartError
from components.graph.keys import ENVIRONMENT, WORKER_ENVIRONMENT
from components.graph.load import dump_graph
from components.graph.schema import Nats
from components.launch.child import Child, start_fresh
from components.launch.guard import RUN_VARIABLE, sweep
from components.launch.plan import NATS, Plan, ProcessSpec
from components.launch.state import StateFolder
from components.telemetry.folders import socket_folder

_KEYS = {
    "processor": (ENVIRONMENT,),
    "router": (ENVIRONMENT,),
    "jobs": (ENVIRONMENT, WORKER_ENVIRONMENT),
    "job-worker": (ENVIRONMENT, WORKER_ENVIRONMENT),
}
"""The keys that components need, because their HTTP servers ask for them or because they show them to others'."""


class StartError(Exception):
    """A process could not be started; the text says why."""


class Starter:
    """Starts the processes of one run of one graph, and makes sure that none is left in the end.

    Attributes:
        run: names this run; every process carries it in its environment.
        nats: the embedded server, when the graph has one.
    """

    def __init__(self, plan: Plan, folder: StateFolder) -> None:
        self.run = secrets.token_hex(8)
        self.nats = NatsServerPlan(folder.nats, plan.graph.name) if NATS in plan.processes else None
        self._plan = plan
        self._folder = folder
        self._sockets = ExitStack()
        self._guard: subprocess.Popen[bytes] | None = None
        self._pool: WarmPool | None = None
        self._one_fork = asyncio.Lock()
        self._ending = False
        self._environment = self._make_environment()

    def _make_environment(self) -> dict[str, str]:
        """Return what all processes get: ours, the run's name, and the embedded server's token instead of other secrets.

        Keys are only for those that need them; see `start`.
        """
        if self.nats:
            for name in ("PENSTOCK_NATS_USER", "PENSTOCK_NATS_PASSWORD"):
                os.environ.pop(name, None)
            os.environ.update(self.nats.environment)  # where our own connection to the bus looks for it
        # PYTHONSAFEPATH: a folder named `components` where the user happens to stand must not shadow ours.
        return {**_without_keys(), RUN_VARIABLE: self.run, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}

    def open(self) -> None:
        """Make what the others will need: a folder for sockets, the guard, the warm pool, which imports vLLM meanwhile."""
        sockets = self._sockets.enter_context(socket_folder())
        self._environment[IPC_FOLDER] = str(sockets)
        argv = [sys.executable, "-P", "-m", "components.launch.guard", self.run]
        self._guard = subprocess.Popen(argv, stdin=subprocess.PIPE, process_group=0, env=_without_keys())
        if any(spec.warm for spec in self._plan.processes):
            modules = sorted({spec.module for spec in self._plan.processes if spec.warm})
            self._pool = WarmPool(self._environment, preload=modules, log=self._folder.log("warm"), sockets=sockets)
            self._pool.open()

    def resolve(self, nats: Nats) -> None:
        """Write the graph that the components read, with the NATS server they shall use."""
        self._folder.write_graph(dump_graph(replace(self._plan.graph, nats=nats)))

    async def start(self, spec: ProcessSpec) -> Child:
        """Start one process and return it once it exists, not once it is ready; warm ones exist after vLLM's import.

        Raises:
            StartError: it cannot be started.
        """
        log = self._folder.log(spec.name)
        environment = {**self._environment, **spec.environment}
        for variable in _KEYS.get(spec.component, ()):
            if variable in os.environ:
                environment[variable] = os.environ[variable]
        arguments = ["--graph", str(self._folder.graph_file), "--name", spec.name]
        try:
            if spec is NATS and self.nats:
                self.nats.write()
                return await start_fresh(self.nats.argv, environment, log)
            if spec.warm and self._pool:
                return await self._fork(self._pool, spec.module, arguments, environment, log)
            return await start_fresh([sys.executable, "-m", spec.module, *arguments], environment, log)
        except (OSError, WarmStartError) as error:
            raise StartError(str(error)) from error

    async def _fork(
        self, pool: WarmPool, module: str, arguments: list[str], environment: dict[str, str], log: Path
    ) -> Child:
        async with self._one_fork:
            if self._ending:
                raise StartError("the graph is stopping")
            return await asyncio.to_thread(pool.start, module, arguments, environment, log)

    def kill_all(self) -> None:
        """End every process of this run now, and start no more; also those whose start is under way."""
        self._ending = True
        sweep(self.run)

    def close(self) -> None:
        """End what is still there; blocks for the moment that takes."""
        self.kill_all()
        if self._pool:
            self._pool.close()
        if self._guard:
            self._guard.communicate()
        self._sockets.close()


def _without_keys() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in {ENVIRONMENT, WORKER_ENVIRONMENT}}
