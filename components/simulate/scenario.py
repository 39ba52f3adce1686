"""What is simulated: one fleet, and the table of fleets that a question asks for. Pure data."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from components.graph.schema import Disagg, RouterSettings


class ScenarioError(Exception):
    """A fleet cannot be simulated; the text says why in one line."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet. Its defaults are an 8B model on H200s, and production's own.

    Attributes:
        workers: decode workers, one engine each.
        prefill_workers: one engine each; 0 has decode workers prefill.
        policy: how the router chooses decode workers.
        timing: the engines' timing table.
        speed: engines are so many times as fast as the table says.
        block_size: tokens a KV block.
        kv_blocks: of each engine.
        max_running_requests: of each engine.
        max_batched_tokens: of each engine, in a step.
        lmcache_gb: memory of an LMCache server that all engines share, in GiB; 0: none.
        lmcache_chunk_tokens: its unit.
        delay_s: from what happens on a worker until the router, or another worker, knows of it.
        router: the router's settings, but for the policy.
        disagg: when a prompt is prefilled elsewhere.
        seed: of all chance.
    """

    workers: int = 8
    prefill_workers: int = 0
    policy: str = "kv"
    timing: str = "h200-8b-graphs"
    speed: float = 1.0
    block_size: int = 64
    kv_blocks: int = 16_384
    max_running_requests: int = 256
    max_batched_tokens: int = 8192
    lmcache_gb: float = 0.0
    lmcache_chunk_tokens: int = 256
    delay_s: float = 0.001
    router: RouterSettings = RouterSettings()
    disagg: Disagg = Disagg()
    seed: int = 0


def grid(base: Scenario, dimensions: Mapping[str, Sequence[Any]]) -> list[Scenario]:
    """Return a scenario for each combination of values, the last dimension changing fastest.

    Args:
        base: has all other values.
        dimensions: field → its values.
    """
    combinations = itertools.product(*dimensions.values())
    return [msgspec.structs.replace(base, **dict(zip(dimensions, values, strict=True))) for values in combinations]
