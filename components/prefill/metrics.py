"""What a prefill worker counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """One prefill worker's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"penstock_prefill_{name}_seconds", text, buckets=_SECONDS, registry=registry)

        self.jobs = Counter(
            "penstock_prefill_jobs", "Jobs this worker has ended, by outcome.", ["outcome"], registry=registry
        )
        self.tokens = Counter("penstock_prefill_tokens", "Prompt tokens of jobs done.", registry=registry)
        self.under_way = Gauge("penstock_prefill_tokens_under_way", "Prompt tokens of jobs taken.", registry=registry)
        self.queued_s = histogram("queued", "From a job's put until it was taken.")
        self.prefill_s = histogram("compute", "Computing a job.")
        self.store_s = histogram("store", "From a job's end until other engines could load its KV.")
