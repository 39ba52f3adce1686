"""One job in the hands of its taker: the lease on it, and the ways to end it."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec
from nats.errors import Error as NatsError

from components.bus.client import BusError
from components.bus.jetstream import JetStream, JetStreamAwayError
from components.bus.pull import Arrived

M = TypeVar("M")

_DONE, _AGAIN, _NEVER, _PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"

Bury = Callable[["Delivery[Any]", str], Awaitable[None]]


class LeaseLostError(BusError):
    """The lease on a job has run out; another taker may have it."""


class Delivery(Generic[M]):
    """A job that was taken. Its lease runs until `in_progress` renews it or one of the other calls ends it.

    Nothing brings a lease back that has run out: stop, or finish and call `done`, which is right whoever did the work.

    Attributes:
        message: the job.
        id: as it was put.
        number: its number in the queue, the same at each delivery.
        delivery: 1 the first time it is taken, 2 the next, …
        put_unix_s: when it was put, by the server's clock.
        data: the job as it was put.
    """

    def __init__(self, message: M, job_id: str, arrived: Arrived, lease_s: float, jetstream: JetStream, bury: Bury) -> None:
        msg = arrived.msg
        meta = msg.metadata
        self.message = message
        self.id = job_id
        self.number = meta.sequence.stream
        self.delivery = meta.num_delivered
        self.put_unix_s = meta.timestamp.timestamp()
        self.data = msg.data
        self._msg = msg
        self._lease_s = lease_s
        self._lease_end_s = arrived.at_s + lease_s
        self._jetstream = jetstream
        self._bury = bury

    @property
    def age_s(self) -> float:
        """Seconds since it was put, as far as this machine's clock agrees with the server's."""
        return max(0.0, time.time() - self.put_unix_s)

    @property
    def lease_left_s(self) -> float:
        """Seconds until another taker may get it; 0 when that moment is past."""
        return max(0.0, self._lease_end_s - time.monotonic())

    async def in_progress(self) -> None:
        """Renew the lease. Costs no round trip: while NATS is away it may be lost, so renew well before the end.

        Raises:
            LeaseLostError: too late.
        """
        self._check()
        try:
            await self._msg.in_progress()
        except NatsError as error:
            raise JetStreamAwayError(f"cannot renew the lease on {self.id}: {error}") from error
        self._lease_end_s = time.monotonic() + self._lease_s

    async def done(self) -> None:
        """Take the job off the queue; returns when the server has done so. To be repeated after an error.

        Raises:
            JetStreamAwayError: the server does not say that it has; the job may be delivered again.
        """
        await self._jetstream.acknowledge(self._msg.reply, _DONE)

    async def release(self, delay_s: float = 0.0) -> None:
        """Give the job back undone; it is delivered again after `delay_s` seconds. Counts as a delivery.

        Raises:
            LeaseLostError: too late; it is given back already.
            JetStreamAwayError: the server does not answer; then the end of the lease gives it back.
        """
        self._check()
        delay = b" " + msgspec.json.encode({"delay": int(delay_s * 1e9)}) if delay_s > 0 else b""
        await self._jetstream.acknowledge(self._msg.reply, _AGAIN + delay)
        self._lease_end_s = 0.0

    async def reject(self, reason: str) -> None:
        """Give the job up: it becomes a dead letter, with `reason`.

        Raises:
            LeaseLostError: too late; whoever has it now decides.
            BusError: the server does not answer; then the job is delivered again.
        """
        self._check()
        await self._bury(self, reason)
        await self._jetstream.acknowledge(self._msg.reply, _NEVER)
        self._lease_end_s = 0.0

    def _check(self) -> None:
        if time.monotonic() >= self._lease_end_s:
            raise LeaseLostError(f"the lease on {self.id} has ended")
