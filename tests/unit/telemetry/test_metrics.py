"""Metrics of several processes on one page, readable by Prometheus' own parser."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from components.telemetry.metrics import collect, render
from components.wire.messages import decode, encode
from components.wire.process import MetricsReply


def test_families_are_merged_and_labelled() -> None:
    """One TYPE line a family, one sample a process, values and labels kept over the wire."""
    replies = []
    for index in range(2):
        registry = CollectorRegistry()
        Counter("asked", "Questions.", ["how"], registry=registry).labels("kindly").inc(index + 1)
        Histogram("took_seconds", "Time.", buckets=(0.1, 1.0), registry=registry).observe(0.5)
        reply = MetricsReply(f"decode-{index}", collect(registry))
        replies.append(decode(encode(reply), MetricsReply))
    text = render(replies).decode()
    assert text.count("# TYPE asked_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {(s.labels["process"], s.labels["how"]): s.value for s in families["asked"].samples if s.name == "asked_total"}
    assert samples == {("decode-0", "kindly"): 1.0, ("decode-1", "kindly"): 2.0}
    assert families["took_seconds"].type == "histogram"
    assert sum(s.value for s in families["took_seconds"].samples if s.name == "took_seconds_count") == 2
