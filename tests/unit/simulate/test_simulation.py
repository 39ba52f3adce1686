"""Runs end, lose nothing, and give the same figures again."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.engine.sim_scheduler import SimScheduler
from components.router.policies import POLICIES
from components.simulate.outcome import Figures, Slo
from components.simulate.scenario import Scenario, ScenarioError, grid
from components.simulate.simulation import Simulation, simulate
from components.simulate.trace import Request

SMALL = Scenario(workers=3, kv_blocks=64, block_size=64)


def request(time_ms: float, tokens: int, output: int, first_id: int) -> Request:
    """Return a request whose prompt has ids from `first_id` on."""
    ids = list(range(first_id, first_id - (-tokens // 512)))
    return Request(timestamp=time_ms, input_length=tokens, output_length=output, hash_ids=ids)


traces = st.lists(
    st.builds(request, st.floats(0, 2000), st.integers(1, 1500), st.integers(1, 300), st.integers(0, 3)),
    min_size=1,
    max_size=30,
).map(lambda requests: sorted(requests, key=lambda each: each.timestamp))


@settings(deadline=None, max_examples=30)
@given(traces, st.sampled_from(list(POLICIES)))
def test_every_request_ends_once_and_with_all_its_tokens(requests: list[Request], policy: str) -> None:
    """Whatever comes when, memory too short for all included; and the router's books are empty then."""
    run = Simulation(requests, msgspec.structs.replace(SMALL, policy=policy))
    outcome = run.run()
    assert sorted(outcome.outputs) == sorted(request.output_length for request in requests)
    assert outcome.prompt_tokens == sum(request.input_length for request in requests)
    assert 0 <= outcome.cached_tokens < outcome.prompt_tokens
    assert all(0 < ttft_s <= e2e_s for ttft_s, e2e_s in zip(outcome.ttft_s, outcome.e2e_s, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_again(policy: str) -> None:
    """The same trace, fleet and seed give the same figures, wall time apart."""
    requests = [request(number * 40.0, 700 + number % 7 * 100, 20, number % 5) for number in range(100)]

    def figures() -> Figures:
        outcome = simulate(requests, msgspec.structs.replace(SMALL, policy=policy, seed=3))
        return msgspec.structs.replace(outcome.figures(), wall_s=0.0)

    assert figures() == figures()


def test_kv_finds_what_others_do_not() -> None:
    """Prompts that come again find their worker."""
    requests = [request(number * 200.0, 1400, 5, number % 4 * 10) for number in range(80)]
    reuse = {
        policy: simulate(requests, Scenario(workers=4, policy=policy, kv_blocks=128)).figures().reuse_ratio
        for policy in ("kv", "random")
    }
    assert reuse["kv"] > 0.8
    assert reuse["kv"] > reuse["random"]


def test_served_well() -> None:
    """The share of requests within the limits."""
    requests = [request(number * 1000.0, 100, 10, number) for number in range(10)]
    outcome = simulate(requests, SMALL)
    assert outcome.figures().within_slo_ratio is None
    assert outcome.figures(Slo(ttft_ms=1000)).within_slo_ratio == 1
    assert outcome.figures(Slo(ttft_ms=1000, tpot_ms=0.1)).within_slo_ratio == 0


def test_fleets_that_make_no_sense() -> None:
    """No worker, no room for the longest request, no such timing."""
    requests = [request(0, 1000, 10, 0)]
    with pytest.raises(ScenarioError, match="workers"):
        simulate(requests, Scenario(workers=0))
    with pytest.raises(ScenarioError, match=r"kv_blocks: 15 blocks of 64 tokens hold 960 tokens"):
        simulate(requests, Scenario(kv_blocks=15))
    with pytest.raises(ScenarioError, match="neither a file nor one of"):
        simulate(requests, Scenario(timing="abacus"))


def test_all_combinations() -> None:
    """The last dimension changes fastest."""
    fleets = grid(SMALL, {"workers": ["1", "2"], "policy": ["kv", "random"]})
    assert [(fleet.workers, fleet.policy) for fleet in fleets] == [(1, "kv"), (1, "random"), (2, "kv"), (2, "random")]


@settings(deadline=None, max_examples=30)
@given(traces, st.sampled_from(["h200-8b-graphs", "dynamo-mocker"]))
def test_steps_that_are_alike_may_be_taken_at_once(requests: list[Request], timing: str) -> None:
    """Every request gets its tokens when it would, if engines took one step after the other."""
    fleet = msgspec.structs.replace(SMALL, timing=timing, policy="round_robin")
    at_once = simulate(requests, fleet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimScheduler, "repeats", lambda scheduler, step: 1)
        one_by_one = simulate(requests, fleet)
    assert list(at_once.outputs) == list(one_by_one.outputs)
    assert list(at_once.ttft_s) == pytest.approx(list(one_by_one.ttft_s))
    assert list(at_once.e2e_s) == pytest.approx(list(one_by_one.e2e_s))
    assert at_once.busy_s == pytest.approx(one_by_one.busy_s)
