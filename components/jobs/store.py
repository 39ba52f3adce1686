"""Where jobs lie: unfinished ones in a work queue, finished ones as records, long payloads and results as objects.

A job is in the queue until its record is written, so it is always found in one of the two; look at records first.
"""

import secrets
from dataclasses import dataclass

from components.bus.browse import Stored
from components.bus.client import Bus
from components.bus.records import Keeping, Objects, Records
from components.bus.work_queue import QueueLimits, WorkQueue
from components.graph.schema import JobsSettings
from components.jobs.book import ANY, Fences
from components.jobs.frames import MAX_INLINE_BYTES
from components.wire.jobs import FenceKey, Job, JobRecord
from components.wire.subjects import Subjects

_QUEUE = "jobs"
_FOR_EVER_S = 0.0


@dataclass(frozen=True)
class Store:
    """The jobs of one graph.

    Attributes:
        queue: unfinished jobs; lanes are config ids.
        records: finished jobs, by id.
        objects: what is too long for either.
        fences: sign and check fence tokens, with the key of this graph.
        limits: of the queue, for opening its lanes.
    """

    bus: Bus
    subjects: Subjects
    queue: WorkQueue[Job]
    records: Records[JobRecord]
    objects: Objects
    fences: Fences
    limits: QueueLimits

    @classmethod
    async def open(cls, bus: Bus, subjects: Subjects, settings: JobsSettings) -> "Store":
        """Open what there is, and make what is missing.

        Raises:
            BusError: JetStream is away, or refuses.
        """
        limits = QueueLimits(
            lease_s=settings.lease_s,
            max_deliver=settings.max_attempts,
            max_jobs=settings.max_jobs,
            max_bytes=settings.max_queue_bytes,
            dead_max_age_s=settings.keep_s,
        )
        keeping = Keeping(settings.keep_s, settings.max_kept_bytes)
        keys = await Records.open(bus, subjects, "fencekey", FenceKey, Keeping(_FOR_EVER_S, 1024 * 1024))
        await keys.create("key", FenceKey(secrets.token_bytes(32)))
        key = await keys.get("key")
        return cls(
            bus,
            subjects,
            await WorkQueue.open(bus, subjects, _QUEUE, Job, limits, lane=ANY),
            await Records.open(bus, subjects, _QUEUE, JobRecord, keeping),
            await Objects.open(bus, subjects, "joblong", keeping),
            Fences(key.key if key else secrets.token_bytes(32)),
            limits,
        )

    async def lane(self, config_id: str) -> WorkQueue[Job]:
        """Return a queue that takes the jobs of a config."""
        return await WorkQueue.open(self.bus, self.subjects, _QUEUE, Job, self.limits, lane=config_id)

    async def submit(self, job_id: str, config_id: str, created_unix_s: float, payload: bytes) -> Job | None:
        """Store a job durably and return it; None when one of this id was submitted a moment ago.

        Raises:
            QueueFullError: there is no room.
            BusError: JetStream is away; it may be stored all the same.
        """
        name = None
        if len(payload) > MAX_INLINE_BYTES:
            name = f"payload-{job_id}-{secrets.token_hex(4)}"
            await self.objects.put(name, payload)
            payload = b""
        job = Job(job_id, config_id, created_unix_s, payload, name)
        return job if await self.queue.put(job, job_id, config_id) else None

    async def unfinished(self, job_id: str) -> Stored[Job] | None:
        """Return a job that is not finished, from any lane.

        Raises:
            BusError: JetStream is away.
        """
        return await self.queue.browse.find(job_id)

    async def payload(self, job: Job) -> bytes:
        """Return a job's payload, as it was submitted; nothing when it is kept no longer.

        Raises:
            BusError: JetStream is away.
        """
        return (await self.objects.get(job.payload_object) or b"") if job.payload_object else job.payload

    async def result(self, record: JobRecord) -> bytes:
        """Return a finished job's result; nothing when it has none, or it is kept no longer.

        Raises:
            BusError: JetStream is away.
        """
        return (await self.objects.get(record.result_object) or b"") if record.result_object else record.result

    async def keep_result(self, name: str, result: bytes) -> tuple[bytes, str | None]:
        """Return what of a result goes into its record, and the name of the object that holds it otherwise.

        Raises:
            BusError: JetStream is away.
        """
        if len(result) <= MAX_INLINE_BYTES:
            return result, None
        await self.objects.put(name, result)
        return b"", name
