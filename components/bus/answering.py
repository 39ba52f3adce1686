"""What comes in over the bus: decoded, handed to a callback, answered.

What cannot be decoded is counted and dropped. An exception that a callback did not foresee costs nobody
else's message: the asker gets an internal error, and `on_exception` hears of it. A process that asks what it
answers itself needs no bus for that (`here`).
"""

import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import msgspec
import nats.micro
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.micro.request import Request
from nats.micro.service import ServiceConfig

from components.telemetry.logs import trail
from components.wire.errors import ErrorReply, InvalidRequestError, PenstockError
from components.wire.messages import Message, decode, encode

log = logging.getLogger(__name__)

M = TypeVar("M")

ERROR_HEADER = "Penstock-Error"
_FROM_SOURCES = "0.0.0"  # what NATS is told where penstock is on the path, and not installed


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return _FROM_SOURCES


class _Reply(msgspec.Struct, frozen=True):
    """A reply as NATS takes it.

    Attributes:
        data: the payload; empty when there is nothing to say.
        headers: of an error.
    """

    data: bytes
    headers: dict[str, str] | None = None


class Answering:
    """One connection's callbacks.

    Attributes:
        undecodable_messages: how many came so far.
        here: what this process offers, by subject.
    """

    def __init__(self, client: Client, on_exception: Callable[[Exception], None]) -> None:
        self.undecodable_messages = 0
        self.here: dict[str, Callable[[Any], Awaitable[Message | None]]] = {}
        self._client = client
        self._on_exception = on_exception

    def decode(self, data: bytes, kind: type[M], subject: str) -> M | None:
        """Return the message in `data`, None when it holds none of this kind."""
        try:
            return decode(data, kind)
        except msgspec.DecodeError as error:
            self.undecodable_messages += 1
            log.warning("dropped an undecodable message", extra={"subject": subject, "error": str(error)})
            return None

    async def subscribe(self, subject: str, kind: type[M], callback: Callable[[M], Awaitable[None]]) -> None:
        """Call `callback` for every message of type `kind` on `subject`, one after the other, in order."""

        async def deliver(msg: Msg) -> None:
            message = self.decode(msg.data, kind, msg.subject)
            if message is not None:
                await self.call(lambda: callback(message))

        await self._client.subscribe(subject, cb=deliver, pending_msgs_limit=-1, pending_bytes_limit=-1)

    async def serve(
        self,
        subject: str,
        kind: type[M],
        answer: Callable[[M], Awaitable[Message | None]],
        queue: str = "",
        *,
        only_refusals: bool = False,
    ) -> None:
        """Answer requests of type `kind` on `subject`; a `PenstockError` from `answer` becomes the reply.

        Requests are taken one after the other, so `answer` must not wait for anything slow.

        Args:
            subject: where to listen.
            kind: of the requests.
            answer: makes the reply.
            queue: of all that serve the subject under this name, one gets each request.
            only_refusals: what `answer` returns is not sent; see `Bus.submit`.
        """

        async def deliver(msg: Msg) -> None:
            reply = await self._answer(msg.data, kind, answer)
            try:
                if msg.reply and (reply.headers or not only_refusals):
                    await self._client.publish(msg.reply, reply.data, headers=reply.headers)
            except NatsError as error:
                log.warning("lost an answer", extra={"subject": subject, "error": str(error)})

        await self._client.subscribe(subject, queue=queue, cb=deliver, pending_msgs_limit=-1, pending_bytes_limit=-1)

    async def offer(
        self, service: str, queue: str, subject: str, kind: type[M], answer: Callable[[M], Awaitable[Message | None]]
    ) -> Callable[[], Awaitable[None]]:
        """As `serve`, and visible to ``nats micro``: it answers discovery, and counts requests and time.

        This process's own requests on `subject` go to `answer` as they are, uncounted, and wait as long as it takes.

        Args:
            service: its name there.
            queue: of all that serve the subject under this name, one gets each request.
            subject: where to listen.
            kind: of the requests.
            answer: makes the reply.

        Returns:
            Call it to take no more requests.
        """

        async def handle(request: Request) -> None:
            reply = await self._answer(request.data, kind, answer)
            try:
                await request.respond(reply.data, reply.headers)
            except ValueError:
                log.debug("a request wants no reply", extra={"subject": subject})
            except NatsError as error:
                log.warning("lost an answer", extra={"subject": subject, "error": str(error)})

        config = ServiceConfig(service, _version(), queue_group=queue, metadata={"subject": subject})
        offered = await nats.micro.add_service(self._client, config)
        await offered.add_endpoint(name=subject.rpartition(".")[2], subject=subject, handler=handle)
        self.here[subject] = answer

        async def stop() -> None:
            del self.here[subject]
            await offered.stop()

        return stop

    async def answer(self, subject: str, message: Message) -> Message | None:
        """Return the answer to this process's own request on a subject in `here`.

        Raises:
            PenstockError: as a reply would tell it.
        """
        return await _safely(self.here[subject], message)

    async def call(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call `callback`."""
        try:
            await callback()
        except Exception as error:  # noqa: BLE001 nats-py would swallow it
            self._on_exception(error)

    async def _answer(self, data: bytes, kind: type[M], answer: Callable[[M], Awaitable[Message | None]]) -> _Reply:
        """Return the reply to a request, which is an error if the request, its answer or `answer` is at fault."""
        try:
            message = decode(data, kind)
        except msgspec.DecodeError as error:
            self.undecodable_messages += 1
            return _refusal(InvalidRequestError(f"undecodable {getattr(kind, '__name__', kind)}: {error}"))
        try:
            reply = await _safely(answer, message)
        except PenstockError as error:
            return _refusal(error)
        payload = b"" if reply is None else encode(reply)
        if len(payload) > (most := self._client.max_payload):
            return _refusal(PenstockError(f"the answer takes {len(payload)} bytes; the NATS server takes {most}"))
        return _Reply(payload)


async def _safely(answer: Callable[[M], Awaitable[Message | None]], message: M) -> Message | None:
    """Return what `answer` makes of `message`.

    Raises:
        PenstockError: it refuses, or it failed for no foreseen reason.
    """
    try:
        return await answer(message)
    except PenstockError:
        raise
    except Exception as error:  # one request's failure, not the process's
        log.error("a request failed", extra={"kind": type(message).__name__, "error": trail(error)})  # noqa: TRY400
        raise PenstockError("the server failed to answer; its log says why") from error


def _refusal(error: PenstockError) -> _Reply:
    reply: ErrorReply = error.reply()
    return _Reply(encode(reply), {ERROR_HEADER: reply.code.value})
