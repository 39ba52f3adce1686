"""random: any worker, with equal odds; called so in graphs, but as a file it would hide the standard library's."""

import random
from collections.abc import Sequence

from components.router.cost import Candidate, Prompt
from components.router.policies.policy import Policy, PolicySettings


class Uniform(Policy):
    """Any worker."""

    def __init__(self, settings: PolicySettings, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, prompt: Prompt, candidates: Sequence[Candidate], now_s: float) -> Candidate:
        """Return any."""
        return self._rng.choice(candidates)
