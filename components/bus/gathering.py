"""One question to many: whoever listens answers, and what comes in time is gathered."""

import asyncio
import logging
from typing import TypeVar

from nats.aio.client import Client
from nats.errors import Error as NatsError

from components.bus.answering import Answering

log = logging.getLogger(__name__)

M = TypeVar("M")


async def gather(
    client: Client, answering: Answering, subject: str, data: bytes, kind: type[M], wait_s: float, expected: int
) -> list[M]:
    """Send `data`, and return what comes back; see `Bus.gather`."""
    inbox = client.new_inbox()
    replies: list[M] = []
    subscription = await client.subscribe(inbox)
    try:
        await client.publish(subject, data, reply=inbox)
        async with asyncio.timeout(wait_s):
            while len(replies) < expected:
                reply = await subscription.next_msg(timeout=wait_s)
                if (decoded := answering.decode(reply.data, kind, subject)) is not None:
                    replies.append(decoded)
    except (TimeoutError, NatsError):
        log.debug("gathered what came in time", extra={"subject": subject, "replies": len(replies)})
    finally:
        try:
            await subscription.unsubscribe()
        except NatsError:
            log.debug("unsubscribed while disconnected")
    return replies
