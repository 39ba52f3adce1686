"""The simulated engine's metrics, under the names vLLM gives its own."""

from collections import Counter

from components.engine.sim_scheduler import SimScheduler
from components.wire.messages import FinishReason
from components.wire.process import MetricFamily, MetricSample, WorkerLoad


class SimMetrics:
    """Metrics of one simulated engine; labels as vLLM's."""

    def __init__(self, model_name: str) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self._finished: Counter[FinishReason] = Counter()

    def count_finished(self, reason: FinishReason) -> None:
        """Count an answer that ended well."""
        self._finished[reason] += 1

    def families(self, scheduler: SimScheduler, load: WorkerLoad) -> list[MetricFamily]:
        """Return all metrics as they are now."""
        totals = scheduler.totals
        return [
            self._gauge("vllm:num_requests_running", "Requests being computed.", load.running_requests),
            self._gauge("vllm:num_requests_waiting", "Requests waiting to be computed.", load.waiting_requests),
            self._gauge("vllm:kv_cache_usage_perc", "KV blocks in use, 0 to 1.", load.kv_usage),
            self._counter("vllm:prompt_tokens", "Prompt tokens processed.", totals.prompt),
            self._counter("vllm:generation_tokens", "Tokens generated.", totals.output),
            self._counter("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.", totals.cache_queries),
            self._counter("vllm:prefix_cache_hits", "Tokens found in the prefix cache.", totals.cache_hits),
            self._counter(
                "vllm:external_prefix_cache_queries", "Tokens looked up in the shared cache.", totals.shared_queries
            ),
            self._counter("vllm:external_prefix_cache_hits", "Tokens loaded from the shared cache.", totals.shared_hits),
            self._counter("vllm:num_preemptions", "Requests preempted for want of KV.", totals.preempted_sequences),
            self._finished_requests(),
        ]

    def _gauge(self, name: str, text: str, value: float) -> MetricFamily:
        return MetricFamily(name, "gauge", text, [MetricSample(name, self._labels, value)])

    def _counter(self, name: str, text: str, value: float) -> MetricFamily:
        return MetricFamily(name, "counter", text, [MetricSample(f"{name}_total", self._labels, value)])

    def _finished_requests(self) -> MetricFamily:
        name = "vllm:request_success"
        samples = [
            MetricSample(f"{name}_total", {**self._labels, "finished_reason": reason.value}, self._finished[reason])
            for reason in (FinishReason.STOP, FinishReason.LENGTH)
        ]
        return MetricFamily(name, "counter", "Requests that ended well.", samples)
