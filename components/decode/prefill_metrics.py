"""What a decode worker counts of remote prefills."""

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """One decode worker's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"penstock_remote_prefill_{name}_seconds", text, buckets=_SECONDS, registry=registry)

        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(f"penstock_{name}", text, [label], registry=registry)

        self.placed = counter("placements", "Long prompts by the reason why they were prefilled where they were.", "reason")
        self.outcomes = counter("remote_prefills", "Prefill jobs put, by how they ended for this worker.", "outcome")
        self.put_s = histogram("put", "From a request's receipt until its job was in the queue: lookups, placement, put.")
        self.remote_s = histogram("whole", "From a request's receipt until its KV could be loaded.")
        self.load_s = histogram("load", "From then until the first token here: loading the KV, and computing the rest.")
        self.overhead_s = histogram("overhead", "The same without the computing: lookups, put, queue, store, notice.")
