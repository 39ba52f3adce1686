"""What a job queue counts."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from components.jobs.book import Book
from components.jobs.held import Held
from components.wire.jobs import JobStatus

if TYPE_CHECKING:
    from components.jobs.dispatch import Dispatch

_WAIT_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600)


class Metrics:
    """Jobs in, jobs out, and what went wrong between; in the process's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.submitted = Counter("penstock_jobs_submitted", "Jobs taken in.", ["mode"], registry=registry)
        self._finished = Counter("penstock_jobs_finished", "Jobs recorded as finished.", ["status"], registry=registry)
        self.taken_back = Counter(
            "penstock_jobs_taken_back", "Assignments that ended without an outcome.", registry=registry
        )
        self.expired = Counter("penstock_jobs_expired", "Leases that ran out.", registry=registry)
        self.refused = Counter(
            "penstock_jobs_refused_frames", "Results and errors with a stale fence token.", registry=registry
        )
        self._wait = Histogram(
            "penstock_jobs_wait_seconds",
            "From a job's submission to its first assignment.",
            buckets=_WAIT_S,
            registry=registry,
        )

    def assigned(self, held: Held) -> None:
        """Count an assignment."""
        if held.attempts == 1:
            self._wait.observe(max(0.0, time.time() - held.job.created_unix_s))

    def finished(self, status: JobStatus) -> None:
        """Count an outcome."""
        self._finished.labels(status.value).inc()


class Watched(Collector):
    """Figures that are read when somebody asks for them."""

    def __init__(self, dispatch: "Dispatch") -> None:
        self._dispatch = dispatch

    def collect(self) -> Iterator[Metric]:
        """Return the figures as they are now."""
        book: Book = self._dispatch.book
        workers = book.workers.values()
        for name, value, text in (
            ("workers", len(workers), "Connected job workers."),
            ("capacity", sum(worker.capacity for worker in workers), "Jobs they take at a time."),
            ("running", sum(len(worker.running) for worker in workers), "Jobs with a worker."),
            ("held", len(self._dispatch.held), "Jobs in this process: waiting, with a worker, or being recorded."),
        ):
            yield GaugeMetricFamily(f"penstock_jobs_{name}", text, value=value)
