"""Statistics of answers. Pure."""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One streamed answer.

    Attributes:
        kind: which sort of request it was.
        due_s: when it was to be sent, in seconds since the run's beginning.
        moments_s: when each piece of text came, in seconds since then.
        end_s: when the stream ended, likewise.
        prompt_tokens: as the server counted.
        output_tokens: likewise.
        policy: who chose the worker, as the server says.
        error: why there is no answer.
    """

    kind: str
    due_s: float
    moments_s: list[float] = []
    end_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    policy: str = ""
    error: str = ""

    @property
    def ttft_s(self) -> float:
        """Seconds until the first text."""
        return self.moments_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between pieces of text; one piece may hold several tokens."""
        return [after - before for before, after in itertools.pairwise(self.moments_s)]

    @property
    def tpot_s(self) -> float:
        """Mean seconds an output token after the first (TPOT)."""
        return (self.moments_s[-1] - self.moments_s[0]) / max(self.output_tokens - 1, 1)


class Goal(msgspec.Struct, frozen=True):
    """What counts as well served.

    Attributes:
        ttft_s: longest time to the first token.
        tpot_s: longest mean time for each further token.
    """

    ttft_s: float
    tpot_s: float

    def met(self, answer: Answer) -> bool:
        """Return whether `answer` came in time."""
        return answer.ttft_s <= self.ttft_s and answer.tpot_s <= self.tpot_s


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` (0 to 1) of them do not exceed; 0 for none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def summary(answers: Sequence[Answer], goal: Goal) -> dict[str, Any]:
    """Return what a run shows, times in ms; the run lasts until the last stream's end."""
    good = [answer for answer in answers if not answer.error and answer.moments_s]
    span_s = max((answer.due_s + answer.end_s for answer in good), default=0.0)
    policies = {answer.policy for answer in good if answer.policy}
    found: dict[str, Any] = {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "errors": sorted({answer.error for answer in answers if answer.error})[:5],
        "span_s": round(span_s, 2),
    }
    if policies:
        found["chosen_by"] = {policy: sum(answer.policy == policy for answer in good) for policy in sorted(policies)}
    if not good:
        return found
    ttft = [answer.ttft_s * 1e3 for answer in good]
    gaps = [gap * 1e3 for answer in good for gap in answer.gaps_s]
    tpot = [answer.tpot_s * 1e3 for answer in good if answer.output_tokens > 1]
    return found | {
        "prompt_tokens": sum(answer.prompt_tokens for answer in good),
        "ttft_ms": _three(ttft),
        "itl_ms": _three(gaps),
        "tpot_ms": _three(tpot),
        "longest_pause_ms": round(max(gaps, default=0.0), 2),
        "output_tokens_per_s": round(sum(answer.output_tokens for answer in good) / span_s, 1),
        "requests_per_s": round(len(good) / span_s, 2),
        "goodput_per_s": round(sum(goal.met(answer) for answer in good) / span_s, 2),
        "goal_met": round(sum(goal.met(answer) for answer in good) / len(answers), 3),
    }


def by_kind(answers: Sequence[Answer], goal: Goal) -> dict[str, Any]:
    """Return a summary of all answers, and one of each kind."""
    kinds = sorted({answer.kind for answer in answers})
    each = {kind: summary([answer for answer in answers if answer.kind == kind], goal) for kind in kinds}
    return {"all": summary(answers, goal), **each}


def raw(answers: Sequence[Answer]) -> list[Any]:
    """Return the answers in few bytes: kind, due, TTFT, end in ms, tokens in and out, and the three longest gaps in ms."""
    return [
        [a.kind, *(round(v * 1e3) for v in (a.due_s, a.ttft_s, a.end_s)), a.prompt_tokens, a.output_tokens,
         [round(gap * 1e3, 1) for gap in sorted(a.gaps_s)[-3:]]]
        for a in answers
        if a.moments_s
    ]  # fmt: skip


def hit_rate(before: dict[str, float], after: dict[str, float]) -> float | None:
    """Return which share of the tokens looked up between two readings of vLLM's counters was in the prefix cache."""
    asked = after["queries"] - before["queries"]
    return round((after["hits"] - before["hits"]) / asked, 4) if asked else None


def _three(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "mean": round(statistics.fmean(values), 2),
        "p50": round(statistics.median(values), 2),
        "p99": round(percentile(values, 0.99), 2),
    }
