"""Runs a plan: starts its processes, listens to what they say, restarts the dead, and in the end stops them all.

One queue of events and one loop that handles them, so that no two things happen at the same time. What to do about a death
or a silence is `Watch`'s decision; how a process comes into being is `Starter`'s.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable

from components.bus.client import Bus, BusError
from components.bus.server import NatsServerError, NatsServerPlan
from components.graph.schema import Nats
from components.launch.child import Child, kill_group, last_line, terminate
from components.launch.events import Died, Event, Failed, Joined, NatsUp, Started, StopAsked, Tick
from components.launch.plan import NATS, Plan, ProcessSpec
from components.launch.report import Reporter
from components.launch.starter import Starter, StartError
from components.launch.state import GraphPhase, GraphState, StateFolder
from components.launch.watch import Phase, Watch
from components.wire.process import ProcessStatus
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

_TICK_S = 0.25
_STALLED_S = 3.0


class Supervisor:
    """The one supervisor of a graph; `run` it once.

    Attributes:
        failure: why the launch failed; empty when it did not.
    """

    def __init__(self, plan: Plan, folder: StateFolder, on_change: Callable[[GraphState], None]) -> None:
        """Prepare to run `plan`; `on_change` is told each new state of the graph."""
        self.failure = ""
        self.phase = GraphPhase.STARTING
        self._graph = plan.graph
        self._folder = folder
        self._starter = Starter(plan, folder)
        host, rules = socket.gethostname(), plan.graph.supervision
        self._watches = {spec.name: Watch(spec, rules, host) for spec in plan.processes}
        self._reporter = Reporter(plan.graph, self._starter.run, folder, on_change)
        self._children: dict[str, Child] = {}
        self._being_started: set[str] = set()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._ticked_s = time.monotonic()
        self._stop_by_s: float | None = None
        self._bus: Bus | None = None
        self._tasks: asyncio.TaskGroup

    def stop(self) -> None:
        """Ask to stop: the first time with grace, the second time at once."""
        self._events.put_nowait(StopAsked())

    async def run(self) -> None:
        """Run the graph until it was stopped or its launch failed (see `failure`); then no process is left."""
        self._starter.open()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                background = [self._tasks.create_task(self._tick()), self._tasks.create_task(self._begin())]
                while not self._over:
                    self._handle(await self._events.get())
                    self._report()
                for task in background:
                    task.cancel()
        finally:
            await asyncio.to_thread(self._starter.close)
            if self._bus:
                await self._bus.close()
            self.phase = GraphPhase.FAILED if self.failure else GraphPhase.STOPPED
            self._report()

    @property
    def _over(self) -> bool:
        return self.phase is GraphPhase.STOPPING and not self._children and not self._being_started

    def _handle(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case Started():
                self._on_started(event)
            case Died():
                self._on_died(event, now)
            case NatsUp():
                self._on_nats_up(event, now)
            case Joined():
                self._launch_components()
            case ProcessStatus():
                self._on_status(event, now)
            case Failed():
                self._fail(event.reason)
            case StopAsked():
                self._on_stop_asked(now)
            case Tick():
                self._on_tick(now)

    # -- starting

    async def _begin(self) -> None:
        if NATS.name in self._watches:
            self._launch(self._watches[NATS.name])
        else:
            nats = self._graph.nats
            await self._join(Nats(url=nats) if isinstance(nats, str) else nats)

    async def _join(self, nats: Nats) -> None:
        """Connect to the bus, for good; then the components may start."""
        try:
            self._bus = await Bus.connect(nats, f"{self._graph.part}/supervisor")
        except BusError as error:
            self._events.put_nowait(Failed(f"nats: {error}"))
            return
        await self._bus.subscribe(Subjects(self._graph.name).every_status(), ProcessStatus, self._events.put)
        self._starter.resolve(nats)
        self._events.put_nowait(Joined())

    def _launch_components(self) -> None:
        for watch in self._watches.values():
            if watch.spec is not NATS and not watch.spec.late and self.phase is GraphPhase.STARTING:
                self._launch(watch)

    def _launch(self, watch: Watch) -> None:
        now = time.monotonic()
        if other := self._starts_on_its_gpus(watch.spec):
            watch.waits(f"waits for {other}, which starts on the same GPU", now)
            return
        if watch.restarts:
            log.info("restarting", extra={"child": watch.spec.name})
        watch.starts(now)
        self._being_started.add(watch.spec.name)
        self._tasks.create_task(self._live(watch))

    def _starts_on_its_gpus(self, spec: ProcessSpec) -> str | None:
        for name, other in self._watches.items():
            there = other.alive or name in self._being_started
            if there and other.phase is Phase.STARTING and not set(spec.shared_gpus).isdisjoint(other.spec.shared_gpus):
                return name
        return None

    async def _live(self, watch: Watch) -> None:
        """One incarnation, from start to end."""
        name = watch.spec.name
        try:
            child = await self._starter.start(watch.spec)
        except StartError as error:
            self._events.put_nowait(Died(name, None, str(error)))
            return
        self._events.put_nowait(Started(name, child))
        exit_code = await child.wait()
        kill_group(child.pid)  # what it left behind
        self._events.put_nowait(Died(name, exit_code, last_line(self._folder.log(name))))

    def _on_started(self, event: Started) -> None:
        self._being_started.discard(event.name)
        self._children[event.name] = event.child
        watch = self._watches[event.name]
        watch.lives(event.child.pid)
        if self.phase is GraphPhase.STOPPING:
            kill_group(event.child.pid)
        elif watch.spec is NATS and self._starter.nats:
            self._tasks.create_task(self._await_nats(self._starter.nats, event.child.pid))

    async def _await_nats(self, server: NatsServerPlan, pid: int) -> None:
        try:
            self._events.put_nowait(NatsUp(await server.settings(pid)))
        except NatsServerError as error:
            self._kill(self._watches[NATS.name], str(error))

    def _on_nats_up(self, event: NatsUp, now: float) -> None:
        self._watches[NATS.name].ready(now)
        if self._bus is None:
            self._tasks.create_task(self._join(event.settings))

    # -- watching

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._events.put_nowait(Tick())

    def _on_status(self, status: ProcessStatus, now: float) -> None:
        watch = self._watches.get(status.name)
        if watch is None:
            return
        watch.hear(status, now)
        if self.phase is GraphPhase.STARTING and all(w.phase is Phase.READY or w.spec.late for w in self._watches.values()):
            self.phase = GraphPhase.READY
            log.info("all processes are ready")
            for late in (each for each in self._watches.values() if each.spec.late):
                self._launch(late)

    def _on_tick(self, now: float) -> None:
        if self._bus is not None and self._bus.failure and self.phase is not GraphPhase.STOPPING:
            self._fail(f"nats: {self._bus.failure}")
        self._excuse_silence(now)
        for watch in self._watches.values():
            if self.phase is GraphPhase.STOPPING:
                break
            if reason := watch.overdue(now):
                self._kill(watch, reason)
            elif watch.due(now):
                self._launch(watch)
        if self._stop_by_s is not None and now > self._stop_by_s:
            self._stop_by_s = None
            self._kill_all()

    def _excuse_silence(self, now: float) -> None:
        """Count nobody's silence while NATS is away or we were not running ourselves."""
        deaf = (self._bus is not None and not self._bus.connected) or now - self._ticked_s > _STALLED_S
        self._ticked_s = now
        if deaf:
            for watch in self._watches.values():
                watch.excuse(now)

    def _kill(self, watch: Watch, reason: str) -> None:
        if watch.pid is not None:
            log.warning("killing a process", extra={"child": watch.spec.name, "reason": reason})
            watch.sentence(reason)
            kill_group(watch.pid)

    def _on_died(self, event: Died, now: float) -> None:
        self._being_started.discard(event.name)
        self._children.pop(event.name, None)
        watch = self._watches[event.name]
        if self.phase is GraphPhase.STOPPING:
            watch.stopped()
            self._stop_nats_last()
            return
        would_die_again = event.exit_code is None or event.exit_code >= 0 or watch.sentenced
        watch.died(event.exit_code, event.last_line, now)
        log.warning("a process died", extra={"child": event.name, "reason": watch.last_death, "next": watch.phase.value})
        if self.phase is GraphPhase.STARTING and (would_die_again or watch.phase is Phase.FAILED):
            self._fail(f"{event.name}: {watch.last_death}")

    # -- stopping

    def _fail(self, reason: str) -> None:
        self.failure = reason
        log.error("the launch failed", extra={"reason": reason})
        self._on_stop_asked(time.monotonic())

    def _on_stop_asked(self, now: float) -> None:
        if self.phase is GraphPhase.STOPPING:
            self._kill_all()
            return
        log.info("stopping")
        in_launch = self.phase is GraphPhase.STARTING
        self.phase = GraphPhase.STOPPING
        self._stop_by_s = now + self._graph.supervision.stop_timeout_s
        for name, watch in self._watches.items():
            if name not in self._children:
                watch.stopped()
            elif watch.spec is not NATS:
                terminate(self._children[name])
        if in_launch:
            self._kill_all()  # nobody has anything to finish
        else:
            self._stop_nats_last()

    def _stop_nats_last(self) -> None:
        if not self._being_started and set(self._children) == {NATS.name}:
            self._tasks.create_task(self._leave(self._children[NATS.name]))

    async def _leave(self, nats: Child) -> None:
        if self._bus:
            await self._bus.close()
        terminate(nats)

    def _kill_all(self) -> None:
        self._tasks.create_task(asyncio.to_thread(self._starter.kill_all))

    def _report(self) -> None:
        self._reporter.tell(self.phase, self.failure, self._watches.values())
