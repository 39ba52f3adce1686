"""Remote prefill in virtual time: who decides, what is loaded, what is given up."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.graph.schema import Disagg
from components.simulate.scenario import Scenario, ScenarioError
from components.simulate.simulation import Simulation, simulate
from components.simulate.trace import Request

SPLIT = Scenario(workers=2, prefill_workers=2, lmcache_gb=4, kv_blocks=256)
ALWAYS = Disagg(always=True)


def request(time_ms: float, tokens: int, output: int, first_id: int) -> Request:
    """Return a request whose prompt has ids from `first_id` on."""
    ids = list(range(first_id, first_id - (-tokens // 512)))
    return Request(timestamp=time_ms, input_length=tokens, output_length=output, hash_ids=ids)


def test_long_prompts_go_elsewhere_and_their_kv_is_loaded() -> None:
    """All but what makes no whole chunk; short prompts stay."""
    requests = [request(number * 500.0, tokens, 5, number * 10) for number, tokens in enumerate([4000, 400] * 5)]
    outcome = simulate(requests, msgspec.structs.replace(SPLIT, disagg=ALWAYS))
    assert outcome.remote_prefills == 5
    assert outcome.cached_tokens == 5 * (4000 // 256 * 256)


def test_without_prefill_workers_nothing_goes_elsewhere() -> None:
    """Nor where the rules say so; a shared cache still gives what another worker has computed."""
    requests = [request(number * 500.0, 4000, 5, 0) for number in range(6)]
    for fleet in (
        msgspec.structs.replace(SPLIT, prefill_workers=0, policy="round_robin"),
        msgspec.structs.replace(SPLIT, disagg=Disagg(enabled=False), policy="round_robin"),
    ):
        outcome = simulate(requests, fleet)
        assert outcome.remote_prefills == 0
        assert outcome.cached_tokens == 5 * (4000 // 256 * 256) + 4 * (3999 // 64 * 64 - 4000 // 256 * 256)


def test_who_waits_too_long_computes_here() -> None:
    """A queue that does not move is given up: every request ends, some prefilled elsewhere and some not."""
    requests = [request(0.0, 15_000, 3, number * 100) for number in range(40)]
    rules = Disagg(always=True, max_queue_depth=1000, max_queue_age_s=0.5, max_wait_s=1.0)
    fleet = msgspec.structs.replace(SPLIT, prefill_workers=1, disagg=rules)
    outcome = simulate(requests, fleet)
    assert 0 < outcome.remote_prefills < 40
    assert list(outcome.outputs) == [3] * 40


traces = st.lists(
    st.builds(request, st.floats(0, 500), st.integers(1, 6000), st.integers(1, 50), st.integers(0, 3)),
    min_size=1,
    max_size=25,
).map(lambda requests: sorted(requests, key=lambda each: each.timestamp))


@settings(deadline=None, max_examples=30)
@given(traces, st.booleans(), st.floats(0.01, 5))
def test_every_request_ends_once_and_with_all_its_tokens(requests: list[Request], always: bool, patience_s: float) -> None:
    """However impatient the decode workers are."""
    rules = Disagg(always=always, max_queue_age_s=patience_s, max_wait_s=patience_s)
    outcome = Simulation(requests, msgspec.structs.replace(SPLIT, disagg=rules)).run()
    assert sorted(outcome.outputs) == sorted(request.output_length for request in requests)
    assert outcome.prompt_tokens == sum(request.input_length for request in requests)


def test_it_needs_a_way_for_the_kv() -> None:
    """Without LMCache, or with chunks that are no whole blocks, there is none."""
    with pytest.raises(ScenarioError, match="lmcache_gb must be more than 0"):
        simulate([request(0, 10, 1, 0)], Scenario(prefill_workers=1))
    with pytest.raises(ScenarioError, match="lmcache_chunk_tokens: must be a multiple of block_size 96"):
        simulate([request(0, 10, 1, 0)], Scenario(lmcache_gb=1, block_size=96))
