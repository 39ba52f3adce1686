"""What is simulated: one fleet, and the table of fleets that a question asks for. Pure data."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from components.graph.schema import Disagg, RouterSettings
from components.router.policies import POLICIES


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


def grid(base: Scenario, dimensions: Mapping[str, Sequence[str]]) -> list[Scenario]:
    """Return a scenario for each combination of values, the last dimension changing fastest.

    Args:
        base: has all other values.
        dimensions: field → its values as text, such as ``{"workers": ["8", "6+2"], "router.decode_weight": ["0.2"]}``. Of
            `workers`, 6+2 means six decode workers and two prefill workers.

    Raises:
        ScenarioError: there is no such field, or a value is none of its values.
    """
    fleets = []
    for combination in itertools.product(*dimensions.values()):
        raw = msgspec.to_builtins(base)
        for path, text in zip(dimensions, combination, strict=True):
            _set(raw, path, text.strip())
        fleets.append(_scenario(raw))
    return fleets


def _scenario(raw: dict[str, Any]) -> Scenario:
    try:
        scenario = msgspec.convert(raw, Scenario, strict=False)
    except msgspec.ValidationError as error:
        raise ScenarioError(str(error)) from error
    if scenario.policy not in POLICIES:
        raise ScenarioError(f"policy: there is no {scenario.policy!r}; there are {', '.join(POLICIES)}")
    for field in ("speed", "block_size", "kv_blocks", "max_running_requests", "max_batched_tokens"):
        if not 0 < getattr(scenario, field) < float("inf"):
            raise ScenarioError(f"{field}: must be more than 0")
    for field, least in (("delay_s", 0), ("lmcache_gb", 0), ("lmcache_chunk_tokens", 1), ("prefill_workers", 0)):
        if not least <= getattr(scenario, field) < float("inf"):
            raise ScenarioError(f"{field}: must be a number of at least {least}")
    return scenario


def _set(raw: dict[str, Any], path: str, text: str) -> None:
    if path == "workers":
        text, _, prefills = text.partition("+")
        raw["prefill_workers"] = prefills.strip() or raw["prefill_workers"]
    *sections, field = path.split(".")
    for section in sections:
        raw = raw.get(section, {})
        if not isinstance(raw, dict):
            break
    if not isinstance(raw, dict) or field not in raw:
        raise ScenarioError(f"{path}: there is no such setting")
    raw[field] = text.strip()


def varying(scenarios: Sequence[Scenario]) -> list[str]:
    """Return the settings, by their paths, in which scenarios differ."""
    flat = [dict(_flat(msgspec.to_builtins(scenario))) for scenario in scenarios]
    return [path for path in flat[0] if len({repr(each[path]) for each in flat}) > 1]


def value_at(scenario: Scenario, path: str) -> Any:
    """Return the value of a setting, by its path."""
    return dict(_flat(msgspec.to_builtins(scenario)))[path]


def _flat(raw: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in raw.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value
