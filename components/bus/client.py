"""One process's connection to NATS: typed messages out, typed messages in.

Knows encoding and transport, not what messages mean. What callbacks make of what comes in stands in `answering`; one that
fails for no foreseen reason, and a connection that is closed for good, are the end of the process: see `Bus.failed`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import msgspec
import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from components.bus.answering import ERROR_HEADER, Answering
from components.bus.gathering import gather
from components.bus.options import connection_options
from components.bus.refusals import Refusals
from components.graph.schema import Nats
from components.telemetry.logs import trail
from components.wire.errors import ErrorReply, InvalidRequestError, from_reply
from components.wire.messages import Message, decode, encode

log = logging.getLogger(__name__)

M = TypeVar("M")

_PENDING_BYTES = 64 * 1024 * 1024


class BusError(Exception):
    """NATS cannot be reached, or refused us."""


class NoListenerError(BusError):
    """Nobody listens on the subject of a request."""


class NoReplyError(BusError):
    """Somebody listens, but did not answer in time."""


class TooLongError(BusError):
    """A message is longer than the server takes."""


class Bus:
    """A connection to NATS. Make one with `connect`; close it once.

    Attributes:
        failure: why it is of no use any more: it was closed for good, or a callback has a bug; empty while all is well.
    """

    def __init__(self, client: Client) -> None:
        self.failure = ""
        self._client = client
        self._answering = Answering(client, self._on_exception)
        self._refusals = Refusals(client)
        self._reconnected: list[Callable[[], Awaitable[None]]] = []
        self._failed = asyncio.Event()
        self._open = False

    @classmethod
    async def connect(cls, settings: Nats, name: str, wait_s: float = 10.0) -> "Bus":
        """Connect as `name`, trying for at most `wait_s` seconds; later losses are repaired for ever in the background.

        Raises:
            BusError: no server answers, or it refuses the credentials.
        """
        client = Client()
        bus = cls(client)
        try:
            async with asyncio.timeout(wait_s):
                await bus._connect_until_it_works(settings, name)
        except (TimeoutError, OSError, NatsError) as error:
            reason = str(error) or f"no answer within {wait_s:g} s"
            raise BusError(f"no NATS server at {settings.url}: {reason}") from error
        bus._open = True
        return bus

    async def _connect_until_it_works(self, settings: Nats, name: str) -> None:
        options = connection_options(settings)
        while True:
            try:
                await self._client.connect(
                    servers=settings.url.split(","),
                    name=name,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds; nats-py sleeps for it, a float does
                    ping_interval=5,
                    max_outstanding_pings=2,
                    pending_size=_PENDING_BYTES,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                    closed_cb=self._on_closed,
                    **options,
                )
            except (OSError, nats.errors.NoServersError):
                await asyncio.sleep(0.1)
            else:
                return

    @property
    def client(self) -> Client:
        """The connection itself, for this package only."""
        return self._client

    @property
    def connected(self) -> bool:
        """Whether the server is reachable at this moment."""
        return self._client.is_connected

    @property
    def max_payload_bytes(self) -> int:
        """The longest message the server takes."""
        return self._client.max_payload

    @property
    def undecodable_messages(self) -> int:
        """How many messages came that were none of the expected kind."""
        return self._answering.undecodable_messages

    async def failed(self) -> str:
        """Wait until it is of no use any more, and return why; whoever cannot do without it should end then."""
        await self._failed.wait()
        return self.failure

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call `callback` each time the connection is back; what was published to us meanwhile is lost."""
        self._reconnected.append(callback)

    async def publish(self, subject: str, message: Message) -> None:
        """Send `message` to whoever listens on `subject`; while the server is away it may be lost.

        Raises:
            TooLongError: the message is longer than the server takes.
            BusError: the connection is closed, or its buffer is full.
        """
        data = self.encode(message)
        try:
            await self._client.publish(subject, data)
        except NatsError as error:
            raise BusError(f"cannot publish on {subject}: {error}") from error

    async def request(self, subject: str, message: Message, kind: type[M], timeout_s: float) -> M:
        """Send `message` and return the answer, of type `kind`; where this process answers itself, nothing is sent.

        Raises:
            PenstockError: the other side answered with an error.
            InvalidRequestError: the message is longer than the server takes.
            NoListenerError: nobody listens.
            NoReplyError: no answer within `timeout_s` seconds.
            BusError: the answer is none, or the connection is closed.
        """
        if subject in self._answering.here:
            return cast("M", await self._answering.answer(subject, message))
        data = self._encode_request(message)
        try:
            reply = await self._client.request(subject, data, timeout=timeout_s)
            if reply.headers and ERROR_HEADER in reply.headers:
                raise from_reply(decode(reply.data, ErrorReply))
            return decode(reply.data, kind)
        except NoRespondersError as error:
            raise NoListenerError(f"nobody listens on {subject}") from error
        except (NatsTimeoutError, TimeoutError) as error:
            raise NoReplyError(f"no answer on {subject} within {timeout_s} s") from error
        except msgspec.DecodeError as error:
            raise BusError(f"undecodable answer on {subject}: {error}") from error
        except NatsError as error:
            raise BusError(f"cannot ask on {subject}: {error}") from error

    async def submit(self, subject: str, message: Message, refused: Callable[[Exception], None]) -> Callable[[], None]:
        """Send a request of which only a refusal is answered: `refused` is called then, with what `request` would raise.

        Returns:
            Call it when no refusal is waited for any more.

        Raises:
            InvalidRequestError: the message is longer than the server takes.
            BusError: the connection is closed, or its buffer is full.
        """

        def tell(error: Exception) -> None:
            refused(NoListenerError(f"nobody listens on {subject}") if isinstance(error, NoRespondersError) else error)

        try:
            return await self._refusals.submit(subject, self._encode_request(message), tell)
        except NatsError as error:
            raise BusError(f"cannot ask on {subject}: {error}") from error

    async def gather(self, subject: str, message: Message, kind: type[M], wait_s: float, expected: int) -> list[M]:
        """Send `message` to all who listen, and return the answers that come within `wait_s` seconds.

        Args:
            subject: where to ask.
            message: the question.
            kind: type of an answer; others are counted and left out.
            wait_s: longest wait.
            expected: stop early when so many have answered.
        """
        return await gather(self._client, self._answering, subject, self.encode(message), kind, wait_s, expected)

    async def subscribe(self, subject: str, kind: type[M], callback: Callable[[M], Awaitable[None]]) -> None:
        """Call `callback` for every message of type `kind` on `subject`, one after the other, in order."""
        await self._answering.subscribe(subject, kind, callback)

    async def serve(
        self,
        subject: str,
        kind: type[M],
        answer: Callable[[M], Awaitable[Message | None]],
        queue: str = "",
        *,
        only_refusals: bool = False,
    ) -> None:
        """Answer requests of type `kind` on `subject`; see `Answering.serve`."""
        await self._answering.serve(subject, kind, answer, queue, only_refusals=only_refusals)

    async def offer(
        self, service: str, queue: str, subject: str, kind: type[M], answer: Callable[[M], Awaitable[Message | None]]
    ) -> Callable[[], Awaitable[None]]:
        """As `serve`, and visible to ``nats micro``; see `Answering.offer`."""
        return await self._answering.offer(service, queue, subject, kind, answer)

    async def flush(self) -> None:
        """Wait until the server has everything published and subscribed so far.

        Twice, because the ping of nats-py 2.16 overtakes what its flusher has not written yet; by the pong it has.

        Raises:
            BusError: the server does not answer.
        """
        try:
            await self._client.flush(timeout=2)
            await self._client.flush(timeout=2)
        except (NatsError, TimeoutError) as error:
            raise BusError(f"cannot flush: {error}") from error

    async def close(self) -> None:
        """Send what is pending and disconnect."""
        self._open = False
        if self._client.is_connected:
            try:
                await self._client.flush(timeout=1)
            except (NatsError, TimeoutError):
                log.debug("closing without a flush")
        await self._client.close()

    def encode(self, message: Message) -> bytes:
        """Return the bytes of `message`.

        Raises:
            TooLongError: the message is longer than the server takes.
        """
        data = encode(message)
        if len(data) > self.max_payload_bytes:
            raise TooLongError(f"{len(data)} bytes on the wire, of which the NATS server takes {self.max_payload_bytes}")
        return data

    def _encode_request(self, message: Message) -> bytes:
        try:
            return self.encode(message)
        except TooLongError as error:
            raise InvalidRequestError(f"the request is too long: {error}") from None

    async def _on_error(self, error: Exception) -> None:
        log.warning("NATS reports an error", extra={"error": str(error) or type(error).__name__})

    async def _on_disconnected(self) -> None:
        if not self._client.is_closed:
            log.warning("NATS is away; reconnecting")

    async def _on_reconnected(self) -> None:
        log.info("NATS is back")
        for callback in self._reconnected:
            await self._answering.call(callback)

    async def _on_closed(self) -> None:
        if self._open:
            self._fail(f"NATS closed the connection for good: {self._client.last_error or 'it does not say why'}")

    def _on_exception(self, error: Exception) -> None:
        """Tell apart a callback that could not send just now from one with a bug."""
        if isinstance(error, BusError):
            log.warning("cannot send what a message asked for", extra={"error": str(error)})
        else:
            self._fail(f"a bug in a callback: {trail(error)}")

    def _fail(self, reason: str) -> None:
        log.error("the bus failed", extra={"reason": reason})
        self.failure = self.failure or reason
        self._failed.set()
