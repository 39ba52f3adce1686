"""A chooser as the graph's settings want it; the router process has one, and so has a simulation of it."""

import random

from components.graph.schema import RouterSettings
from components.router.chooser import Chooser
from components.router.cost import CostSettings
from components.router.policies import make_policy
from components.router.policies.policy import PolicySettings


def make_chooser(settings: RouterSettings, block_size: int, rng: random.Random) -> Chooser:
    """Return a chooser that knows nobody yet.

    Args:
        settings: the graph's.
        block_size: tokens a block.
        rng: where the policy's chance comes from.
    """
    policy_settings = PolicySettings(
        temperature_s=settings.temperature_s, ttl_s=settings.approximate_ttl_s, session_ttl_s=settings.session_ttl_s
    )
    costs = CostSettings(occupancy_weight=settings.occupancy_weight, decode_weight=settings.decode_weight)
    policy = make_policy(settings.policy, policy_settings, rng)
    return Chooser(policy, block_size, costs, settings.max_index_pairs)
