"""The policies by name. A new one is a file here and a line in `POLICIES`."""

import random
from collections.abc import Callable

from components.router.policies.approximate import Approximate
from components.router.policies.kv import Kv
from components.router.policies.least_loaded import LeastLoaded
from components.router.policies.policy import Policy, PolicySettings
from components.router.policies.round_robin import RoundRobin
from components.router.policies.session import Sessions
from components.router.policies.uniform import Uniform

POLICIES: dict[str, Callable[[PolicySettings, random.Random], Policy]] = {
    "kv": Kv,
    "approximate": Approximate,
    "round_robin": RoundRobin,
    "random": Uniform,
    "least_loaded": LeastLoaded,
}


def make_policy(name: str, settings: PolicySettings, rng: random.Random) -> Policy:
    """Return the policy called `name`, with session affinity around it if the settings ask for it.

    Raises:
        ValueError: there is no such policy; the text lists those there are.
    """
    make = POLICIES.get(name)
    if make is None:
        raise ValueError(f"no policy is called {name!r}; there are {', '.join(POLICIES)}")
    policy = make(settings, rng)
    return Sessions(policy, settings) if settings.session_ttl_s > 0 else policy
