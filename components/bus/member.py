"""A process's membership in its graph: it tells its status, answers scrapes, and hears when it shall drain."""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from components.bus.client import Bus, BusError, NoListenerError
from components.telemetry.metrics import collect
from components.wire.messages import Message
from components.wire.process import (
    Control,
    ControlVerb,
    MetricFamily,
    MetricsReply,
    ProcessState,
    ProcessStatus,
    WorkerStatus,
)
from components.wire.subjects import Subjects

STATUS_INTERVAL_S = 1.0
_CLAIM_TIMEOUT_S = 1.0
_ENDED = frozenset({ProcessState.STOPPED, ProcessState.FAILED})

log = logging.getLogger(__name__)


class NameTakenError(BusError):
    """Another living process of the graph has this name; two of one name would take each other's requests."""

    def __init__(self, holder: ProcessStatus) -> None:
        super().__init__(
            f"name {holder.name} is taken by host {holder.host} pid {holder.pid}; "
            "give each machine's part of the graph a `host` label of its own"
        )


class Nothing(Message, frozen=True):
    """A message without content: the question itself is all."""


class Member:
    """One process of a graph, as the others see it.

    Attributes:
        name: unique in the graph, such as ``decode-0``.
        incarnation: new for every process.
        registry: the process's Prometheus metrics.
        stopping: set when the process shall finish what it has and end.
    """

    def __init__(self, bus: Bus, subjects: Subjects, name: str, component: str) -> None:
        self.name = name
        self.incarnation = secrets.token_hex(6)
        self.registry = CollectorRegistry()
        self.stopping = asyncio.Event()
        self._bus = bus
        self._subjects = subjects
        self._component = component
        self._state = ProcessState.STARTING
        self._detail = ""
        self._worker: Callable[[], WorkerStatus] | None = None
        self._more_metrics: Callable[[], list[MetricFamily]] = list
        self._changed = asyncio.Event()
        self._namesake: ProcessStatus | None = None

    async def claim(self) -> None:
        """Make sure that nobody has this name, before anything is said in it. A dead predecessor does not answer.

        Raises:
            NameTakenError: a living process has it.
        """
        try:
            holder = await self._bus.request(self._subjects.who(self.name), Nothing(), ProcessStatus, _CLAIM_TIMEOUT_S)
        except NoListenerError:
            return
        except BusError as error:
            log.warning("who had this name before does not answer", extra={"error": str(error)})
            return
        raise NameTakenError(holder)

    async def run(self) -> None:
        """Tell the status once a second and at each change, for ever.

        Raises:
            NameTakenError: another process took the name in the same instant, or came back from behind a cut network.
        """
        await self._bus.serve(self._subjects.who(self.name), Nothing, self._answer_who)
        await self._bus.subscribe(self._subjects.status(self.name), ProcessStatus, self._hear_namesake)
        await self._bus.serve(self._subjects.scrape(), Nothing, self._answer_scrape)
        await self._bus.serve(self._subjects.control(self.name), Control, self._obey)
        await self._bus.subscribe(self._subjects.ask_status(), Nothing, self._answer_status)
        self._bus.on_reconnect(self.tell)
        while True:
            self._changed.clear()
            await self.tell()
            try:
                async with asyncio.timeout(STATUS_INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                continue
            if self._namesake:
                raise NameTakenError(self._namesake)

    def become(self, state: ProcessState, detail: str = "") -> None:
        """Change state; the others hear of it at once.

        Args:
            state: the new state.
            detail: for a person: what it is doing, or why it failed.
        """
        self._state, self._detail = state, detail
        self._changed.set()

    def offer(self, worker: Callable[[], WorkerStatus]) -> None:
        """From now on tell what `worker` returns in each status."""
        self._worker = worker
        self._changed.set()

    def expose(self, families: Callable[[], list[MetricFamily]]) -> None:
        """Answer scrapes with what `families` returns too, beside the registry."""
        self._more_metrics = families

    def status(self) -> ProcessStatus:
        """Return this process's status."""
        return ProcessStatus(
            name=self.name,
            component=self._component,
            incarnation=self.incarnation,
            pid=os.getpid(),
            host=socket.gethostname(),
            state=self._state,
            detail=self._detail,
            worker=self._worker() if self._worker else None,
        )

    async def tell(self) -> None:
        """Publish the status now; silently lost while NATS is away. Who lost its name says nothing more in it."""
        if self._namesake:
            return
        try:
            await self._bus.publish(self._subjects.status(self.name), self.status())
        except BusError:
            return

    def metrics(self) -> MetricsReply:
        """Return all metrics of this process."""
        return MetricsReply(self.name, collect(self.registry) + self._more_metrics())

    async def _answer_who(self, _: Nothing) -> ProcessStatus:
        return self.status()

    async def _hear_namesake(self, status: ProcessStatus) -> None:
        """Give way to another living process of this name if its incarnation is the smaller one: one of the two stays."""
        if status.incarnation < self.incarnation and status.state not in _ENDED:
            self._namesake = status
            self._changed.set()

    async def _answer_scrape(self, _: Nothing) -> MetricsReply:
        return self.metrics()

    async def _answer_status(self, _: Nothing) -> None:
        await self.tell()

    async def _obey(self, control: Control) -> Nothing:
        if control.verb is ControlVerb.DRAIN:
            self.stopping.set()
        return Nothing()
