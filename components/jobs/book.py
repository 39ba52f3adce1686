"""Who is connected, and who has which job: capacity, leases, fence tokens. Pure; the clock is the caller's.

A job is assigned to one worker at a time. Each assignment has a fence token of its own, signed, so that a queue that was
restarted tells an assignment it once made from a forged one.
"""

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field

ANY = "default"  # jobs of this config go to workers of every config


@dataclass
class Assignment:
    """A job in the hands of a worker.

    Attributes:
        expires_s: when its lease ends, unless it is renewed.
        progress: 0 to 1, as the worker says.
        detail: likewise, for a person.
    """

    job_id: str
    worker_id: str
    fence: str
    expires_s: float
    progress: float | None = None
    detail: str | None = None


@dataclass
class Worker:
    """A connected worker.

    Attributes:
        capacity: jobs it takes at a time.
        running: its assignments, by job.
        paused: it asked for no jobs for the moment.
        draining: it asked for no more jobs.
        silent: it let a lease run out, and has said nothing since; it gets no job until it does.
    """

    id: str
    config_id: str
    capacity: int
    running: dict[str, Assignment] = field(default_factory=dict)
    paused: bool = False
    draining: bool = False
    silent: bool = False

    @property
    def free(self) -> int:
        """How many more jobs it takes now."""
        return 0 if self.paused or self.draining or self.silent else max(0, self.capacity - len(self.running))

    def serves(self, config_id: str) -> bool:
        """Whether it takes jobs of this config."""
        return config_id in {self.config_id, ANY}


class Book:
    """All workers and assignments."""

    def __init__(self, lease_s: float) -> None:
        self.workers: dict[str, Worker] = {}
        self._lease_s = lease_s

    def join(self, worker: Worker) -> None:
        """Take in a worker; one of the same id must have left."""
        self.workers[worker.id] = worker

    def leave(self, worker_id: str) -> list[Assignment]:
        """Forget a worker, and return what it had."""
        worker = self.workers.pop(worker_id, None)
        return list(worker.running.values()) if worker else []

    def serving(self, config_id: str) -> list[Worker]:
        """Return the workers that take jobs of a config, now or later."""
        return [worker for worker in self.workers.values() if worker.serves(config_id) and not worker.draining]

    def free(self, config_id: str) -> int:
        """Return how many jobs of a config could be handed out now."""
        return sum(worker.free for worker in self.workers.values() if worker.serves(config_id))

    def pick(self, config_id: str) -> Worker | None:
        """Return the worker for the next job of a config: the one with the largest share of its capacity free."""
        able = [worker for worker in self.workers.values() if worker.free and worker.serves(config_id)]
        return max(able, key=lambda worker: worker.free / worker.capacity, default=None)

    def assign(self, worker: Worker, job_id: str, fence: str, now_s: float) -> Assignment:
        """Give a job to a worker."""
        assignment = Assignment(job_id, worker.id, fence, now_s + self._lease_s)
        worker.running[job_id] = assignment
        return assignment

    def renew(self, assignment: Assignment, now_s: float) -> None:
        """Let a lease begin anew."""
        assignment.expires_s = now_s + self._lease_s

    def end(self, assignment: Assignment) -> None:
        """Free the slot of an assignment."""
        worker = self.workers.get(assignment.worker_id)
        if worker is not None and worker.running.get(assignment.job_id) is assignment:
            del worker.running[assignment.job_id]

    def expired(self, now_s: float) -> list[Assignment]:
        """Return the assignments whose lease has run out."""
        return [each for each in self.assignments() if each.expires_s <= now_s]

    def assignments(self) -> Iterator[Assignment]:
        """Return all assignments."""
        return (each for worker in self.workers.values() for each in worker.running.values())


class Fences:
    """Makes fence tokens ``NUMBER-ATTEMPT-SIGNATURE`` and knows them again."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, job_id: str, worker_id: str, number: int, attempt: int) -> str:
        """Return the token of an assignment.

        Args:
            job_id: of the job.
            worker_id: who gets it.
            number: the job's in its queue; 0 for a transient one.
            attempt: 1 the first time, and so on.
        """
        return f"{number}-{attempt}-{self._sign(job_id, worker_id, number, attempt)}"

    def read(self, fence: str, job_id: str, worker_id: str) -> tuple[int, int] | None:
        """Return number and attempt of a token that was made for this job and worker; None when it was not."""
        number, _, rest = fence.partition("-")
        attempt, _, signature = rest.partition("-")
        if not (number.isdecimal() and attempt.isdecimal() and len(fence) < 100):
            return None
        expected = self._sign(job_id, worker_id, int(number), int(attempt))
        if not hmac.compare_digest(signature.encode(errors="replace"), expected.encode()):
            return None
        return int(number), int(attempt)

    def _sign(self, job_id: str, worker_id: str, number: int, attempt: int) -> str:
        text = f"{job_id}\n{worker_id}\n{number}\n{attempt}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:24]
