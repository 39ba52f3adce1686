"""What is asked of JetStream, and its refusals in penstock's words. Knows streams and consumers, not what they are for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, RawStreamMsg, StreamConfig

from components.bus.client import Bus, BusError

log = logging.getLogger(__name__)

T = TypeVar("T")

MSG_ID = "Nats-Msg-Id"
_NONE_BEFORE = {"Nats-Expected-Last-Subject-Sequence": "0"}
_OUT_OF_TURN = 10071  # a message was on the subject before
_FULL = frozenset({10023, 10047, 10077})  # the server's codes for: no more room on the server, in the account, in the stream
_EXISTS = 10058  # a stream of this name exists, with other settings


class JetStreamAwayError(BusError):
    """JetStream does not answer, or what was asked for is gone; trying again later may help."""


class QueueFullError(BusError):
    """There is no more room; nothing was put."""


class AlreadyThereError(BusError):
    """Something was stored there before; it stays."""


class StreamState(msgspec.Struct, frozen=True):
    """What a stream holds.

    Attributes:
        messages: how many.
        first_ts: when the oldest of them came, by the server's clock.
        last_seq: number of the newest of them.
    """

    messages: int
    first_ts: datetime
    last_seq: int


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream now; `ts` is the server's time."""

    state: StreamState
    ts: datetime


class ConsumerInfo(msgspec.Struct, frozen=True):
    """A consumer now.

    Attributes:
        num_pending: messages not delivered yet.
        num_ack_pending: delivered and not acknowledged, those about to be delivered again included.
        num_waiting: pull requests that wait for a message.
    """

    num_pending: int
    num_ack_pending: int
    num_waiting: int


class JetStream:
    """JetStream over one connection.

    Attributes:
        context: nats-py's own view of it.
    """

    def __init__(self, bus: Bus, timeout_s: float) -> None:
        self._client = bus.client
        self._timeout_s = timeout_s
        self.context: JetStreamContext = bus.client.jetstream(timeout=timeout_s)

    async def keep_stream(self, config: StreamConfig) -> None:
        """Make a stream, or give the one that exists these settings.

        Raises:
            BusError: JetStream is away, or refuses the settings.
        """
        with translated(f"stream {config.name}"):
            try:
                await self.context.add_stream(config)
            except nats.js.errors.BadRequestError as error:
                if error.err_code != _EXISTS:
                    raise
                await self.context.update_stream(config)

    async def keep_consumer(self, stream: str, config: ConsumerConfig) -> None:
        """Make a durable consumer, or give the one that exists these settings.

        Raises:
            BusError: JetStream is away, or refuses the settings.
        """
        with translated(f"consumer {config.durable_name} of {stream}"):
            await self.context.add_consumer(stream, config)

    async def publish(self, subject: str, data: bytes, headers: dict[str, str]) -> bool:
        """Store `data`; returns False when a message with its `MSG_ID` was stored within the duplicate window.

        Raises:
            QueueFullError: there is no room.
            JetStreamAwayError: there is no connection; or no answer in time, then it may have been stored all the same.
        """
        if not self._client.is_connected:  # else it would be sent when the connection is back, and nobody would know
            raise JetStreamAwayError(f"cannot store on {subject}: NATS is away")
        with translated(f"cannot store on {subject}"):
            ack = await self.context.publish(subject, data, timeout=self._timeout_s, headers=headers)
        return not ack.duplicate

    async def publish_first(self, subject: str, data: bytes) -> None:
        """Store `data` as the only message ever on `subject`.

        Raises:
            AlreadyThereError: there is one.
            JetStreamAwayError: no answer in time; it may have been stored all the same.
        """
        await self.publish(subject, data, _NONE_BEFORE)

    async def acknowledge(self, reply: str, verb: bytes) -> None:
        """Acknowledge a delivery, and wait until the server has taken it.

        Raises:
            JetStreamAwayError: it does not answer.
        """
        with translated("cannot acknowledge"):
            await self._client.request(reply, verb, timeout=self._timeout_s)

    async def stream_info(self, stream: str) -> StreamInfo:
        """Return what `stream` holds.

        Raises:
            JetStreamAwayError: it does not answer.
        """
        return await self._info(f"$JS.API.STREAM.INFO.{stream}", StreamInfo)

    async def consumer_info(self, stream: str, consumer: str) -> ConsumerInfo:
        """Return how far `consumer` is.

        Raises:
            JetStreamAwayError: it does not answer, or there is no such consumer.
        """
        return await self._info(f"$JS.API.CONSUMER.INFO.{stream}.{consumer}", ConsumerInfo)

    async def consumers(self, stream: str) -> list[str]:
        """Return the names of the consumers of `stream`.

        Raises:
            BusError: JetStream does not answer, or there is no such stream.
        """
        with translated(f"cannot list the consumers of {stream}"):
            return [info.name for info in await self.context.consumers_info(stream)]

    async def next_message(self, stream: str, subject: str, seq: int) -> RawStreamMsg | None:
        """Return the first message on `subject` whose number is at least `seq`; None when there is none.

        Raises:
            JetStreamAwayError: it does not answer.
        """
        with translated(f"cannot read {stream}"):
            try:
                return await self.context.get_msg(stream, seq, subject, next=True)
            except nats.js.errors.NotFoundError:
                return None

    async def delete(self, stream: str, seq: int) -> None:
        """Delete one message of `stream`; no error when it is gone already.

        Raises:
            JetStreamAwayError: it does not answer.
        """
        with translated(f"deleting in {stream}"):
            try:
                await self.context.delete_msg(stream, seq)
            except nats.js.errors.APIError as error:
                log.debug("was deleted before", extra={"stream": stream, "seq": seq, "error": str(error)})

    async def _info(self, subject: str, kind: type[T]) -> T:
        with translated(subject):
            reply = await self._client.request(subject, timeout=self._timeout_s)
        try:
            return msgspec.json.decode(reply.data, type=kind)
        except msgspec.DecodeError:  # an error has none of the fields
            raise JetStreamAwayError(f"{subject}: {reply.data.decode(errors='replace')[:300]}") from None


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise nats-py's errors as ours.

    Raises:
        AlreadyThereError: what should be the first on its subject is not.
        QueueFullError: there is no room.
        JetStreamAwayError: no answer, or nobody to answer.
        BusError: any other refusal.
    """
    try:
        yield
    except nats.js.errors.APIError as error:
        if error.err_code == _OUT_OF_TURN:
            raise AlreadyThereError(f"{what}: there is one already") from error
        if error.err_code in _FULL:
            raise QueueFullError(f"{what}: {error.description}") from error
        if isinstance(error, nats.js.errors.ServiceUnavailableError):
            raise JetStreamAwayError(f"{what}: {error.description}") from error
        raise BusError(f"{what}: {error.description or error}") from error
    except (nats.js.errors.NoStreamResponseError, nats.errors.NoRespondersError) as error:
        raise JetStreamAwayError(f"{what}: JetStream is off, or the stream is gone") from error
    except (nats.errors.TimeoutError, TimeoutError) as error:
        raise JetStreamAwayError(f"{what}: JetStream does not answer in time") from error
    except nats.errors.Error as error:
        raise BusError(f"{what}: {error}") from error
