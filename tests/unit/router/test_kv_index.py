"""Tests for the KV index: against a naive model, in every order of events, and its bounds."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from components.router.kv_index import KvIndex
from components.wire.kv import KvCleared, KvRemoved, KvStored
from components.worker.kv_held import HeldBlocks, portions

WORKERS = ["a", "b", "c", "d", "e"]


class NaiveIndex:
    """Sets of blocks, and a walk."""

    def __init__(self) -> None:
        self.held: dict[str, set[int]] = {}

    def overlap(self, blocks: list[int]) -> dict[str, int]:
        """Count leading blocks one by one."""
        lengths = {}
        for worker, held in self.held.items():
            length = 0
            while length < len(blocks) and blocks[length] in held:
                length += 1
            if length:
                lengths[worker] = length
        return lengths


class IndexAgainstModel(RuleBasedStateMachine):
    """Random events of some workers on a forest of prompts; after each, every overlap is as the model says."""

    @initialize(parents=st.lists(st.integers(-1, 30), min_size=1, max_size=30))
    def plant(self, parents: list[int]) -> None:
        """Make the forest: block i has one of the blocks before it as parent, or none."""
        self.parent = [parent if parent < block else block - 1 for block, parent in enumerate(parents)]
        self.prompts = [self.path(block) for block in range(len(parents))]
        self.index = KvIndex()
        self.model = NaiveIndex()
        self.held = {worker: HeldBlocks() for worker in WORKERS}

    def path(self, block: int) -> list[int]:
        """Return the prompt that ends with `block`, as hashes."""
        path: list[int] = []
        while block >= 0:
            path.append(1000 + block)
            block = self.parent[block]
        return path[::-1]

    @rule(worker=st.sampled_from(WORKERS), block=st.integers(0, 29), start=st.integers(0, 30), length=st.integers(1, 30))
    def store(self, worker: str, block: int, start: int, length: int) -> None:
        """A worker stores any stretch of any prompt, whatever it holds of it already."""
        prompt = self.prompts[block % len(self.prompts)]
        start %= len(prompt)
        blocks = prompt[start : start + length]
        parent = prompt[start - 1] if start else None
        self.index.stored(worker, blocks, parent)
        self.held[worker].apply(KvStored(blocks, parent))
        self.model.held.setdefault(worker, set()).update(blocks)

    @rule(worker=st.sampled_from(WORKERS), blocks=st.lists(st.integers(1000, 1031), max_size=6))
    def remove(self, worker: str, blocks: list[int]) -> None:
        """A worker removes any blocks, held or not, in any order, and tells their parents."""
        told = self.held[worker].apply(KvRemoved(blocks))
        assert isinstance(told, KvRemoved)
        self.index.removed(worker, told.blocks, told.parents)
        self.model.held.get(worker, set()).difference_update(blocks)

    @rule(worker=st.sampled_from(WORKERS))
    def clear(self, worker: str) -> None:
        """A worker drops everything."""
        self.index.cleared(worker)
        self.held[worker].apply(KvCleared())
        if worker in self.model.held:
            self.model.held[worker] = set()

    @rule(worker=st.sampled_from(WORKERS))
    def forget(self, worker: str) -> None:
        """A worker leaves."""
        self.index.forget(worker)
        self.held[worker] = HeldBlocks()
        self.model.held.pop(worker, None)

    @rule(blocks=st.integers(1, 20))
    def sweep(self, blocks: int) -> None:
        """Sweeping changes nothing that can be seen."""
        self.index.sweep(blocks)

    @rule(worker=st.sampled_from(WORKERS), chunk=st.integers(1, 10), seed=st.randoms(use_true_random=False))
    def restore(self, worker: str, chunk: int, seed: random.Random) -> None:
        """The worker's snapshot, replayed in any order onto nothing, changes nothing."""
        runs = [run for portion in portions(self.held[worker].runs(), chunk) for run in portion]
        seed.shuffle(runs)
        self.index.cleared(worker)
        for run in runs:
            assert isinstance(run, KvStored)
            self.index.stored(worker, run.blocks, run.parent)
            self.model.held.setdefault(worker, set())

    @invariant()
    def overlaps_are_equal(self) -> None:
        """Every prompt of the forest, and one that ends in unknown blocks, overlaps as in the model."""
        for prompt in getattr(self, "prompts", []):
            for blocks in (prompt, [*prompt, 5, 6, 7]):
                assert self.index.overlap(blocks) == self.model.overlap(blocks)

    @invariant()
    def counts_are_equal(self) -> None:
        """Each worker's count is the model's, and the index has a hole exactly where a held block's parent is missing."""
        if not hasattr(self, "index"):
            return
        assert self.index.workers() == {worker: len(held) for worker, held in self.model.held.items()}
        assert all(set(self.index.held_by(worker)) == held for worker, held in self.model.held.items())
        parents = {1000 + block: 1000 + parent for block, parent in enumerate(self.parent) if parent >= 0}
        holes = [{parents[block] for block in held if block in parents} - held for held in self.model.held.values()]
        assert self.index.stats().holes == sum(map(len, holes))

    def teardown(self) -> None:
        """When all have left and all is swept, nothing is left behind."""
        if not hasattr(self, "index"):
            return
        for worker in WORKERS:
            self.index.forget(worker)
        assert self.index.sweep(10_000) == 0
        stats = self.index.stats()
        assert (stats.workers, stats.blocks, stats.pairs, stats.holes) == (0, 0, 0, 0)


TestIndexAgainstModel = IndexAgainstModel.TestCase
TestIndexAgainstModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([f"w{i}" for i in range(300)]), st.integers(0, 64), max_size=300))
def test_many_workers_that_end_everywhere(lengths: dict[str, int]) -> None:
    """One prompt, hundreds of workers, each with its own part of it."""
    index, prompt = KvIndex(), list(range(100, 164))
    for worker, length in lengths.items():
        index.stored(worker, prompt[:length])
    assert index.overlap(prompt) == {worker: length for worker, length in lengths.items() if length}


def test_many_ends_give_nothing_to_who_holds_only_the_middle() -> None:
    """Neither a worker whose front was evicted, or never told of, nor one that is gone and not swept yet."""
    index, prompt = KvIndex(), list(range(100, 164))
    ends = {f"w{length}": length for length in range(1, 41)}
    for worker, length in ends.items():
        index.stored(worker, prompt[:length])
    index.stored("front never told", prompt[50:60], prompt[49])
    index.stored("front evicted", prompt[:60])
    index.removed("front evicted", prompt[:10], [None, *prompt[:9]])
    assert index.overlap(prompt) == ends
    index.stored("broken", prompt[:60])
    index.removed("broken", [prompt[30]], [prompt[29]])
    assert index.overlap(prompt) == {**ends, "broken": 30}
    for worker in ("front never told", "front evicted", "broken"):
        index.forget(worker)
    assert index.overlap(prompt) == ends


def test_a_removed_middle_cuts_the_prefix_until_it_is_back() -> None:
    """Later blocks stay in the cache, but count again only when the gap is filled."""
    index = KvIndex()
    index.stored("a", [1, 2, 3, 4, 5, 6])
    index.removed("a", [3, 4], [2, 3])
    assert index.overlap([1, 2, 3, 4, 5, 6]) == {"a": 2}
    index.stored("a", [3], parent=2)
    assert index.overlap([1, 2, 3, 4, 5, 6]) == {"a": 3}
    index.stored("a", [4], parent=3)
    assert index.overlap([1, 2, 3, 4, 5, 6]) == {"a": 6}
    assert index.stats().holes == 0


def test_an_empty_prompt_overlaps_nowhere() -> None:
    """A prompt shorter than a block has no hash."""
    index = KvIndex()
    index.stored("a", [1])
    assert index.overlap([]) == {}


def test_a_full_index_refuses_the_rest_of_a_run_and_says_so() -> None:
    """The front of a run is kept, for it is of use alone; removals make room again."""
    index = KvIndex(max_pairs=5)
    index.stored("a", [1, 2, 3])
    index.stored("b", [1, 2, 3, 4])
    assert index.overlap([1, 2, 3, 4]) == {"a": 3, "b": 2}
    assert index.stats().pairs == 5
    assert index.stats().refused_blocks == 2
    index.removed("a", [3, 2], [2, 1])
    index.stored("b", [3, 4], parent=2)
    assert index.overlap([1, 2, 3, 4]) == {"a": 1, "b": 4}


def test_a_forgotten_workers_memory_is_swept_by_those_who_store() -> None:
    """Nobody has to call `sweep`: the others' events free twice what they bring."""
    index = KvIndex()
    index.stored("a", list(range(1000)))
    index.forget("a")
    assert index.stats().pairs == 1000
    for start in range(2000, 2600, 10):
        index.stored("b", list(range(start, start + 10)))
    assert index.stats().pairs == 600
    assert index.stats().blocks == 600


def test_a_newcomer_takes_no_blocks_from_the_one_whose_bit_it_gets() -> None:
    """Bits are used again only after the sweep."""
    index = KvIndex()
    index.stored("a", [1, 2])
    index.forget("a")
    index.stored("b", [7])
    assert index.overlap([1, 2]) == {}
    index.sweep(10)
    index.stored("c", [8])
    assert index.overlap([1, 2]) == {}
    assert index.overlap([8]) == {"c": 1}


@pytest.mark.parametrize(
    ("blocks", "parent"), [([7, 7, 7], None), ([1, 2, 1], None), ([5], 5), ([1, 2, 3], 3), ([1, 2, 3], 2), ([9, 8], 8)]
)
def test_events_that_contradict_themselves_leave_nothing_behind(blocks: list[int], parent: int | None) -> None:
    """A run in which a block repeats, or is its own ancestor, cannot happen; if it does, counts still add up."""
    index = KvIndex()
    index.stored("a", blocks, parent)
    index.stored("a", [4], parent=blocks[-1])
    assert index.stats().pairs == len({*blocks, 4})
    index.removed("a", [*blocks, 4], [parent, *blocks, blocks[-1]])
    stats = index.stats()
    assert (stats.blocks, stats.pairs, stats.holes) == (0, 0, 0)
