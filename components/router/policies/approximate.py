"""approximate: as kv, but without events: a prompt counts as cached where it went, for `ttl_s`."""

import random
from collections.abc import Mapping, Sequence

from components.router.cost import Candidate, Prompt
from components.router.policies.policy import Policy, PolicySettings, cheapest
from components.router.recent import RecentChoices


class Approximate(Policy):
    """Lowest cost by its own memory of its choices."""

    def __init__(self, settings: PolicySettings, rng: random.Random) -> None:
        self._temperature_s = settings.temperature_s
        self._rng = rng
        self._memory = RecentChoices(settings.ttl_s, settings.max_blocks)

    def pick(self, prompt: Prompt, candidates: Sequence[Candidate], now_s: float) -> Candidate:
        """Return the cheapest."""
        return cheapest(candidates, self._rng, self._temperature_s)

    def overlap(self, prompt: Prompt, indexed: Mapping[str, int], now_s: float) -> Mapping[str, int]:
        """Return what it remembers, whatever the index says."""
        return self._memory.overlap(prompt.blocks, now_s)

    def chosen(self, prompt: Prompt, worker: str, now_s: float) -> None:
        """Remember."""
        self._memory.note(worker, prompt.blocks, now_s)

    def forget(self, worker: str) -> None:
        """Forget."""
        self._memory.forget(worker)
