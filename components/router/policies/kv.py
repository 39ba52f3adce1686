"""kv: the worker with the lowest predicted cost, by the KV index and the books."""

import random
from collections.abc import Sequence

from components.router.cost import Candidate, Prompt
from components.router.policies.policy import Policy, PolicySettings, cheapest


class Kv(Policy):
    """Lowest cost; with a temperature, a draw that prefers low costs."""

    def __init__(self, settings: PolicySettings, rng: random.Random) -> None:
        self._temperature_s = settings.temperature_s
        self._rng = rng

    def pick(self, prompt: Prompt, candidates: Sequence[Candidate], now_s: float) -> Candidate:
        """Return the cheapest."""
        return cheapest(candidates, self._rng, self._temperature_s)
