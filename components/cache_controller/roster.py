"""Who is there: instances of LMCache and their workers, and when each was last heard of. No I/O and no clock."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple


class WorkerKey(NamedTuple):
    """Names a worker.

    Attributes:
        instance_id: the instance it belongs to; for a multi-process server the server's.
        worker_id: its rank in the instance; for an engine at a multi-process server a number that stays while it is there.
    """

    instance_id: str
    worker_id: int


class Instant(NamedTuple):
    """A moment on both clocks.

    Attributes:
        unix_s: for people; may jump.
        monotonic_s: for durations.
    """

    unix_s: float
    monotonic_s: float


class Kind(StrEnum):
    """What an instance is."""

    WORKER = "worker"  # LMCache inside the engine; asked over ZeroMQ
    SERVER = "server"  # an engine at a multi-process server; the server is asked over HTTP


@dataclass(frozen=True)
class Worker:
    """One worker.

    Attributes:
        key: its name.
        kind: what it is.
        ip: where it is asked.
        port: likewise.
        peer_init_url: where other workers fetch KV from it; None without peer-to-peer transfers.
        registered: when it came.
        seen: when it last gave a sign of life.
        beats: whether it has ever sent a heartbeat of its own.
    """

    key: WorkerKey
    kind: Kind
    ip: str
    port: int
    peer_init_url: str | None
    registered: Instant
    seen: Instant
    beats: bool = False

    def at_same_place(self, other: "Worker") -> bool:
        """Whether both are reached at the same address."""
        return (self.ip, self.port) == (other.ip, other.port)


class Roster:
    """The workers, by instance."""

    def __init__(self) -> None:
        self._instances: dict[str, dict[int, Worker]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, worker: Worker) -> None:
        """Add `worker`, or replace the one of its name."""
        workers = self._instances.setdefault(worker.key.instance_id, {})
        self._count += worker.key.worker_id not in workers
        workers[worker.key.worker_id] = worker

    def remove(self, key: WorkerKey) -> None:
        """Forget a worker, if it is there; an instance goes with its last one."""
        workers = self._instances.get(key.instance_id, {})
        if workers.pop(key.worker_id, None) is not None:
            self._count -= 1
            if not workers:
                del self._instances[key.instance_id]

    def find(self, key: WorkerKey) -> Worker | None:
        """Return a worker."""
        return self._instances.get(key.instance_id, {}).get(key.worker_id)

    def seen(self, key: WorkerKey, at: Instant, *, beat: bool) -> None:
        """Take note of a sign of life; `beat` when it was a heartbeat and not an answer of it."""
        if worker := self.find(key):
            self._instances[key.instance_id][key.worker_id] = replace(worker, seen=at, beats=worker.beats or beat)

    def instance(self, instance_id: str) -> list[Worker]:
        """Return the workers of an instance by rank; none when it is unknown."""
        workers = self._instances.get(instance_id, {})
        return [workers[worker_id] for worker_id in sorted(workers)]

    def instances(self) -> list[str]:
        """Return the names of all instances."""
        return sorted(self._instances)

    def everyone(self) -> list[Worker]:
        """Return all workers, by instance and rank."""
        return [worker for instance_id in self.instances() for worker in self.instance(instance_id)]

    def instance_at(self, ip: str) -> str | None:
        """Return an instance that has a worker at `ip`: the one that came last."""
        there = [worker for workers in self._instances.values() for worker in workers.values() if worker.ip == ip]
        return max(there, key=lambda worker: worker.registered.monotonic_s).key.instance_id if there else None

    def silent(self, kind: Kind, at: Instant, for_s: float) -> list[Worker]:
        """Return the workers of a kind that gave no sign of life for `for_s` seconds."""
        latest = at.monotonic_s - for_s
        return [worker for worker in self.everyone() if worker.kind is kind and worker.seen.monotonic_s <= latest]
