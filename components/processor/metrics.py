"""What the HTTP edge counts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from components.processor.fleet import Fleet
from components.processor.sequence import Sequence
from components.processor.streams import Streams
from components.wire.errors import OverloadedError

_LATENCY_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


@dataclass
class Clock:
    """When a request came, and when its first token went out, in seconds."""

    received_s: float
    first_s: float | None = None


class Metrics:
    """The counters of one processor; they live in its registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "penstock_http_requests", "HTTP requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self._inflight = Gauge("penstock_http_inflight_requests", "Generations in progress.", registry=registry)
        self._ttft = Histogram(
            "penstock_time_to_first_token_seconds",
            "From receipt to the first token sent.",
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._token = Histogram(
            "penstock_time_per_output_token_seconds",
            "Mean, a request, after the first.",
            buckets=_TOKEN_S,
            registry=registry,
        )
        self._duration = Histogram(
            "penstock_request_duration_seconds", "From receipt to the end.", buckets=_LATENCY_S, registry=registry
        )
        self._prompt = Counter("penstock_prompt_tokens", "Prompt tokens of finished requests.", registry=registry)
        self._cached = Counter("penstock_cached_prompt_tokens", "Of these, taken from a KV cache.", registry=registry)
        self._output = Counter("penstock_output_tokens", "Tokens generated for finished requests.", registry=registry)
        self._replays = Counter("penstock_replays", "Sequences moved to another worker.", registry=registry)
        self.inflight = 0

    def answered(self, route: str, status: int) -> None:
        """Count one HTTP answer."""
        self._requests.labels(route, str(status)).inc()

    @contextmanager
    def admit(self, most: int, received_s: float) -> Iterator[Clock]:
        """Count one generation in progress.

        Raises:
            OverloadedError: there are `most` already.
        """
        if self.inflight >= most:
            raise OverloadedError(f"{most} requests are in progress; try again later", retry_after_s=1.0)
        self.inflight += 1
        self._inflight.set(self.inflight)
        clock = Clock(received_s)
        try:
            yield clock
        finally:
            self.inflight -= 1
            self._inflight.set(self.inflight)
            self._duration.observe(time.monotonic() - received_s)

    def first_token(self, clock: Clock) -> None:
        """Note that the first token is on its way to the client."""
        if clock.first_s is None:
            clock.first_s = time.monotonic()
            self._ttft.observe(clock.first_s - clock.received_s)

    def moved(self, replays: int) -> None:
        """Count sequences that were moved to another worker."""
        self._replays.inc(replays)

    def finished(self, clock: Clock, sequences: list[Sequence], choices: int) -> None:
        """Count the tokens of one finished request."""
        output = sum(len(sequence.token_ids) for sequence in sequences)
        self._prompt.inc(sum(len(sequence.prompt.token_ids) for sequence in sequences[::choices]))
        self._cached.inc(sum(sequence.cached_tokens or 0 for sequence in sequences[::choices]))
        self._output.inc(output)
        longest = max(len(sequence.token_ids) for sequence in sequences)
        if clock.first_s is not None and longest > 1:
            self._token.observe((time.monotonic() - clock.first_s) / (longest - 1))


class Watched(Collector):
    """Figures that are read when somebody asks for them."""

    def __init__(self, fleet: Fleet, streams: Streams) -> None:
        self._fleet = fleet
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        """Return the figures as they are now."""
        yield GaugeMetricFamily("penstock_workers_ready", "Workers that take requests.", value=len(self._fleet.ready()))
        yield GaugeMetricFamily("penstock_open_attempts", "Sequences at workers.", value=len(self._streams))
        yield GaugeMetricFamily("penstock_token_batch_gaps", "Token batches missed so far.", value=self._streams.gaps)
