"""The life of every engine, from the request to the last rank given back; the page to read first.

Each engine has one task of its own, so that a slow one delays nobody. All that is scarce (ranks, ports, names) is taken in
one step of the event loop and given back in one place, `_live`.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from components.bus.client import BusError
from components.engine.vllm_args import IPC_FOLDER
from components.engine.warm import WarmChild, WarmPool, WarmStartError
from components.graph.schema import ControllerSettings
from components.model.folder import ModelError
from components.wire.errors import ConflictError, InvalidRequestError, NotFoundError, NoWorkerError
from components.worker_controller.engine import OVER, Engine
from components.worker_controller.engine_request import EngineRequest
from components.worker_controller.hub import Hub
from components.worker_controller.membership import followed
from components.worker_controller.messages import JOB_VARIABLE, EngineJob
from components.worker_controller.placement import Folders, in_url
from components.worker_controller.pool import NoRankError, Pool
from components.worker_controller.ports import NoPortError, Ports
from components.worker_controller.rank_slot import how_it_ended
from components.worker_controller.starts import SERVER_MODULE, Joined, chosen_graph, server_args, worker_arguments
from components.worker_controller.waiting import first

_GRACE_S = 5.0
_REMEMBERED = 100
_PORT_TRIES = 5

log = logging.getLogger(__name__)


class Controller:
    """Creates, watches and ends engines.

    Args:
        settings: the controller's.
        pool: their ranks.
        warm: what their processes are forked from.
        hub: where their processes say how it goes.
        folders: for sockets and logs.
        environment: their processes' variables.
        tasks: owns the engines' tasks.
        graphs: those that engines may join, by name.
        on_cpu: whether the installed vLLM computes on the CPU.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        pool: Pool,
        warm: WarmPool,
        hub: Hub,
        folders: Folders,
        environment: Mapping[str, str],
        tasks: asyncio.TaskGroup,
        graphs: Mapping[str, Joined],
        *,
        on_cpu: bool,
    ) -> None:
        self.pool = pool
        self.settings = settings
        self.on_cpu = on_cpu
        self.engines: dict[str, Engine] = {}
        self._warm = warm
        self._hub = hub
        self._folders = folders
        self._environment = environment
        self._tasks = tasks
        self._graphs = graphs
        self._ports = Ports(settings.host, settings.first_engine_port, settings.last_engine_port)
        self._closing = False

    async def create(self, request: EngineRequest) -> Engine:
        """Create an engine and return it once it answers. It is created whole or not at all.

        Raises:
            ConflictError: its name is in use, it needs more ranks than there are, or it was deleted meanwhile.
            NoWorkerError: no rank or port is free now.
            InvalidRequestError: the model cannot be loaded.
            WorkerLostError: something died on the way.
        """
        engine = self._admit(request)
        self._tasks.create_task(self._live(engine))
        await engine.settled.wait()
        if failure := engine.failure:
            raise failure
        return engine

    def _admit(self, request: EngineRequest) -> Engine:
        """Take name, ranks and port, all or none; no await in it, so that each of many sees what the others took."""
        namesake = self.engines.get(request.engine_uuid)
        if namesake is not None and not namesake.over.is_set():
            raise ConflictError(f"engine {request.engine_uuid} exists and is {namesake.state}", param="engine_uuid")
        if self._closing:
            raise NoWorkerError("the controller is stopping")
        engine = Engine(request, secrets.token_urlsafe(32))
        if request.role != "api":
            chosen_graph(request, self._graphs)
        try:
            engine.port = self._ports.take() if request.role == "api" else None
        except NoPortError as error:
            raise NoWorkerError(str(error), retry_after_s=5.0) from None
        try:
            engine.lease = self.pool.lend(request.engine_uuid, request.world_size, engine.key, engine.lost, engine.saw)
        except NoRankError as error:
            self._give_port_back(engine)
            raise (NoWorkerError(str(error), retry_after_s=5.0) if error.ever else ConflictError(str(error))) from None
        self._hub.expect(engine.key, engine)
        self.engines.pop(engine.uuid, None)
        self.engines[engine.uuid] = engine
        self._forget_old()
        return engine

    async def _live(self, engine: Engine) -> None:
        """Run `engine` from start to end, and give everything back."""
        why = ""
        try:
            engine.begin()
            for _ in range(_PORT_TRIES):
                why = await self._run(engine)
                if not engine.port_taken or engine.port is None:
                    break
                engine.retry()
                taken, engine.port = engine.port, self._ports.take(frozenset({engine.port}))
                self._ports.give_back(taken)
        except (WarmStartError, NoPortError, ModelError, BusError, OSError) as error:
            if isinstance(error, ModelError):
                engine.refuse(str(error))
            why = str(error)
        finally:
            self._hub.forget(engine.key)
            await self.pool.take_back(engine.lease)
            shutil.rmtree(self._sockets(engine), ignore_errors=True)  # a rank that meets others in it would wait for ever
            self._give_port_back(engine)
            engine.ended(why)
            log.info("an engine ended", extra={"engine": engine.uuid, "state": engine.state, "why": engine.view().error})

    async def _run(self, engine: Engine) -> str:
        """Run the engine's processes once; returns how they ended, empty when that is no failure."""
        if engine.request.role == "api":
            args = await asyncio.to_thread(server_args, engine.request, self.settings, on_cpu=self.on_cpu)
            engine.api_url = f"http://{in_url(self.settings.host)}:{engine.port}"
            return await self._process(engine, SERVER_MODULE, [], self._job(engine, args))
        joined = chosen_graph(engine.request, self._graphs)
        http = joined.graph.http
        engine.api_url = f"http://{in_url(http.host)}:{http.port}"
        async with followed(engine, joined):
            arguments = worker_arguments(engine.request, joined)
            return await self._process(engine, f"components.{engine.request.role}", arguments, self._job(engine, {}))

    async def _process(self, engine: Engine, module: str, arguments: list[str], job: EngineJob) -> str:
        """Start ``python -m module arguments`` warm, watch it until its end, and return how it ended; see `_run`."""
        began = time.monotonic()
        child = await self._start(engine, module, arguments, job)
        engine.pid = child.pid
        try:
            won = await first(
                engine.running.wait(),
                child.wait(),
                engine.doomed.wait(),
                engine.stop.wait(),
                timeout_s=self.settings.max_load_s,
            )
            if won is None:
                return f"did not answer within {self.settings.max_load_s:g} s"
            if won == 0:
                engine.settled.set()
                await first(child.wait(), engine.doomed.wait(), engine.stop.wait())
        finally:
            by_itself = await self._end(engine, child)
        code = await child.wait()
        if engine.core_gone and not (by_itself and code < 0):
            return "its engine core is gone"
        return "" if code == 0 else f"its first process {how_it_ended(code, began)}"

    async def _end(self, engine: Engine, child: WarmChild) -> bool:
        """Let the processes of `engine` end, with grace while it runs; returns whether they needed no force."""
        if engine.stop.is_set() and engine.running.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
            grace_s = self.settings.stop_timeout_s
        else:
            # An engine that fails ends itself, and tells its clients so.
            grace_s = _GRACE_S if engine.running.is_set() else 0.0
        by_itself = await first(child.wait(), timeout_s=grace_s) is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
        return by_itself

    async def _start(self, engine: Engine, module: str, arguments: list[str], job: EngineJob) -> WarmChild:
        sockets = self._sockets(engine)
        sockets.mkdir(mode=0o700, exist_ok=True)
        environment = {**self._environment, IPC_FOLDER: str(sockets), JOB_VARIABLE: msgspec.json.encode(job).decode()}
        log_file = self._folders.logs / f"engine-{engine.uuid}.log"
        return await asyncio.to_thread(self._warm.start, module, arguments, environment, log_file)

    def _job(self, engine: Engine, args: dict[str, object]) -> EngineJob:
        return EngineJob(
            engine=engine.uuid,
            key=engine.key,
            controller=str(self._hub.path),
            ranks=engine.lease.addresses,
            rendezvous=str(self._sockets(engine) / f"meet-{engine.key[:8]}"),
            host=self.settings.host,
            port=engine.port or 0,
            args=args,
            max_ipc_bytes=self.settings.max_ipc_bytes,
            asked_s=engine.asked_s,
        )

    def _give_port_back(self, engine: Engine) -> None:
        if engine.port is not None:
            self._ports.give_back(engine.port)

    def _sockets(self, engine: Engine) -> Path:
        """Return the folder that is its own while it lives."""
        return self._folders.sockets / engine.key[:8]

    def living(self) -> list[Engine]:
        """Return the engines that are not over."""
        return [engine for engine in self.engines.values() if not engine.over.is_set()]

    def named(self, uuid: str) -> Engine:
        """Return the engine `uuid`.

        Raises:
            NotFoundError: there is none.
        """
        engine = self.engines.get(uuid)
        if engine is None:
            raise NotFoundError(f"no engine is called {uuid}", param="engine_uuid")
        return engine

    async def delete(self, uuid: str) -> Engine:
        """End the engine `uuid`, and return it once its ranks and its port can be had again. It is unknown then.

        Raises:
            NotFoundError: there is none.
        """
        engine = self.named(uuid)
        engine.end()
        await engine.over.wait()
        if self.engines.get(uuid) is engine:
            del self.engines[uuid]
        return engine

    async def sleep(self, uuid: str, level: int) -> Engine:
        """Have the engine `uuid` free its GPU memory.

        Raises:
            NotFoundError: there is none.
            InvalidRequestError: on a CPU, vLLM has nothing to free this way.
            ConflictError: it cannot.
        """
        engine = self.named(uuid)
        self._refuse_sleep(engine)
        await engine.sleep(level)
        return engine

    async def wake_up(self, uuid: str) -> Engine:
        """Undo `sleep`; raises the same."""
        engine = self.named(uuid)
        self._refuse_sleep(engine)
        await engine.wake_up()
        return engine

    def _refuse_sleep(self, engine: Engine) -> None:
        if self.on_cpu:
            raise InvalidRequestError("engines sleep on GPUs only; vLLM has no sleep mode on a CPU")
        if not engine.request.args.get("enable_sleep_mode"):
            raise ConflictError(f"engine {engine.uuid} was not created with enable_sleep_mode", param="enable_sleep_mode")

    async def close(self) -> None:
        """End all engines with grace."""
        self._closing = True
        for engine in self.engines.values():
            engine.end()
        for engine in list(self.engines.values()):
            await engine.over.wait()

    def _forget_old(self) -> None:
        """Keep a bounded number of engines that are over."""
        over = [uuid for uuid, engine in self.engines.items() if engine.state in OVER]
        for uuid in over[: max(0, len(over) - _REMEMBERED)]:
            del self.engines[uuid]
