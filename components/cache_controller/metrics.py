"""The controller's metrics, read when they are asked for. Knows Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from components.cache_controller.holdings import Trust
from components.cache_controller.limits import Counts
from components.cache_controller.lookup import Lookup
from components.cache_controller.roster import Roster
from components.cache_controller.servers import Servers
from components.cache_controller.workers import WorkerReports

_PREFIX = "penstock_cache_controller"
_COUNTED = {
    "registrations": "Workers that came, or came again.",
    "replaced": "Registrations under a name that was taken.",
    "conflicts": "Heartbeats under a name that another living worker has.",
    "refused_registrations": "Registrations refused for want of room.",
    "refused_chunks": "Chunks refused for want of room.",
    "stray_reports": "Reports from workers that are not registered.",
    "malformed": "Messages that are none, or not of a worker.",
    "timeouts": "Workers forgotten because they were silent.",
    "syncs": "Full syncs that were completed.",
}


class Requests:
    """Counts what was answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answered = Counter(f"{_PREFIX}_requests", "HTTP requests answered.", ["route", "status"], registry=registry)

    def answered(self, route: str, status: int) -> None:
        """Count one answer."""
        self._answered.labels(route, str(status)).inc()


class Watched(Collector):
    """What is known, as gauges and counters."""

    def __init__(self, roster: Roster, reports: WorkerReports, lookup: Lookup, servers: Servers, counts: Counts) -> None:
        self._roster = roster
        self._reports = reports
        self._lookup = lookup
        self._servers = servers
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Return the current values."""
        for name, meaning in _COUNTED.items():
            yield CounterMetricFamily(f"{_PREFIX}_{name}", meaning, value=getattr(self._counts, name))
        yield GaugeMetricFamily(f"{_PREFIX}_chunks", "Chunk hashes kept.", value=self._reports.chunks)
        yield self._by_kind()
        yield self._by_trust()
        differing = sum(self._lookup.differs(name) for name in self._roster.instances())
        meaning = "Instances proven to hash otherwise than expected."
        yield GaugeMetricFamily(f"{_PREFIX}_differing_instances", meaning, value=differing)
        up = GaugeMetricFamily(f"{_PREFIX}_coordinator_up", "Whether a coordinator answers.", labels=["url"])
        for url, answers in self._servers.coordinators.items():
            up.add_metric([url], float(answers))
        yield up

    def _by_kind(self) -> Metric:
        family = GaugeMetricFamily(f"{_PREFIX}_workers", "Workers there are.", labels=["kind"])
        kinds = [worker.kind for worker in self._roster.everyone()]
        for kind in sorted(set(kinds)):
            family.add_metric([kind], kinds.count(kind))
        return family

    def _by_trust(self) -> Metric:
        family = GaugeMetricFamily(
            f"{_PREFIX}_worker_trust", "In-process workers, by how exactly they are known.", labels=["trust"]
        )
        trusts = [holdings.trust for workers in self._reports.instances().values() for holdings in workers]
        for trust in Trust:
            family.add_metric([trust], trusts.count(trust))
        return family
