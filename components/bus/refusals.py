"""Messages that are answered only when they are refused: who is to be told of it, and for how long."""

from collections.abc import Callable
from itertools import count

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from components.bus.answering import ERROR_HEADER
from components.wire.errors import ErrorReply, PenstockError, from_reply
from components.wire.messages import decode

Refused = Callable[[Exception], None]

_STATUS = "Status"
_NO_RESPONDERS = "503"


class Refusals:
    """One connection's."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = ""
        self._numbers = count()
        self._waiting: dict[str, Refused] = {}

    async def submit(self, subject: str, data: bytes, refused: Refused) -> Callable[[], None]:
        """Send `data`, and call `refused` with its refusal, if one comes before the returned function is called.

        It gets a `NoRespondersError` or a `PenstockError`, once.
        """
        if not self._inbox:
            inbox = self._client.new_inbox()
            await self._client.subscribe(f"{inbox}.*", cb=self._hear)
            self._inbox = inbox
        reply_to = f"{self._inbox}.{next(self._numbers)}"
        self._waiting[reply_to] = refused
        try:
            await self._client.publish(subject, data, reply=reply_to)
        except BaseException:
            self._forget(reply_to)
            raise
        return lambda: self._forget(reply_to)

    def _forget(self, reply_to: str) -> None:
        self._waiting.pop(reply_to, None)

    async def _hear(self, msg: Msg) -> None:
        if (refused := self._waiting.pop(msg.subject, None)) is not None:
            refused(_refusal(msg))


def _refusal(msg: Msg) -> Exception:
    headers = msg.headers or {}
    if headers.get(_STATUS) == _NO_RESPONDERS:
        return NoRespondersError()
    try:
        return from_reply(decode(msg.data, ErrorReply))
    except msgspec.DecodeError as error:
        return PenstockError(f"an undecodable refusal ({ERROR_HEADER}: {headers.get(ERROR_HEADER)}): {error}")
