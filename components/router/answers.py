"""What becomes of a question and its decision: the time left, the message that answers, the line in the journal. Pure."""

import math

from components.router.cost import Candidate
from components.router.journal import Entry
from components.wire.routing import RouteCandidate, RouteRequest, Trust

_LONGEST_S = 3600.0


def left_s(deadline_unix_s: float, unix_s: float) -> float:
    """Return how long it is until a deadline; one that is no moment in the next hour becomes an hour from now."""
    left_s = deadline_unix_s - unix_s
    return left_s if math.isfinite(left_s) and 0 < left_s < _LONGEST_S else _LONGEST_S


def told(candidate: Candidate, trust: Trust, store: str) -> RouteCandidate:
    """Return a candidate as it travels."""
    load = candidate.load
    return RouteCandidate(
        worker=candidate.worker,
        trust=trust,
        overlap_blocks=candidate.overlap_blocks,
        expected_blocks=candidate.expected_blocks,
        fetch_blocks=candidate.fetch_blocks,
        store=store,
        uncached_tokens=candidate.uncached_tokens,
        requests=load.requests,
        queued_tokens=load.queued_tokens,
        active_tokens=load.active_tokens,
        prefill_s=candidate.prefill_s,
        fetch_s=candidate.fetch_s,
        queue_s=candidate.queue_s,
        decode_s=candidate.decode_s,
        memory_s=candidate.memory_s,
        cost_s=candidate.cost_s,
    )


def entry(
    request: RouteRequest, choice: Candidate, trust: Trust, candidates: int, unix_s: float, decided_us: float
) -> Entry:
    """Return the journal's line on a choice.

    Args:
        request: what was asked.
        choice: the worker, priced.
        trust: in what is known of it.
        candidates: how many there were.
        unix_s: when.
        decided_us: how long the decision took.
    """
    return Entry(
        request_id=request.request_id,
        unix_s=unix_s,
        worker=choice.worker,
        prompt_tokens=request.prompt_tokens,
        overlap_blocks=choice.overlap_blocks,
        expected_blocks=choice.expected_blocks,
        fetch_blocks=choice.fetch_blocks,
        uncached_tokens=choice.uncached_tokens,
        cost_ms=choice.cost_s * 1000,
        candidates=candidates,
        trust=trust.value,
        decided_us=decided_us,
    )
