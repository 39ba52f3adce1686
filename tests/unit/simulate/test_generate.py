"""Made-up traffic: deterministic, well-formed, and of the kind it says."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.simulate.generate import Kind, Traffic, generate
from components.simulate.trace import read_trace, write_trace

kinds = st.sampled_from(Kind)


@settings(max_examples=30)
@given(kinds, st.integers(1, 200), st.floats(0.1, 100), st.integers(2, 5000), st.integers(1, 500), st.integers(0, 9))
def test_any_traffic_is_a_trace(
    tmp_path_factory: pytest.TempPathFactory,
    kind: Kind,
    requests: int,
    rate: float,
    input_tokens: int,
    output_tokens: int,
    seed: int,
) -> None:
    """As many requests as asked for, in order of time, that can be written and read; the same ones again."""
    traffic = Traffic(
        kind=kind, requests=requests, rate=rate, input_tokens=input_tokens, output_tokens=output_tokens, seed=seed
    )
    made = generate(traffic)
    assert len(made) == requests
    assert made == generate(traffic)
    assert made == sorted(made, key=lambda request: request.timestamp)
    path = tmp_path_factory.mktemp("trace") / "made.jsonl"
    write_trace(path, made)
    assert read_trace(path) == made


@pytest.mark.parametrize("kind", Kind)
def test_rate_and_lengths(kind: Kind) -> None:
    """About what was asked for; a session's later prompts are longer."""
    made = generate(Traffic(kind=kind, requests=5000, rate=20, input_tokens=4000, output_tokens=200))
    assert 5000 / (made[-1].timestamp / 1000) == pytest.approx(20, rel=0.25)
    assert sum(request.output_length for request in made) / 5000 == pytest.approx(200, rel=0.1)
    mean_input = sum(request.input_length for request in made) / 5000
    assert 3500 < mean_input < (12_000 if kind is Kind.SESSIONS else 4500)


def test_a_turn_begins_with_all_that_was_said() -> None:
    """Its hash ids go on where the turn's before ended, its whole last block included."""
    made = generate(Traffic(kind=Kind.SESSIONS, requests=400, rate=10))
    turns: dict[str | None, list[list[int]]] = {}
    for request in made:
        turns.setdefault(request.session, []).append(request.hash_ids)
    assert max(map(len, turns.values())) > 2
    for prompts in turns.values():
        for before, after in pairwise(prompts):
            assert after[: len(before)] == before


def test_a_burst_is_one_prefix_many_times() -> None:
    """In the second seconds after each half minute, half of all requests come, and begin alike."""
    made = generate(Traffic(kind=Kind.BURSTS, requests=2000, rate=20))
    in_burst = [request for request in made if 30_000 <= request.timestamp < 32_000]
    first_ids = [request.hash_ids[0] for request in in_burst]
    assert max(map(first_ids.count, first_ids)) == 300


def test_prefixes_are_shared(tmp_path: Path) -> None:
    """Paths through a tree: some beginnings are far more popular than others."""
    made = generate(Traffic(kind=Kind.PREFIXES, requests=1000, rate=10))
    roots = [request.hash_ids[0] for request in made]
    assert len(set(roots)) == 8
    assert max(map(roots.count, roots)) > 2 * min(map(roots.count, roots))
