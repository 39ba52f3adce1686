"""round_robin: one worker after the other."""

import random
from collections.abc import Sequence

from components.router.cost import Candidate, Prompt
from components.router.policies.policy import Policy, PolicySettings


class RoundRobin(Policy):
    """The worker whose last turn was longest ago; new ones come first."""

    def __init__(self, settings: PolicySettings, rng: random.Random) -> None:
        self._turns = 0
        self._last_turn: dict[str, int] = {}

    def pick(self, prompt: Prompt, candidates: Sequence[Candidate], now_s: float) -> Candidate:
        """Return whose turn it is."""
        return min(candidates, key=lambda candidate: self._last_turn.get(candidate.worker, 0))

    def chosen(self, prompt: Prompt, worker: str, now_s: float) -> None:
        """That was its turn."""
        self._turns += 1
        self._last_turn[worker] = self._turns

    def forget(self, worker: str) -> None:
        """Drop it from the round."""
        self._last_turn.pop(worker, None)
