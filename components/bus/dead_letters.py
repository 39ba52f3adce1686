"""Jobs that were given up: kept in a stream of their own, listed, put back, dropped. One job has one dead letter at most."""

import time
from typing import Any

import msgspec
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from components.bus.client import BusError
from components.bus.delivery import Delivery
from components.bus.jetstream import MSG_ID, JetStream
from components.wire.messages import decode, encode
from components.wire.queueing import DeadLetter
from components.wire.subjects import Subjects, stream_name

JOB = "Penstock-Job"


class DeadLetters:
    """The dead letters of one queue."""

    def __init__(self, jetstream: JetStream, subjects: Subjects, queue: str) -> None:
        self._jetstream = jetstream
        self._subjects = subjects
        self._queue = queue
        self._stream = stream_name(subjects.every_dead_letter(queue))

    async def keep(self, max_age_s: float, max_letters: int) -> None:
        """Make the stream that holds them, for `max_age_s` seconds; over `max_letters` the oldest go.

        Raises:
            BusError: JetStream is away, or refuses.
        """
        config = StreamConfig(
            name=self._stream,
            subjects=[self._subjects.every_dead_letter(self._queue)],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_msgs=max_letters,
            max_msgs_per_subject=1,
            max_age=max_age_s,
        )
        await self._jetstream.keep_stream(config)

    async def bury(self, delivery: Delivery[Any], lane: str, reason: str) -> None:
        """Write the dead letter of a job; a second one for the same job takes the place of the first.

        Raises:
            BusError: JetStream is away.
        """
        letter = DeadLetter(
            delivery.id, lane, reason, delivery.delivery, delivery.put_unix_s, time.time(), bytes(delivery.data)
        )
        once = f"{delivery.number}-{delivery.delivery}"
        subject = self._subjects.dead_letter(self._queue, delivery.id)
        await self._jetstream.publish(subject, encode(letter), {MSG_ID: once})

    async def list(self, most: int = 100) -> list[DeadLetter]:
        """Return up to `most` dead letters, oldest first.

        Raises:
            BusError: JetStream is away.
        """
        subject, seq = self._subjects.every_dead_letter(self._queue), 1
        letters: list[DeadLetter] = []
        while len(letters) < most and (raw := await self._jetstream.next_message(self._stream, subject, seq)):
            letters.append(decode(raw.data or b"", DeadLetter))
            seq = (raw.seq or 0) + 1
        return letters

    async def count(self) -> int:
        """Return how many there are.

        Raises:
            JetStreamAwayError: it does not answer.
        """
        info = await self._jetstream.stream_info(self._stream)
        return info.state.messages

    async def drop(self, job_id: str) -> bool:
        """Delete a dead letter; returns False when there is none of this job.

        Raises:
            BusError: JetStream is away.
        """
        if (found := await self._find(job_id)) is None:
            return False
        await self._jetstream.delete(self._stream, found[0])
        return True

    async def redrive(self, job_id: str) -> bool:
        """Put a job back into its queue, as new; returns False when it has no dead letter.

        Raises:
            QueueFullError: there is no room for it.
            BusError: JetStream is away.
        """
        if (found := await self._find(job_id)) is None:
            return False
        seq, letter = found
        subject = self._subjects.queued(self._queue, letter.lane, letter.id)
        again = f"{letter.id} again {seq}"  # the queue still remembers the id itself; a repeated redrive puts it once
        await self._jetstream.publish(subject, letter.data, {MSG_ID: again, JOB: letter.id})
        await self._jetstream.delete(self._stream, seq)
        return True

    async def _find(self, job_id: str) -> tuple[int, DeadLetter] | None:
        raw = await self._jetstream.next_message(self._stream, self._subjects.dead_letter(self._queue, job_id), 1)
        if raw is None or raw.seq is None:
            return None
        try:
            return raw.seq, decode(raw.data or b"", DeadLetter)
        except msgspec.DecodeError as error:
            raise BusError(f"the dead letter of {job_id} cannot be read: {error}") from error
