"""What a policy is: one method, `pick`. The others have defaults, for policies that remember nothing.

To add one: a file beside this with a class like those here, and a line in `POLICIES` (`components.router.policies`).
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from components.router.cost import Candidate, Prompt

_EQUAL = 1e-9


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Every policy's settings.

    Attributes:
        temperature_s: kv and approximate: 0 takes the cheapest worker; else the odds of one that costs this much more are
            1 / e. Spreads the load of replicas that do not know one another's choices yet.
        ttl_s: approximate: how long a prompt counts as cached where it went.
        max_blocks: approximate: most blocks it remembers.
        session_ttl_s: how long an idle session keeps its worker; 0 turns affinity off.
        session_patience_s: a session moves when its worker costs this much more than the policy's choice.
    """

    temperature_s: float = 0.0
    ttl_s: float = 120.0
    max_blocks: int = 4_000_000
    session_ttl_s: float = 0.0
    session_patience_s: float = 0.5


class Policy(Protocol):
    """Chooses one worker for one prompt. Pure: no clock, no I/O, random numbers only from the generator it was given."""

    def pick(self, prompt: Prompt, candidates: Sequence[Candidate], now_s: float) -> Candidate:
        """Return one of `candidates`, of which there is at least one.

        Args:
            prompt: the request.
            candidates: every worker that may take it, priced, in a stable order.
            now_s: monotonic time.
        """
        ...

    def overlap(self, prompt: Prompt, indexed: Mapping[str, int], now_s: float) -> Mapping[str, int]:
        """Return how many leading blocks each worker is believed to hold.

        Args:
            prompt: the request.
            indexed: what the KV index says; a policy without events returns something else.
            now_s: monotonic time.
        """
        return indexed

    def chosen(self, prompt: Prompt, worker: str, now_s: float) -> None:
        """Hear that `prompt` goes to `worker`; not called for a dry run."""
        return

    def forget(self, worker: str) -> None:
        """Hear that `worker` is gone, or is another process now."""
        return


def cheapest(candidates: Sequence[Candidate], rng: random.Random, temperature_s: float = 0.0) -> Candidate:
    """Return the candidate with the lowest cost; equals have equal odds.

    Args:
        candidates: at least one.
        rng: where chance comes from.
        temperature_s: above 0, draw with odds exp(-cost / temperature) instead (a softmax).
    """
    lowest_s = min([candidate.cost_s for candidate in candidates])
    if temperature_s > 0:
        odds = [math.exp((lowest_s - candidate.cost_s) / temperature_s) for candidate in candidates]
        return rng.choices(candidates, odds)[0]
    limit_s = lowest_s * (1 + _EQUAL)
    equals = [candidate for candidate in candidates if candidate.cost_s <= limit_s]
    return equals[0] if len(equals) == 1 else rng.choice(equals)
