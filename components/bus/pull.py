"""Pulling messages from a JetStream consumer: none waits longer than it must, none is kept by a taker that wants no more.

nats-py's own ``fetch`` of several messages waits for all of them once the queue was empty, and a pull lost with its server
costs it the whole timeout.
"""

import asyncio
import contextlib
import time
from typing import NamedTuple

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

_STATUS = "Status"
_GONE = frozenset({"409", "503"})  # the consumer was deleted or its server stops; nobody has such a consumer
_SLACK_S = 0.5  # the server says when a pull has expired; one that fell silent is given up so much later
_LINGER_S = 30.0


class Arrived(NamedTuple):
    """A message of the consumer's or the server's word about a pull, and when it came, on the monotonic clock."""

    msg: Msg
    at_s: float


class PullBroken(Exception):  # noqa: N818 no error: the taker asks anew
    """The pull came to nothing: the consumer is gone, or the connection was."""


class Pull:
    """One taker's pulls from one consumer. Only one task may take at a time."""

    def __init__(self, client: Client, stream: str, consumer: str) -> None:
        self._client = client
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = client.new_inbox()
        self._arrived: asyncio.Queue[Arrived | None] = asyncio.Queue()
        self._subscription: Subscription | None = None
        self._number = 0

    async def close(self) -> None:
        """Take no more; what came and was not taken goes to others when its lease ends."""
        if self._subscription is not None:
            with contextlib.suppress(NatsError):
                await self._subscription.unsubscribe()
            self._subscription = None

    def interrupt(self) -> None:
        """End a waiting pull: the server has forgotten it."""
        self._arrived.put_nowait(None)

    async def some(self, most: int, wait_s: float, freshness_s: float) -> list[Arrived]:
        """Return up to `most` messages: those that are there, or else the first one that comes within `wait_s` seconds.

        Args:
            most: at least 1.
            wait_s: longest wait; 0 or less only looks.
            freshness_s: messages that came longer ago, to a call that was cancelled, are left out: their lease is over.

        Raises:
            PullBroken: ask again, after a look at the consumer.
        """
        if self._subscription is None:
            self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._hear)
        found = self._left_over(most, freshness_s)
        if not found and (most > 1 or wait_s <= 0):
            found = await self._pull({"batch": most, "no_wait": True}, most, 0.0)
        if not found and wait_s > 0:
            linger_s = min(wait_s, _LINGER_S)
            found = await self._pull({"batch": 1, "expires": max(1, int(linger_s * 1e9))}, 1, linger_s)
        return found

    async def _hear(self, msg: Msg) -> None:
        self._arrived.put_nowait(Arrived(msg, time.monotonic()))

    def _left_over(self, most: int, freshness_s: float) -> list[Arrived]:
        found: list[Arrived] = []
        while len(found) < most and not self._arrived.empty():
            arrived = self._arrived.get_nowait()
            if arrived is not None and arrived.msg.reply and time.monotonic() - arrived.at_s < freshness_s:
                found.append(arrived)
        return found

    async def _pull(self, request: dict[str, int | bool], most: int, wait_s: float) -> list[Arrived]:
        """Ask, and return what comes until the server says that this is all."""
        self._number += 1
        inbox = f"{self._inbox}.{self._number}"
        found: list[Arrived] = []
        try:
            await self._client.publish(self._subject, msgspec.json.encode(request), inbox)
            async with asyncio.timeout(wait_s + _SLACK_S):
                while len(found) < most and (arrived := await self._arrived.get()) is not None:
                    if arrived.msg.reply:
                        found.append(arrived)
                    elif arrived.msg.subject == inbox:
                        if (arrived.msg.headers or {}).get(_STATUS) in _GONE and not found:
                            raise PullBroken(str(arrived.msg.headers))
                        return found
        except asyncio.CancelledError:
            for arrived in found:
                self._arrived.put_nowait(arrived)
            raise
        except (TimeoutError, NatsError) as error:
            if not found:
                raise PullBroken(str(error) or "no answer") from None
        return found
