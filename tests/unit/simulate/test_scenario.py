"""Fleets by their settings, and what tells them apart."""

import pytest

from components.simulate.scenario import Scenario, ScenarioError, grid, value_at, varying


def test_all_combinations() -> None:
    """The last dimension changes fastest."""
    fleets = grid(Scenario(), {"workers": ["1", "2"], "policy": ["kv", "random"]})
    assert [(fleet.workers, fleet.policy) for fleet in fleets] == [(1, "kv"), (1, "random"), (2, "kv"), (2, "random")]
    assert varying(fleets) == ["workers", "policy"]


def test_a_split() -> None:
    """Decode and prefill workers in one value."""
    fleets = grid(Scenario(prefill_workers=9, lmcache_gb=1), {"workers": ["8", "6 + 2", "4+4"]})
    assert [(fleet.workers, fleet.prefill_workers) for fleet in fleets] == [(8, 9), (6, 2), (4, 4)]


def test_any_setting_by_its_path() -> None:
    """Those of the router and of remote prefill too."""
    (fleet,) = grid(Scenario(), {"router.decode_weight": ["0.2"], "disagg.always": ["true"], "speed": ["2"]})
    assert (fleet.router.decode_weight, fleet.disagg.always, fleet.speed) == (0.2, True, 2.0)
    assert value_at(fleet, "router.decode_weight") == 0.2


@pytest.mark.parametrize(
    ("path", "value", "mistake"),
    [
        ("wokers", "1", "wokers: there is no such setting"),
        ("router.policies", "1", "router.policies: there is no such setting"),
        ("seed.x", "1", "seed.x: there is no such setting"),
        ("workers", "many", "Expected `int`.*workers"),
        ("speed", "0", "speed: must be more than 0"),
        ("kv_blocks", "-1", "kv_blocks: must be more than 0"),
        ("policy", "best", "policy: there is no 'best'; there are kv, approximate"),
    ],
)
def test_mistakes(path: str, value: str, mistake: str) -> None:
    """Each is named."""
    with pytest.raises(ScenarioError, match=mistake):
        grid(Scenario(), {path: [value]})
