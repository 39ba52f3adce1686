"""What a router counts."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from components.bus.client import Bus
from components.router.chooser import Chooser
from components.router.feed import Feed
from components.router.journal import Entry
from components.wire.routing import Trust

_DECISION_S = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 0.1)


class Metrics:
    """Decisions, and how they turned out; in the process's registry."""

    def __init__(self, registry: CollectorRegistry, policy: str, block_size: int) -> None:
        """Count for one policy."""
        self._block_size = block_size
        decisions = Counter("penstock_router_decisions", "Requests routed.", ["policy"], registry=registry)
        self._decisions = decisions.labels(policy)
        self._refused = Counter("penstock_router_no_worker", "Requests without a worker to choose.", registry=registry)
        seconds = Histogram(
            "penstock_router_decision_seconds",
            "Time a decision took: looking blocks up, pricing workers, picking and booking one.",
            ["phase"],
            buckets=_DECISION_S,
            registry=registry,
        )
        self.lookup_s = seconds.labels("lookup")
        self.price_s = seconds.labels("price")
        self.pick_s = seconds.labels("pick")
        self._prompt = Counter(
            "penstock_router_prompt_tokens", "Of routed requests whose engine told what it reused.", registry=registry
        )
        self._predicted = Counter(
            "penstock_router_predicted_cached_tokens", "Of these, predicted to be reused on the device.", registry=registry
        )
        self._actual = Counter("penstock_router_actual_cached_tokens", "Of these, reused.", registry=registry)
        self._over = Counter(
            "penstock_router_overpredicted_requests", "Requests whose engine reused less than predicted.", registry=registry
        )

    def decided(self) -> None:
        """Count a decision."""
        self._decisions.inc()

    def refused(self) -> None:
        """Count a request for which there was no worker."""
        self._refused.inc()

    def reused(self, entry: Entry, cached_tokens: int) -> None:
        """Count what an engine reused, beside what was predicted."""
        predicted_tokens = entry.overlap_blocks * self._block_size
        self._prompt.inc(entry.prompt_tokens)
        self._predicted.inc(predicted_tokens)
        self._actual.inc(cached_tokens)
        if cached_tokens < predicted_tokens:
            self._over.inc()


class Watched(Collector):
    """Figures that are read when somebody asks for them."""

    def __init__(self, chooser: Chooser, feed: Feed, bus: Bus) -> None:
        self._chooser = chooser
        self._feed = feed
        self._bus = bus

    def collect(self) -> Iterator[Metric]:
        """Return the figures as they are now."""
        yield from self._index()
        yield from self._events()
        yield from self._workers()

    def _index(self) -> Iterator[Metric]:
        tiers = {"device": self._chooser.device, "host": self._chooser.host, "shared": self._chooser.shared}
        stats = {tier: index.stats() for tier, index in tiers.items()}
        for name, field, text in (
            ("blocks", "blocks", "Distinct blocks in the KV index."),
            ("pairs", "pairs", "Pairs of block and holder in the KV index."),
            ("bytes", "size_bytes", "Memory the KV index takes."),
            ("refused_blocks", "refused_blocks", "Blocks not taken because the KV index was full."),
        ):
            gauge = GaugeMetricFamily(f"penstock_router_index_{name}", text, labels=["tier"])
            for tier, each in stats.items():
                gauge.add_metric([tier], getattr(each, field))
            yield gauge

    def _events(self) -> Iterator[Metric]:
        counts = self._feed.counts
        for name, value, text in (
            ("batches", counts.batches, "KV event batches taken into the index."),
            ("stored_blocks", counts.stored_blocks, "Blocks told as stored, by events and snapshots."),
            ("removed_blocks", counts.removed_blocks, "Blocks told as removed."),
            ("gaps", counts.gaps, "Lost KV event batches noticed."),
            ("restarts", counts.restarts, "Workers that came back as another process."),
            ("snapshots", counts.snapshots, "Snapshots of a worker's KV taken in."),
            ("lost_snapshots", counts.lost_snapshots, "Snapshots given up, because a part was lost or late."),
            ("ignored", counts.ignored, "KV messages of strangers, late or repeated ones."),
            ("undecodable", self._bus.undecodable_messages, "Messages of any kind that could not be decoded."),
        ):
            yield CounterMetricFamily(f"penstock_router_events_{name}", text, value=value)

    def _workers(self) -> Iterator[Metric]:
        fleet = self._chooser.fleet
        blocks = self._chooser.device.workers()
        trust = GaugeMetricFamily(
            "penstock_router_trust", "1 for the trust in a worker's KV events.", labels=["worker", "trust"]
        )
        held = GaugeMetricFamily("penstock_router_worker_blocks", "Blocks indexed.", labels=["worker"])
        requests = GaugeMetricFamily("penstock_router_worker_requests", "Requests on it.", labels=["worker"])
        queued = GaugeMetricFamily(
            "penstock_router_worker_queued_tokens", "Uncached tokens waiting for their prefill.", labels=["worker"]
        )
        active = GaugeMetricFamily("penstock_router_worker_active_tokens", "Context on it.", labels=["worker"])
        for worker in fleet.workers():
            load, now = fleet.load(worker), self._feed.trust(worker)
            for value in Trust:
                trust.add_metric([worker, value.value], float(value is now))
            held.add_metric([worker], blocks.get(worker, 0))
            requests.add_metric([worker], load.requests)
            queued.add_metric([worker], load.queued_tokens)
            active.add_metric([worker], load.active_tokens)
        yield from (trust, held, requests, queued, active)
