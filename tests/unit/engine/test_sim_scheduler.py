"""The scheduler, step by step, without a clock."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.engine.sim_cache import BlockRemoved, BlockStored
from components.engine.sim_scheduler import SimScheduler
from components.engine.sim_sequence import SimSequence
from components.engine.sim_step import Step
from components.engine.sim_timing import Timing

INSTANT = Timing("no time passes before a request starts", 0, 0, 0, 1, 0, 0, 0, 0)


def scheduler(blocks: int = 64, running: int = 8, batched: int = 16, timing: Timing = INSTANT) -> SimScheduler:
    """Return a scheduler with blocks of 4 tokens."""
    return SimScheduler(timing, blocks=blocks, block_size=4, max_running_requests=running, max_batched_tokens=batched)


def sequence(prompt: list[int], max_tokens: int = 2, root: int = 0) -> SimSequence:
    """Return a sequence that says 7 all the time."""
    return SimSequence(prompt, max_tokens, lambda: 7, root)


def step(engine: SimScheduler) -> Step:
    """Return a step there must be, completed."""
    made = engine.schedule(0)
    assert made is not None
    engine.complete(made)
    return made


def chunks(made: Step) -> list[int]:
    """Return the tokens of each chunk of a step."""
    return [chunk.tokens for chunk in made.chunks]


def finish_all(engine: SimScheduler) -> list[Step]:
    """Step until nothing is left."""
    steps = []
    while (made := engine.schedule(0)) is not None:
        engine.complete(made)
        steps.append(made)
        assert len(steps) < 10_000
    return steps


def test_prefills_in_chunks_and_decodes_meanwhile() -> None:
    """A long prompt takes several steps; a sequence that decodes gets its token in each."""
    engine = scheduler()
    short = sequence(list(range(10)), max_tokens=4)
    engine.add(short, 0)
    assert chunks(step(engine)) == [10]
    engine.add(sequence(list(range(100, 140))), 0)
    assert [chunks(step(engine)) for _ in range(4)] == [[1, 15], [1, 15], [1, 10], [1]]
    assert short.tokens == [*range(10), 7, 7, 7, 7]


def test_work_is_summed_for_the_timing() -> None:
    """Prefill counts tokens and squares, decode counts sequences and what they look back at."""
    engine = scheduler()
    engine.add(sequence(list(range(20))), 0)
    first, second, third = (step(engine).work for _ in range(3))
    assert (first.prefill_tokens, first.squared_prefill_tokens) == (16, 256)
    assert (second.prefill_tokens, second.squared_prefill_tokens) == (4, 400 - 256)
    assert (third.decode_sequences, third.decode_context_tokens, third.prefill_tokens) == (1, 20, 0)


def test_reuses_a_prefix_in_whole_blocks() -> None:
    """A repeated prompt computes only what follows its last full block, at least one token."""
    engine = scheduler()
    for prompt, cached in ((list(range(12)), 0), (list(range(12)), 8), ([*range(8), 99, 98], 8), ([5, 6], 0)):
        asked = sequence(prompt)
        engine.add(asked, 0)
        assert chunks(step(engine)) == [len(prompt) - cached]
        assert asked.cached_tokens == cached
        finish_all(engine)
    assert (engine.totals.cache_queries, engine.totals.cache_hits) == (36, 16)
    assert (engine.totals.prompt, engine.totals.cached, engine.totals.output) == (36, 16, 8)


def test_output_is_reused_too() -> None:
    """Blocks that hold output serve the next turn of a conversation."""
    engine = scheduler()
    first = sequence(list(range(6)), max_tokens=7)
    engine.add(first, 0)
    finish_all(engine)
    second = sequence([*first.tokens, 50, 51])
    engine.add(second, 0)
    step(engine)
    assert second.cached_tokens == 12


def test_two_at_once_share_a_prefix() -> None:
    """Within one step the second of two equal prompts finds the blocks of the first, as in vLLM."""
    engine = scheduler(batched=64)
    for _ in range(2):
        engine.add(sequence(list(range(12))), 0)
    assert chunks(step(engine)) == [12, 4]
    assert engine.kv_usage == 4 / 64


def test_roots_share_nothing() -> None:
    """Another root hash (salt, adapter) is another prefix."""
    engine = scheduler()
    for root in (1, 2):
        asked = sequence(list(range(12)), root=root)
        engine.add(asked, 0)
        finish_all(engine)
        assert asked.cached_tokens == 0


def test_at_most_so_many_run() -> None:
    """Others wait, in order."""
    engine = scheduler(running=2, batched=64)
    asked = [sequence([i] * 5) for i in range(5)]
    for one in asked:
        engine.add(one, 0)
    step(engine)
    assert engine.running == asked[:2]
    assert engine.waiting_requests == 3
    finish_all(engine)
    assert all(one.finished for one in asked)


def test_preempts_the_youngest_and_resumes_it() -> None:
    """When KV runs out, the youngest gives its blocks back, and later goes on with the output it has."""
    engine = scheduler(blocks=6, batched=64)
    old, young = sequence([1] * 8, max_tokens=12), sequence([2] * 8, max_tokens=12)
    engine.add(old, 0)
    engine.add(young, 0)
    finish_all(engine)
    assert engine.totals.preempted_sequences > 0
    assert old.output_tokens == young.output_tokens == 12
    assert old.cached_tokens == young.cached_tokens == 0
    assert engine.totals.output == 24
    assert engine.kv_usage == 0


def test_arrival_takes_its_time() -> None:
    """A request starts after the time a request takes, later when it is cached."""
    timing = Timing("", 5, 10, 1000, 1, 0, 0, 0, 0)
    engine = scheduler(timing=timing)
    engine.add(sequence(list(range(9))), 1.0)
    assert engine.schedule(1.0) is None
    assert engine.next_arrival_s() == 1.005
    assert engine.waiting_requests == 1
    made = engine.schedule(1.005)
    assert made is not None
    assert made.duration_s == 0.001
    engine.complete(made)
    engine.add(sequence(list(range(9))), 2.0)
    assert engine.next_arrival_s() == pytest.approx(2.0 + 0.005 + 0.010 + 0.008)


def test_finish_works_everywhere() -> None:
    """A sequence can be ended while it arrives, waits, runs or is being computed, and twice."""
    engine = scheduler(running=1)
    arriving, waiting, running = (sequence([i] * 8) for i in range(3))
    engine.add(running, 0)
    made = engine.schedule(0)
    engine.add(waiting, 0)
    assert made is not None
    engine.schedule(0)
    engine.add(arriving, 9)
    for one in (arriving, waiting, running, running):
        engine.finish(one)
    assert engine.complete(made) == []
    assert engine.schedule(10) is None
    assert (engine.running, engine.waiting_requests, engine.kv_usage) == ([], 0, 0)


def test_steps_report_blocks() -> None:
    """A step says which blocks it stores, chained, and which were evicted for it."""
    engine = scheduler(blocks=3, batched=64)
    first_prompt = sequence(list(range(9)), max_tokens=1)
    engine.add(first_prompt, 0)
    stored = step(engine).events
    assert [event.block_hash for event in stored] == first_prompt.hashes(2, 4)
    first, second = stored
    assert isinstance(first, BlockStored)
    assert isinstance(second, BlockStored)
    assert (first.parent_hash, second.parent_hash) == (None, first.block_hash)
    engine.add(sequence([50] * 8, max_tokens=1), 0)
    assert step(engine).events[0] == BlockRemoved(second.block_hash)


@dataclass
class Mirror:
    """What somebody knows who only hears events."""

    blocks: set[int] = field(default_factory=set)

    def hear(self, made: Step) -> None:
        """Take over a step's events."""
        for event in made.events:
            if isinstance(event, BlockStored):
                assert event.block_hash not in self.blocks
                self.blocks.add(event.block_hash)
            else:
                self.blocks.remove(event.block_hash)


prompts = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=25)


@settings(max_examples=60)
@given(prompts, st.integers(11, 30), st.integers(1, 5), st.integers(1, 40))
def test_everything_ends_well(asked: list[tuple[int, int, int]], blocks: int, running: int, batched: int) -> None:
    """Under any load and any shortage each sequence gets its tokens, no block is lost, and events mirror the cache."""
    engine, mirror = scheduler(blocks, running, batched), Mirror()
    sequences = [sequence([kind] * length, max_tokens) for kind, length, max_tokens in asked]
    for one in sequences:
        engine.add(one, 0)
    for made in finish_all(engine):
        assert sum(chunks(made)) <= batched
        mirror.hear(made)
    assert [one.output_tokens for one in sequences] == [max_tokens for _, _, max_tokens in asked]
    assert engine.kv_usage == 0
    assert len(mirror.blocks) <= blocks
    again = sequence(sequences[-1].tokens)
    found = again.hashes(len(again.tokens) // 4, 4)
    engine.add(again, 0)
    step(engine)
    expected = next((i for i, block in enumerate(found) if block not in mirror.blocks), len(found))
    assert again.cached_tokens == 4 * min(expected, (again.prompt_tokens - 1) // 4)
