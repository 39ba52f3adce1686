"""Tests for one worker's forest of blocks: its counts are those of a recount, whatever happened."""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import given, settings

from components.router.holding import Holding

PARENT = {1: None, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 1, 8: 4}
"""A small forest with forks of two and three."""

EVENT = st.tuples(st.booleans(), st.sampled_from(sorted(PARENT)))


@settings(deadline=None, max_examples=500)
@given(st.lists(EVENT, max_size=60))
def test_leaves_forks_and_holes_are_those_of_a_recount(events: list[tuple[bool, int]]) -> None:
    """Blocks come and go one by one in any order."""
    shared, holders = {9: 4}, dict.fromkeys(PARENT, 1)
    holding, held = Holding(2, holders, shared), set[int]()
    for add, block in events:
        if add and block not in held:
            held.add(block)
            holders[block] = 3
            holding.added(block, PARENT[block])
        elif not add and block in held:
            held.discard(block)
            holders[block] = 1
            holding.removed(block, PARENT[block])
        children = Counter(parent for block in held if (parent := PARENT[block]) is not None)
        assert holding.blocks == len(held)
        assert holding._leaves == {block for block in held if not children[block]}
        assert holding._forks == {block: children[block] for block in held if children[block] > 1}
        assert holding._holes == {block: count for block, count in children.items() if block not in held}
        assert shared == {9: 4, **dict.fromkeys(holding._holes, 2)}
    holding.close_holes()
    assert shared == {9: 4}


@given(st.sets(st.sampled_from(sorted(PARENT))), st.sampled_from([[1, 2, 4, 5], [2, 3], [4, 8], [1, 7]]))
def test_a_run_at_once_is_the_same_as_one_by_one(before: set[int], run: list[int]) -> None:
    """The quick way, where it is allowed, leaves the same forest."""
    before = before - set(run)
    holders: tuple[dict[int, int], ...] = dict.fromkeys(before, 1), dict.fromkeys(before, 1)
    quick, slow = (Holding(1, each, {}) for each in holders)
    for holding in (quick, slow):
        for block in before:
            holding.added(block, PARENT[block])
    if quick._holes.keys() & run:
        return
    holders[0].update(dict.fromkeys(run, 1))
    quick.added_run(PARENT[run[0]], run[-1], len(run))
    for block in run:
        holders[1][block] = 1
        slow.added(block, PARENT[block])
    for name in ("blocks", "_leaves", "_forks", "_holes", "_holes_of_all"):
        assert getattr(quick, name) == getattr(slow, name)
