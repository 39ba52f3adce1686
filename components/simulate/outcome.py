"""What came of a simulation: times of every request as they happened, and the figures people compare."""

from array import array
from collections.abc import Sequence

import msgspec


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one fleet gave one trace.

    Attributes:
        requests: finished; all of them do.
        prompt_tokens: of all requests.
        output_tokens: said.
        reuse_ratio: share of prompt tokens that decode workers found in their own or the shared cache.
        expected_reuse_ratio: share of prompt tokens that the router expected to be reused.
        ttft_mean_ms: time to first token, from the request's arrival on.
        ttft_p50_ms: see above.
        ttft_p90_ms: see above.
        ttft_p99_ms: see above.
        tpot_mean_ms: time per further token; of each request with more than one, its mean.
        tpot_p99_ms: see above.
        e2e_mean_ms: from the arrival to the last token.
        e2e_p50_ms: see above.
        e2e_p99_ms: see above.
        output_tokens_per_s: said, in the time from the first arrival to the last token.
        within_slo_ratio: share of requests whose TTFT and TPOT were as good as asked for; None when nothing was.
        busy_ratio: share of the time that decode workers computed.
        remote_prefills: prompts that prefill workers computed.
        preempted: how often a request lost its KV memory to another.
        span_s: from the first arrival to the last token.
        wall_s: how long the simulation took; the only figure that differs from run to run.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    reuse_ratio: float
    expected_reuse_ratio: float
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p99_ms: float
    tpot_mean_ms: float
    tpot_p99_ms: float
    e2e_mean_ms: float
    e2e_p50_ms: float
    e2e_p99_ms: float
    output_tokens_per_s: float
    within_slo_ratio: float | None
    busy_ratio: float
    remote_prefills: int
    preempted: int
    span_s: float
    wall_s: float


class Slo(msgspec.Struct, frozen=True):
    """What a request must not exceed to count as served well; None: no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    @property
    def asked(self) -> bool:
        """Whether there is any limit."""
        return self.ttft_ms is not None or self.tpot_ms is not None


class Outcome:
    """What has happened so far; times in seconds, requests in order of their ends.

    Attributes:
        ttft_s: of each request.
        e2e_s: of each request.
        outputs: tokens said to each.
        prompt_tokens: of all requests.
        cached_tokens: of these, reused by the engines.
        expected_tokens: of these, that the router expected to be reused.
        remote_prefills: prompts that prefill workers computed.
        preempted: how often a request lost its KV memory to another.
        busy_s: that decode workers computed, all together.
        workers: how many of them there are.
        span_s: from the first arrival to the last token.
        wall_s: how long the simulation took.
    """

    def __init__(self) -> None:
        self.ttft_s = array("d")
        self.e2e_s = array("d")
        self.outputs = array("q")
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.expected_tokens = 0
        self.remote_prefills = 0
        self.preempted = 0
        self.busy_s = 0.0
        self.workers = 0
        self.span_s = 0.0
        self.wall_s = 0.0

    def ended(self, ttft_s: float, e2e_s: float, output_tokens: int) -> None:
        """Note a request's end."""
        self.ttft_s.append(ttft_s)
        self.e2e_s.append(e2e_s)
        self.outputs.append(output_tokens)

    def figures(self, slo: Slo | None = None) -> Figures:
        """Return what people compare; at least one request must have ended."""
        times = list(zip(self.ttft_s, self.e2e_s, self.outputs, strict=True))
        tpot_s = [(e2e_s - ttft_s) / (tokens - 1) for ttft_s, e2e_s, tokens in times if tokens > 1] or [0.0]
        span_s = max(self.span_s, 1e-9)  # engines may take no time
        ttft, tpot, e2e = _sorted_ms(self.ttft_s), _sorted_ms(tpot_s), _sorted_ms(self.e2e_s)
        return Figures(
            requests=len(times),
            prompt_tokens=self.prompt_tokens,
            output_tokens=sum(self.outputs),
            reuse_ratio=self.cached_tokens / self.prompt_tokens,
            expected_reuse_ratio=self.expected_tokens / self.prompt_tokens,
            ttft_mean_ms=_mean(ttft),
            ttft_p50_ms=_quantile(ttft, 0.5),
            ttft_p90_ms=_quantile(ttft, 0.9),
            ttft_p99_ms=_quantile(ttft, 0.99),
            tpot_mean_ms=_mean(tpot),
            tpot_p99_ms=_quantile(tpot, 0.99),
            e2e_mean_ms=_mean(e2e),
            e2e_p50_ms=_quantile(e2e, 0.5),
            e2e_p99_ms=_quantile(e2e, 0.99),
            output_tokens_per_s=sum(self.outputs) / span_s,
            within_slo_ratio=self._within(slo, times) if slo is not None and slo.asked else None,
            busy_ratio=self.busy_s / (self.workers * span_s),
            remote_prefills=self.remote_prefills,
            preempted=self.preempted,
            span_s=self.span_s,
            wall_s=self.wall_s,
        )

    def _within(self, slo: Slo, times: Sequence[tuple[float, float, int]]) -> float:
        ttft_s = float("inf") if slo.ttft_ms is None else slo.ttft_ms / 1000
        tpot_s = float("inf") if slo.tpot_ms is None else slo.tpot_ms / 1000
        good = sum(first <= ttft_s and whole - first <= tpot_s * (tokens - 1) for first, whole, tokens in times)
        return good / len(times)


def _sorted_ms(seconds: Sequence[float]) -> list[float]:
    return sorted(each * 1000 for each in seconds)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
