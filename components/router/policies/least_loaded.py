"""least_loaded: the worker with the fewest requests, wherever the KV is."""

import random
from collections.abc import Sequence

from components.router.cost import Candidate, Prompt
from components.router.policies.policy import Policy, PolicySettings


class LeastLoaded(Policy):
    """Fewest requests, then fewest tokens waiting; equals have equal odds."""

    def __init__(self, settings: PolicySettings, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, prompt: Prompt, candidates: Sequence[Candidate], now_s: float) -> Candidate:
        """Return the least loaded."""
        least = min(map(_busy, candidates))
        return self._rng.choice([candidate for candidate in candidates if _busy(candidate) == least])


def _busy(candidate: Candidate) -> tuple[int, int]:
    return candidate.load.requests, candidate.load.queued_tokens
