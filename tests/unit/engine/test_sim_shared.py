"""Schedulers that share a cache: what one has computed, the other loads, in whole chunks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.engine.sim_cache import BlockStored
from components.engine.sim_scheduler import SimScheduler
from components.engine.sim_sequence import SimSequence
from components.engine.sim_shared import SharedPrompts
from components.engine.sim_step import Step
from components.engine.sim_table import ChunkTable, empty_table
from components.engine.sim_timing import Timing
from components.wire.kv import KvStored, Tier

INSTANT = Timing("no time passes before a request starts", 0, 0, 0, 1, 0, 0, 0, 0)
SLOW_LOAD = Timing("loading takes 10 ms, and 1 ms a token", 0, 0, 0, 1, 0, 0, 0, 0, 10, 1000)
BLOCK, CHUNK = 4, 8


def shared(capacity: int = 64) -> SharedPrompts:
    """Return an empty shared cache with chunks of two blocks."""
    return SharedPrompts(ChunkTable(empty_table(capacity, CHUNK)), BLOCK)


def scheduler(cache: SharedPrompts | None, timing: Timing = INSTANT, blocks: int = 64, running: int = 8) -> SimScheduler:
    """Return an engine's scheduler."""
    return SimScheduler(
        timing, blocks=blocks, block_size=BLOCK, max_running_requests=running, max_batched_tokens=64, shared=cache
    )


def sequence(prompt: list[int], max_tokens: int = 2, root: int = 0) -> SimSequence:
    """Return a sequence that says 7 all the time."""
    return SimSequence(prompt, max_tokens, lambda: 7, root)


def chunks(made: Step | None) -> list[int]:
    """Return the tokens of each chunk of a step there must be."""
    assert made is not None
    return [chunk.tokens for chunk in made.chunks]


def run(engine: SimScheduler, *asked: SimSequence) -> list[Step]:
    """Let an engine serve requests until nothing is left, in a clock of their own; return the steps."""
    now_s, steps = 0.0, []
    for one in asked:
        engine.add(one, now_s)
    while True:
        made = engine.schedule(now_s)
        if made is not None:
            engine.complete(made)
            steps.append(made)
        elif (next_s := engine.next_arrival_s()) is not None:
            now_s = max(now_s, next_s)
        else:
            return steps
        assert len(steps) < 10_000


@pytest.mark.parametrize(("tokens", "computed"), [(20, 4), (17, 1), (16, 1), (23, 7), (8, 1), (7, 7), (3, 3)])
def test_the_second_engine_computes_the_tail(tokens: int, computed: int) -> None:
    """It loads whole chunks; the last token of a prompt it always computes, as vLLM does with LMCache."""
    cache, prompt = shared(), list(range(tokens))
    run(scheduler(cache), sequence(prompt))
    engine, asked = scheduler(cache), sequence(prompt)
    assert chunks(run(engine, asked)[0]) == [computed]
    assert asked.cached_tokens == tokens - computed
    totals = engine.totals
    assert (totals.cache_queries, totals.cache_hits) == (tokens, 0)
    assert (totals.shared_queries, totals.shared_hits) == (tokens, tokens - computed)
    assert (totals.prompt, totals.cached) == (tokens, tokens - computed)
    assert engine.kv_usage == 0


def test_local_blocks_come_first() -> None:
    """Only what the engine does not have is loaded, from the middle of a chunk where its own blocks end there."""
    cache, prompt = shared(), list(range(26))
    run(scheduler(cache), sequence(prompt))
    engine = scheduler(cache)
    run(engine, sequence([*range(13)], max_tokens=1))  # 12 tokens in blocks of its own
    asked = sequence(prompt)
    assert chunks(run(engine, asked)[0]) == [2]
    assert asked.cached_tokens == 24
    assert (engine.totals.cache_hits, engine.totals.shared_hits) == (12, 8 + 12)
    assert (engine.totals.shared_queries, engine.totals.shared_hits) == (13 + 14, 8 + 12)


def test_a_longer_local_prefix_needs_no_load() -> None:
    """What the engine has itself it does not ask for."""
    cache, prompt = shared(), list(range(15))
    engine = scheduler(cache)
    run(engine, sequence(prompt))
    asked = sequence(prompt)
    assert chunks(run(engine, asked)[0]) == [3]
    assert (asked.cached_tokens, engine.totals.shared_hits) == (12, 0)


def test_loaded_blocks_are_stored() -> None:
    """They are the engine's own from then on, with events; the next request finds them there."""
    cache, prompt = shared(), list(range(18))
    first = run(scheduler(cache), sequence(prompt))
    engine = scheduler(cache)
    second = run(engine, sequence(prompt))
    told = [
        [event for made in steps for event in made.events if isinstance(event, BlockStored)] for steps in (first, second)
    ]
    assert told[0] == told[1]
    again = sequence(prompt)
    run(engine, again)
    assert (engine.totals.cache_hits, engine.totals.shared_hits) == (16, 16)


def test_steps_report_what_was_shared() -> None:
    """The blocks of chunks newly stored, chained, once each, at the end of the prefill; output is not shared."""
    cache, engine = shared(), scheduler(shared())
    engine = scheduler(cache)
    asked = sequence(list(range(21)), max_tokens=20)
    steps = run(engine, asked)
    hashes = asked.hashes(5, BLOCK)
    assert steps[0].shared == [
        KvStored(hashes[:2], None, Tier.SHARED),
        KvStored(hashes[2:4], hashes[1], Tier.SHARED),
    ]
    assert not any(made.shared for made in steps[1:])
    longer = sequence([*range(21), 50, 51, 52])
    steps = run(engine, longer)
    assert steps[0].shared == [KvStored(longer.hashes(6, BLOCK)[4:], hashes[3], Tier.SHARED)]
    assert cache.tokens(asked.hashes(10, BLOCK)) == 16


def test_long_prompts_are_shared_when_all_is_computed() -> None:
    """Chunked prefill: nothing before its last chunk."""
    cache = shared()
    steps = run(scheduler(cache), sequence(list(range(150)), max_tokens=1))
    assert [len(made.shared) for made in steps] == [0, 0, 18]


def test_roots_share_nothing() -> None:
    """Another root hash (salt, adapter) is another prompt."""
    cache, prompt = shared(), list(range(20))
    run(scheduler(cache), sequence(prompt, root=1))
    asked = sequence(prompt, root=2)
    run(scheduler(cache), asked)
    assert asked.cached_tokens == 0


def test_a_full_cache_forgets() -> None:
    """What was evicted is computed again, and shared again."""
    cache, prompt = shared(capacity=4), list(range(20))
    engine = scheduler(cache)
    run(engine, sequence(prompt))
    run(engine, *(sequence([100 + i] * 20) for i in range(4)))
    other, asked = scheduler(cache), sequence(prompt)
    assert len(run(other, asked)[0].shared) == 2
    assert asked.cached_tokens == 0
    assert other.totals.shared_queries == 20


def test_others_compute_while_one_loads() -> None:
    """Loading takes its time, room and a place, not the engine's steps."""
    cache, prompt = shared(), list(range(40))
    run(scheduler(cache), sequence(prompt))
    engine = scheduler(cache, SLOW_LOAD, running=2)
    loading, other, third = sequence(prompt), sequence([90] * 5, max_tokens=9), sequence([91] * 5)
    for one in (loading, other, third):
        engine.add(one, 0.0)
    made = engine.schedule(0.0)
    assert chunks(made) == [5]
    assert made is not None
    engine.complete(made)
    assert engine.waiting_requests == 2
    assert engine.kv_usage == 12 / 64
    assert engine.next_arrival_s() == 0.010 + 0.039
    assert loading.computed_tokens == 0
    assert chunks(engine.schedule(0.048)) == [1]
    made = engine.schedule(0.049)
    assert chunks(made) == [1, 1]
    assert loading.computed_tokens == 39
    assert engine.waiting_requests == 1


def test_loading_can_be_ended() -> None:
    """A request that ends while its KV is loaded gives its room back."""
    cache, prompt = shared(), list(range(40))
    run(scheduler(cache), sequence(prompt))
    engine, loading = scheduler(cache, SLOW_LOAD), sequence(prompt)
    engine.add(loading, 0.0)
    assert engine.schedule(0.0) is None
    assert engine.kv_usage > 0
    engine.finish(loading)
    assert (engine.kv_usage, engine.waiting_requests, engine.next_arrival_s()) == (0, 0, None)
    assert engine.schedule(1.0) is None


def test_two_that_load_the_same() -> None:
    """Both load; the blocks are stored once, and nothing is lost."""
    cache, prompt = shared(), list(range(40))
    run(scheduler(cache), sequence(prompt))
    engine = scheduler(cache, SLOW_LOAD)
    run(engine, sequence(prompt), sequence(prompt))
    assert engine.totals.shared_hits == 2 * 39
    assert engine.kv_usage == 0


prompts = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 30), st.integers(1, 12), st.integers(0, 1)), min_size=1, max_size=25
)


@settings(max_examples=60)
@given(prompts, st.integers(11, 30), st.integers(1, 5), st.integers(1, 12), st.sampled_from([INSTANT, SLOW_LOAD]))
def test_everything_ends_well(
    asked: list[tuple[int, int, int, int]], blocks: int, running: int, capacity: int, timing: Timing
) -> None:
    """Under any load and any shortage each sequence of two engines gets its tokens, and no block is lost."""
    cache = shared(capacity)
    engines = [scheduler(cache, timing, blocks, running) for _ in range(2)]
    sequences = [(engine, sequence([kind] * length, max_tokens)) for kind, length, max_tokens, engine in asked]
    for _ in range(2):
        for number, engine in enumerate(engines):
            run(engine, *(one for place, one in sequences if place == number))
        assert [one.output_tokens for _, one in sequences] == [max_tokens for _, _, max_tokens, _ in asked]
        assert [engine.kv_usage for engine in engines] == [0, 0]
        assert all((one.cached_tokens or 0) < one.prompt_tokens for _, one in sequences)
        sequences = [(1 - place, sequence(one.tokens[: one.prompt_tokens], one.max_tokens)) for place, one in sequences]
