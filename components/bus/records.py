"""What shall be found again by its key: a JetStream key-value bucket of typed messages, and an object store for long bytes.

The bucket is laid out as NATS's own, so `nats kv` reads it. When it is full, or a record is too old, the oldest go.
"""

import logging
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import nats.js.errors
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.object_store import ObjectStore

from components.bus.client import Bus, BusError
from components.bus.jetstream import AlreadyThereError, JetStream, translated
from components.wire.messages import Message, decode
from components.wire.subjects import Subjects, token

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Keeping:
    """How long records are kept.

    Attributes:
        max_age_s: older ones go.
        max_bytes: when there is more, the oldest go.
    """

    max_age_s: float
    max_bytes: int


class Records(Generic[M]):
    """Messages of one kind by key. A record is written once; only `delete` makes room for another under the same key."""

    def __init__(self, bus: Bus, subjects: Subjects, name: str, kind: type[M], keeping: Keeping, timeout_s: float) -> None:
        self._bus = bus
        self._kind = kind
        bucket = subjects.bucket(name)
        self._stream, self._prefix = f"KV_{bucket}", f"$KV.{bucket}."
        self._keeping = keeping
        self._jetstream = JetStream(bus, timeout_s)

    @classmethod
    async def open(
        cls, bus: Bus, subjects: Subjects, name: str, kind: type[M], keeping: Keeping, timeout_s: float = 5.0
    ) -> "Records[M]":
        """Open the records `name`, making their bucket when it does not exist.

        Raises:
            BusError: JetStream is away, or refuses.
        """
        records = cls(bus, subjects, name, kind, keeping, timeout_s)
        await records._keep()
        bus.on_reconnect(records._keep)
        return records

    async def create(self, key: str, message: M) -> bool:
        """Store `message`; returns False, and changes nothing, when there is a record under this key.

        Raises:
            TooLongError: it is longer than the server takes.
            BusError: JetStream is away; it may be stored all the same.
        """
        try:
            await self._jetstream.publish_first(self._prefix + token(key), self._bus.encode(message))
        except AlreadyThereError:
            return False
        return True

    async def get(self, key: str) -> M | None:
        """Return the record under `key`; None when there is none.

        Raises:
            BusError: JetStream is away, or the record is none of ours.
        """
        raw = await self._jetstream.next_message(self._stream, self._prefix + token(key), 1)
        if raw is None:
            return None
        try:
            return decode(raw.data or b"", self._kind)
        except msgspec.DecodeError as error:
            raise BusError(f"the record of {key} cannot be read: {error}") from error

    async def newest(self, most: int) -> list[M]:
        """Return up to `most` of the latest records, newest first; others' are left out.

        Raises:
            BusError: JetStream is away.
        """
        last = (await self._jetstream.stream_info(self._stream)).state.last_seq
        found: list[M] = []
        seq = max(1, last - most + 1)
        while len(found) < most and (raw := await self._jetstream.next_message(self._stream, self._prefix + "*", seq)):
            seq = (raw.seq or 0) + 1
            try:
                found.append(decode(raw.data or b"", self._kind))
            except msgspec.DecodeError:
                log.warning("a record cannot be read", extra={"stream": self._stream, "seq": raw.seq})
        return found[::-1]

    async def delete(self, key: str) -> bool:
        """Delete the record under `key`; returns False when there is none.

        Raises:
            BusError: JetStream is away.
        """
        raw = await self._jetstream.next_message(self._stream, self._prefix + token(key), 1)
        if raw is None or raw.seq is None:
            return False
        await self._jetstream.delete(self._stream, raw.seq)
        return True

    async def _keep(self) -> None:
        config = StreamConfig(
            name=self._stream,
            subjects=[self._prefix + ">"],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_msgs_per_subject=1,
            max_age=self._keeping.max_age_s,
            max_bytes=self._keeping.max_bytes,
            allow_direct=True,
            allow_rollup_hdrs=True,
        )
        await self._jetstream.keep_stream(config)


class Objects:
    """Bytes of any length by name, cut into pieces that NATS takes."""

    def __init__(self, bus: Bus, subjects: Subjects, name: str, keeping: Keeping, timeout_s: float) -> None:
        self._jetstream = JetStream(bus, timeout_s)
        self._bucket = subjects.bucket(name)
        self._keeping = keeping

    @classmethod
    async def open(cls, bus: Bus, subjects: Subjects, name: str, keeping: Keeping, timeout_s: float = 10.0) -> "Objects":
        """Open the objects `name`, making their store when it does not exist.

        Raises:
            BusError: JetStream is away, or refuses.
        """
        objects = cls(bus, subjects, name, keeping, timeout_s)
        await objects._keep()
        bus.on_reconnect(objects._keep)
        return objects

    async def put(self, name: str, data: bytes) -> None:
        """Store `data` under `name`, in the place of what was there.

        Raises:
            BusError: JetStream is away, or has no room.
        """
        with translated(f"cannot store object {name}"):
            await (await self._store()).put(name, data)

    async def get(self, name: str) -> bytes | None:
        """Return what is stored under `name`; None when there is nothing.

        Raises:
            BusError: JetStream is away.
        """
        with translated(f"cannot read object {name}"):
            try:
                found = await (await self._store()).get(name)
            except nats.js.errors.NotFoundError:
                return None
        return found.data

    async def has(self, name: str) -> bool:
        """Return whether something is stored under `name`.

        Raises:
            BusError: JetStream is away.
        """
        with translated(f"cannot look for object {name}"):
            try:
                await (await self._store()).get_info(name)
            except nats.js.errors.NotFoundError:
                return False
        return True

    async def delete(self, name: str) -> None:
        """Delete what is stored under `name`; no error when there is nothing.

        Raises:
            BusError: JetStream is away.
        """
        with translated(f"cannot delete object {name}"):
            try:
                await (await self._store()).delete(name)
            except nats.js.errors.NotFoundError:
                return

    async def _store(self) -> ObjectStore:
        return await self._jetstream.context.object_store(self._bucket)

    async def _keep(self) -> None:
        with translated(f"object store {self._bucket}"):
            try:
                await self._jetstream.context.create_object_store(
                    self._bucket, ttl=self._keeping.max_age_s, max_bytes=self._keeping.max_bytes
                )
            except nats.js.errors.BadRequestError:
                log.warning("the object store exists with other limits, and keeps them", extra={"bucket": self._bucket})
