"""A durable queue of typed jobs: put once, taken under a lease, taken off when done, buried when it cannot be done.

A JetStream stream keeps the jobs, a durable consumer a lane hands them out. A job is delivered at least once: its lease may
run out under a taker that still works, and a server that is killed may forget the last few acknowledgements. So jobs must
bear being done twice. A lane is a part of a queue with takers of its own; the limits are those of the whole queue.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from components.bus.browse import Browse
from components.bus.client import Bus, BusError
from components.bus.dead_letters import JOB, DeadLetters
from components.bus.delivery import Delivery
from components.bus.jetstream import MSG_ID, JetStream
from components.bus.pull import Arrived, Pull, PullBroken
from components.bus.queue_state import LastSeen, QueueState
from components.wire.messages import Message, decode
from components.wire.subjects import Subjects, name_of, stream_name, token

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

_DUPLICATE_WINDOW_S = 120.0
_RETRY_S = 0.2
_MISSED_REFRESHES = 4

OnDead = Callable[[str, str], Awaitable[None]]


class QueueLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How a queue treats its jobs.

    Attributes:
        lease_s: a taker silent for so long loses its job to another (JetStream's ack wait).
        max_deliver: a job taken so often and never finished is buried.
        max_age_s: jobs not done by then vanish; None keeps them for ever.
        max_jobs: more are refused.
        max_bytes: more are refused.
        dead_max_age_s: how long dead letters are kept.
        max_dead: over so many the oldest dead letters go.
    """

    lease_s: float = 30.0
    max_deliver: int = 5
    max_age_s: float | None = None
    max_jobs: int = 100_000
    max_bytes: int = 1024**3
    dead_max_age_s: float = 7 * 86400.0
    max_dead: int = 100_000


class WorkQueue(Generic[M]):
    """One lane of one queue, to put and to take. Make one with `open`; any number of processes may.

    Attributes:
        dead: its dead letters.
        browse: its jobs, for looking.
    """

    def __init__(
        self, bus: Bus, subjects: Subjects, name: str, lane: str, kind: type[M], limits: QueueLimits, timeout_s: float
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._kind = kind
        self._limits = limits
        self._name, self._lane = name, lane
        self._stream = stream_name(subjects.queue(name))
        self._consumer = token(lane)
        self._jetstream = JetStream(bus, timeout_s)
        self._pull = Pull(bus.client, self._stream, self._consumer)
        self._takes = False
        self._on_dead: OnDead | None = None
        self._seen = LastSeen()
        self._patience_s = 0.0
        self.dead = DeadLetters(self._jetstream, subjects, name)
        self.browse = Browse(self._jetstream, subjects, name, kind)

    @classmethod
    async def open(
        cls,
        bus: Bus,
        subjects: Subjects,
        name: str,
        kind: type[M],
        limits: QueueLimits,
        *,
        lane: str = "all",
        timeout_s: float = 5.0,
    ) -> "WorkQueue[M]":
        """Open the queue `name`, making it when it does not exist; who opens it last sets the limits.

        Args:
            bus: the connection; the queue is made anew if the server comes back without it.
            subjects: of the graph.
            name: of the queue: letters and digits.
            kind: of its jobs.
            limits: how it treats them.
            lane: the part of the queue to put into and take from.
            timeout_s: longest wait for any answer of JetStream's.

        Raises:
            BusError: JetStream is away, or refuses the limits.
        """
        queue = cls(bus, subjects, name, lane, kind, limits, timeout_s)
        await queue._keep()
        bus.on_reconnect(queue._reconnected)
        return queue

    async def put(self, message: M, job_id: str, lane: str | None = None) -> bool:
        """Store a job; returns when the server has it. To be repeated with the same id when the outcome is unknown.

        Args:
            message: the job.
            job_id: printable ASCII, unique to it: of two puts with one id within two minutes the second stores nothing.
            lane: where to put it, if not into this one.

        Returns:
            False when the id was put before.

        Raises:
            QueueFullError: there is no room.
            TooLongError: the message is longer than the server takes.
            JetStreamAwayError: no answer in time; it may be stored all the same.
            ValueError: the id cannot be one.
        """
        if not (job_id.isascii() and job_id.isprintable() and job_id.strip() == job_id != ""):
            raise ValueError(f"a job's id must be printable ASCII, not {job_id[:100]!r}")
        data = self._bus.encode(message)
        subject = self._subjects.queued(self._name, lane or self._lane, job_id)
        new = await self._jetstream.publish(subject, data, {MSG_ID: job_id, JOB: job_id})
        if new and lane in {None, self._lane}:
            self._seen.put()
        return new

    async def take(self, most: int, wait_s: float) -> list[Delivery[M]]:
        """Return up to `most` jobs: those that wait, or else the first that comes within `wait_s` seconds.

        One task of a process takes at a time. What cannot be decoded, and what was taken too often, is buried and left out.
        While JetStream is away there is nothing to take; that is no error. Cancelled, it loses nothing: a job that came in
        the same instant is in the next answer, or with another taker after its lease.

        Args:
            most: at least 1.
            wait_s: longest wait.
        """
        end_s = time.monotonic() + wait_s
        cancellations = _cancellations()
        while True:
            try:
                if not self._takes:
                    await self._keep()
                    await self._keep_consumer()
                    if _cancellations() > cancellations:
                        raise asyncio.CancelledError
                arrived = await self._pull.some(most, end_s - time.monotonic(), self._limits.lease_s / 2)
            except (PullBroken, BusError, NatsError) as error:
                log.debug("nothing to take", extra={"queue": self._name, "error": str(error)})
                self._takes = False
                arrived = []
                await asyncio.sleep(min(_RETRY_S, max(0.0, end_s - time.monotonic())))
            taken = [delivery for one in arrived if (delivery := await self._receive(one)) is not None]
            if taken or time.monotonic() >= end_s:
                return taken

    def on_dead(self, callback: OnDead) -> None:
        """Call `callback` with the id of each job `take` is about to bury, and why; a `BusError` from it postpones that."""
        self._on_dead = callback

    async def ask_state(self) -> QueueState:
        """Return how the lane stands now; costs two small requests to the server.

        Raises:
            BusError: it does not answer.
        """
        if not self._takes:
            await self._keep_consumer()
        info = await self._jetstream.stream_info(self._stream)
        consumer = await self._jetstream.consumer_info(self._stream, self._consumer)
        age_s = (info.ts - info.state.first_ts).total_seconds()
        oldest_age_s = max(0.0, age_s) if info.state.messages else 0.0
        return QueueState(consumer.num_pending, consumer.num_ack_pending, oldest_age_s, consumer.num_waiting)

    async def watch(self, every_s: float) -> None:
        """Keep `recent_state` fresh, for ever; to be run by the owner's task group."""
        self._patience_s = every_s * _MISSED_REFRESHES
        while True:
            try:
                self._seen.saw(await self.ask_state(), time.monotonic())
            except BusError as error:
                log.debug("cannot see the queue", extra={"queue": self._name, "error": str(error)})
            await asyncio.sleep(every_s)

    @property
    def recent_state(self) -> QueueState | None:
        """What `watch` last saw, plus this process's puts since; None when that is too long ago. Costs nothing."""
        return self._seen.recent(time.monotonic(), self._patience_s)

    def taken_elsewhere(self) -> None:
        """Note in `recent_state` that a job this process had put was taken, as its taker told, before `watch` sees it."""
        self._seen.taken()

    async def lanes(self) -> list[str]:
        """Return every lane that somebody has taken from, and this one.

        Raises:
            BusError: JetStream does not answer.
        """
        return sorted({self._lane, *map(name_of, await self._jetstream.consumers(self._stream))})

    async def close(self) -> None:
        """Take no more."""
        await self._pull.close()

    async def _keep(self) -> None:
        limits = self._limits
        config = StreamConfig(
            name=self._stream,
            subjects=[self._subjects.queue(self._name)],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_msgs=limits.max_jobs,
            max_bytes=limits.max_bytes,
            max_age=limits.max_age_s or 0,
            duplicate_window=min(_DUPLICATE_WINDOW_S, limits.max_age_s or _DUPLICATE_WINDOW_S),
        )
        await self._jetstream.keep_stream(config)
        await self.dead.keep(limits.dead_max_age_s, limits.max_dead)

    async def _keep_consumer(self) -> None:
        config = ConsumerConfig(
            durable_name=self._consumer,
            filter_subject=self._subjects.lane(self._name, self._lane),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._limits.lease_s,
            max_deliver=-1,  # the taker buries; the server would only stop delivering, and keep the job for ever
            max_ack_pending=-1,  # takers bound what they take
        )
        await self._jetstream.keep_consumer(self._stream, config)
        self._takes = True

    async def _reconnected(self) -> None:
        self._takes = False
        await self._keep()
        self._pull.interrupt()

    async def _receive(self, arrived: Arrived) -> Delivery[M] | None:
        """Return the job that arrived; None when it was buried instead."""
        headers = arrived.msg.headers or {}
        job_id = headers.get(JOB) or headers.get(MSG_ID) or f"number-{arrived.msg.metadata.sequence.stream}"
        try:
            message = decode(arrived.msg.data, self._kind)
        except msgspec.DecodeError as error:
            unknown: Delivery[None] = Delivery(None, job_id, arrived, self._limits.lease_s, self._jetstream, self._bury)
            await self._give_up(unknown, f"undecodable {self._kind.__name__}: {error}")
            return None
        delivery = Delivery(message, job_id, arrived, self._limits.lease_s, self._jetstream, self._bury)
        if delivery.delivery <= self._limits.max_deliver:
            return delivery
        await self._give_up(delivery, f"taken {self._limits.max_deliver} times and never finished")
        return None

    async def _give_up(self, delivery: Delivery[Any], reason: str) -> None:
        try:
            if self._on_dead is not None:
                await self._on_dead(delivery.id, reason)
            await delivery.reject(reason)
        except BusError as error:  # it comes again, and is tried again
            log.warning("cannot bury a job", extra={"queue": self._name, "job": delivery.id, "error": str(error)})
        else:
            log.warning("buried a job", extra={"queue": self._name, "job": delivery.id, "reason": reason})

    async def _bury(self, delivery: Delivery[Any], reason: str) -> None:
        await self.dead.bury(delivery, self._lane, reason)


def _cancellations() -> int:
    """Return how often the current task was cancelled: Python 3.11's `wait_for`, below a request, may swallow one."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0
