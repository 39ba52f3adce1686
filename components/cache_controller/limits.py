"""How much the controller keeps, and how long it waits; and what it had to refuse."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds.

    Attributes:
        workers: most workers.
        chunks: most chunk hashes.
        worker_timeout_s: silent for half of it, a worker is asked for its health; silent for all of it, it is forgotten.
        request_timeout_s: a call to a worker or a server ends by then.
    """

    workers: int
    chunks: int
    worker_timeout_s: float
    request_timeout_s: float


@dataclass
class Counts:
    """What happened since the start, for metrics.

    Attributes:
        registrations: workers that came, or came again.
        replaced: registrations under a name that was taken.
        conflicts: heartbeats under a name that another living worker has.
        refused_registrations: for want of room.
        refused_chunks: for want of room.
        stray_reports: from workers that are not registered.
        malformed: what came and is no message.
        timeouts: workers forgotten because they were silent.
        syncs: full syncs that were completed.
    """

    registrations: int = 0
    replaced: int = 0
    conflicts: int = 0
    refused_registrations: int = 0
    refused_chunks: int = 0
    stray_reports: int = 0
    malformed: int = 0
    timeouts: int = 0
    syncs: int = 0
