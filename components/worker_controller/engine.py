"""One engine as the controller sees it: its state and why, what its processes have said. No I/O but its link."""

import asyncio
import time
from enum import StrEnum
from typing import Literal

import msgspec

from components.wire.errors import ConflictError, InvalidRequestError, PenstockError, WorkerLostError
from components.worker_controller.engine_request import EngineRequest
from components.worker_controller.hub import Link
from components.worker_controller.messages import (
    AnyMessage,
    Doing,
    Done,
    Failed,
    Hello,
    Leaving,
    Phase,
    Running,
    Sleep,
    WakeUp,
)
from components.worker_controller.pool import Lease
from components.worker_controller.timings import LoadTimings, Seen, create_timings, load_timings

_SLEEP_TIMEOUT_S = 120.0


class EngineState(StrEnum):
    """Where an engine stands."""

    CREATED = "created"
    LOADING = "loading"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


OVER = frozenset({EngineState.STOPPED, EngineState.FAILED})
"""States after which nothing comes; the ranks and the port are given back by then."""


class EngineView(msgspec.Struct, frozen=True):
    """An engine in the answers of GET /engines and GET /engines/{uuid}.

    Attributes:
        engine_uuid: its name.
        state: see `EngineState`.
        doing: while it loads: what.
        error: why it failed.
        model: as the client named it.
        role: ``api``, ``decode`` or ``prefill``.
        api_url: where it answers; of a role other than ``api``, the graph's endpoint.
        port: of `api_url`, when it is its own.
        assigned_ranks: the pool's ranks that it has; none once it is over.
        pid: its first process.
        sleeping: the level, while it sleeps.
        created_unix_s: when it was asked for.
        create_timings: seconds by phase, once it has been running.
    """

    engine_uuid: str
    state: EngineState
    doing: str
    error: str
    model: str | None
    role: Literal["api", "decode", "prefill"]
    api_url: str | None
    port: int | None
    assigned_ranks: list[int]
    pid: int | None
    sleeping: int | None
    created_unix_s: float
    create_timings: dict[str, float] | None


class Engine:
    """An engine from the request to its end.

    Attributes:
        request: what was asked for.
        key: what its processes show.
        lease: its ranks.
        port: its TCP port; None for a role without one.
        asked_s: when it was asked for, on the monotonic clock.
        state: where it stands.
        pid: its first process, while it lives.
        running: set once it answers.
        stop: set to end it.
        doomed: set when it cannot go on, though its processes may not know yet.
        settled: set once its creation has succeeded or failed.
        over: set once all is given back.
        core_gone: its core has left, and nobody has told it to.
        port_taken: its port was somebody else's; another may do.
        api_url: where it answers.
        doing: while it loads: what.
    """

    def __init__(self, request: EngineRequest, key: str, lease: Lease | None = None) -> None:
        self.request = request
        self.key = key
        self.lease = lease or Lease(request.engine_uuid, ())
        self.port: int | None = None
        self.api_url: str | None = None
        self.asked_s = time.monotonic()
        self.state = EngineState.CREATED
        self.pid: int | None = None
        self.running, self.stop, self.doomed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.settled, self.over = asyncio.Event(), asyncio.Event()
        self.port_taken = self.core_gone = False
        self._created_unix_s = time.time()
        self.doing = ""
        self._error = ""
        self._mistake = False
        self._leaving = False
        self._link: Link | None = None
        self._seen: list[Seen] = []
        self._timings: dict[str, float] | None = None
        self._sleeping: int | None = None
        self._orders: dict[int, asyncio.Future[str]] = {}

    @property
    def uuid(self) -> str:
        """Its name."""
        return self.request.engine_uuid

    def joined(self, hello: Hello, link: Link) -> None:
        """One of its processes has connected; see `Peer`."""
        if hello.part == "server":
            self._link = link

    def left(self, hello: Hello) -> None:
        """One of its processes has disconnected; without a core it cannot go on, whether its server notices or not."""
        if hello.part == "core" and not self._leaving and not self.stop.is_set():
            self.core_gone = True
            self.doomed.set()

    def heard(self, message: AnyMessage) -> None:
        """One of its processes says something; see `Peer`."""
        match message:
            case Phase():
                self.saw(None, message)
            case Doing(what):
                self.doing = what
            case Failed(reason, port_taken):
                self.port_taken = port_taken
                self._blame(reason, mistake=True)
            case Leaving():
                self._leaving = True
            case Running():
                self.ran()
            case Done(number, error):
                if (order := self._orders.pop(number, None)) is not None and not order.done():
                    order.set_result(error)

    def saw(self, rank: int | None, phase: Phase) -> None:
        """Take note of a phase of rank `rank`, or of its own processes."""
        if self.state in {EngineState.CREATED, EngineState.LOADING}:
            self._seen.append(Seen(rank, phase))

    def ran(self) -> None:
        """It answers requests."""
        self.state, self.doing, self._error = EngineState.RUNNING, "", ""
        self._timings = create_timings(self._seen, self.asked_s, time.monotonic())
        self.running.set()

    def refuse(self, reason: str) -> None:
        """What was asked for cannot be had."""
        self._blame(reason, mistake=True)

    def lost(self, reason: str) -> None:
        """Something that it cannot do without is gone."""
        if self.state is EngineState.RUNNING and not self.doomed.is_set():
            self._error, self._mistake = "", False  # what it said before it got over
        self._blame(reason, mistake=False)
        self._mistake = False  # whoever has complained first was not at fault
        self.doomed.set()

    def _blame(self, reason: str, *, mistake: bool) -> None:
        """Remember why it fails: the first reason is the cause of the others."""
        if not self._error:
            self._error, self._mistake = reason, mistake

    def retry(self) -> None:
        """Forget a failure that another port may mend."""
        self.port_taken, self._error, self._mistake = False, "", False

    def begin(self) -> None:
        """Its processes are about to be started."""
        if self.state is EngineState.CREATED:
            self.state = EngineState.LOADING

    def end(self) -> None:
        """Have it end, whatever it is doing."""
        self.stop.set()
        if self.state not in OVER:
            self.state, self.doing = EngineState.STOPPING, ""

    def ended(self, why: str) -> None:
        """Its processes are gone, and all is given back; `why` counts where nobody has said better, empty is no failure."""
        if self.stop.is_set() or (self._leaving and not why and not self._error):
            self.state, self._error = EngineState.STOPPED, ""
        else:
            self.state, self._error = EngineState.FAILED, self._error or why
        self.doing, self.pid, self._link, self._sleeping = "", None, None, None
        for order in self._orders.values():
            if not order.done():
                order.set_result("the engine ended")
        self.settled.set()
        self.over.set()

    @property
    def failure(self) -> PenstockError | None:
        """Why its creation has failed; None if it has not."""
        if self.state not in OVER:
            return None
        if self.stop.is_set():
            return ConflictError(f"engine {self.uuid} was deleted while it was loading")
        if self._mistake:
            return InvalidRequestError(f"engine {self.uuid} cannot be created: {self._error}", param="model")
        return WorkerLostError(f"engine {self.uuid} cannot be created: {self._error}", retry_after_s=5.0)

    async def sleep(self, level: int) -> None:
        """Free its GPU memory; see `Sleep`.

        Raises:
            ConflictError: it cannot.
        """
        await self._order(Sleep(self._next(), level))
        self._sleeping = level

    async def wake_up(self) -> None:
        """Undo `sleep`.

        Raises:
            ConflictError: it cannot.
        """
        await self._order(WakeUp(self._next()))
        self._sleeping = None

    def _next(self) -> int:
        return max(self._orders, default=0) + 1

    async def _order(self, order: Sleep | WakeUp) -> None:
        if self.state is not EngineState.RUNNING or self._link is None:
            raise ConflictError(f"engine {self.uuid} is {self.state}")
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._orders[order.number] = done
        self._link.send(order)
        try:
            async with asyncio.timeout(_SLEEP_TIMEOUT_S):
                error = await done
        except TimeoutError:
            error = f"no answer within {_SLEEP_TIMEOUT_S:g} s"
        finally:
            self._orders.pop(order.number, None)
        if error:
            raise ConflictError(f"engine {self.uuid}: {error}")

    def view(self) -> EngineView:
        """Return what others may see."""
        over = self.over.is_set()
        return EngineView(
            engine_uuid=self.uuid,
            state=self.state,
            doing=self.doing,
            error=self._error if self.state is EngineState.FAILED else "",
            model=self.request.model,
            role=self.request.role,
            api_url=self.api_url,
            port=None if over else self.port,
            assigned_ranks=[] if over else self.lease.numbers,
            pid=self.pid,
            sleeping=self._sleeping,
            created_unix_s=self._created_unix_s,
            create_timings=self._timings,
        )

    def load_timings(self) -> LoadTimings:
        """Return what each rank did for its load."""
        total_s = self._timings["total_s"] if self._timings else None
        return load_timings(self.uuid, self.lease.numbers, self._seen, total_s)
