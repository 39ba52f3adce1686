"""Prometheus metrics of many processes on one page.

Each process keeps its own `prometheus_client` registry; `collect` turns it into messages, `render` merges the messages
of all processes into one exposition in which every sample carries the label ``process``.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from components.wire.process import MetricFamily, MetricSample, MetricsReply

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def collect(registry: CollectorRegistry) -> list[MetricFamily]:
    """Return every metric family in `registry`."""
    return [
        MetricFamily(
            name=family.name,
            type=family.type,
            help=family.documentation,
            samples=[MetricSample(sample.name, dict(sample.labels), sample.value) for sample in family.samples],
        )
        for family in registry.collect()
    ]


def samples(reply: MetricsReply, name: str) -> Iterator[MetricSample]:
    """Yield one process's samples of the metric `name`, of a histogram or summary all that belong to it."""
    parts = {name, f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return (sample for family in reply.families for sample in family.samples if sample.name in parts)


def render(replies: Iterable[MetricsReply]) -> bytes:
    """Return the metrics of several processes in Prometheus' text format, each sample labelled with its ``process``."""
    registry = CollectorRegistry()
    registry.register(_Merged(replies))
    return generate_latest(registry)


class _Merged(Collector):
    """The union of several processes' families; a family's type and help come from the first that names it."""

    def __init__(self, replies: Iterable[MetricsReply]) -> None:
        self._metrics: dict[str, Metric] = {}
        for reply in replies:
            for family in reply.families:
                metric = self._metrics.setdefault(family.name, Metric(family.name, family.help, family.type))
                for sample in family.samples:
                    metric.add_sample(sample.name, {"process": reply.process, **sample.labels}, sample.value)

    def collect(self) -> Iterable[Metric]:
        """Return the merged families."""
        return self._metrics.values()
