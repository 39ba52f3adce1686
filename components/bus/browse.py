"""Looking at the jobs of a work queue without taking them: by id, in order, counted."""

import contextlib
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from components.bus.jetstream import JetStream
from components.wire.messages import Message, decode
from components.wire.subjects import Subjects, stream_name

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Stored(Generic[M]):
    """A job in the queue, waiting or under way, and its number there."""

    message: M
    number: int


class Browse(Generic[M]):
    """The unfinished jobs of all lanes of one queue."""

    def __init__(self, jetstream: JetStream, subjects: Subjects, queue: str, kind: type[M]) -> None:
        self._jetstream = jetstream
        self._subjects = subjects
        self._queue = queue
        self._kind = kind
        self._stream = stream_name(subjects.queue(queue))

    async def find(self, job_id: str) -> Stored[M] | None:
        """Return a job of any lane that is not done yet; None when there is none of this id.

        Raises:
            BusError: JetStream does not answer.
        """
        found = await self._next(self._subjects.job(self._queue, job_id), 1)
        return found[0] if found else None

    async def count(self) -> int:
        """Return how many jobs of all lanes are not done.

        Raises:
            BusError: JetStream does not answer.
        """
        return (await self._jetstream.stream_info(self._stream)).state.messages

    async def oldest(self, most: int) -> list[Stored[M]]:
        """Return up to `most` jobs of all lanes that are not done, oldest first; what cannot be decoded is left out.

        Raises:
            BusError: JetStream does not answer.
        """
        return await self._next(self._subjects.queue(self._queue), most)

    async def remove(self, number: int) -> None:
        """Take a job off the queue, whoever has it.

        Raises:
            BusError: JetStream does not answer.
        """
        await self._jetstream.delete(self._stream, number)

    async def _next(self, subject: str, most: int) -> list[Stored[M]]:
        found: list[Stored[M]] = []
        seq = 1
        while len(found) < most and (raw := await self._jetstream.next_message(self._stream, subject, seq)):
            seq = (raw.seq or 0) + 1
            with contextlib.suppress(msgspec.DecodeError):
                found.append(Stored(decode(raw.data or b"", self._kind), raw.seq or 0))
        return found
