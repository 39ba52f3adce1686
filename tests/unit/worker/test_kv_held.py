"""What a worker holds can be told again, in portions that fit a message."""

import hypothesis.strategies as st
from hypothesis import given, settings

from components.wire.kv import KvChange, KvCleared, KvRemoved, KvStored, Tier
from components.wire.messages import encode
from components.worker.kv_held import HeldBlocks, portions

TIERS = st.sampled_from([Tier.DEVICE, Tier.SHARED])
RUN = st.tuples(st.integers(0, 20), st.integers(1, 12))  # in this world block n + 1 follows block n
CHANGE = st.one_of(
    st.builds(lambda run, tier: KvStored(list(range(run[0], sum(run))), run[0] - 1 if run[0] else None, tier), RUN, TIERS),
    st.builds(KvRemoved, st.lists(st.integers(0, 32), min_size=1, max_size=12), TIERS),
    st.just(KvCleared()),
)


def tell(held: set[tuple[Tier, int]], change: KvChange) -> None:
    """Follow a change naively."""
    if isinstance(change, KvCleared):
        held.clear()
    elif isinstance(change, KvRemoved):
        held.difference_update((change.tier, block) for block in change.blocks)
    else:
        held.update((change.tier, block) for block in change.blocks)


@settings(deadline=None)
@given(st.lists(CHANGE, max_size=40), st.integers(1, 30))
def test_runs_tell_what_is_held(changes: list[KvChange], max_blocks: int) -> None:
    """Each block once, on its tier, behind its parent; portions tell the same, none longer than asked."""
    blocks, naive = HeldBlocks(), set[tuple[Tier, int]]()
    for change in changes:
        blocks.apply(change)
        tell(naive, change)
    runs = list(blocks.runs())
    assert len(blocks) == len(naive) == sum(len(run.blocks) for run in runs)
    again = set[tuple[Tier, int]]()
    for portion in portions(runs, max_blocks):
        assert portion
        assert sum(len(run.blocks) for run in portion if isinstance(run, KvStored)) <= max_blocks
        for run in portion:
            assert isinstance(run, KvStored)
            assert run.blocks == list(range(run.blocks[0], run.blocks[0] + len(run.blocks)))
            assert run.parent == (run.blocks[0] - 1 if run.blocks[0] else None)
            tell(again, run)
    assert again == naive


@settings(deadline=None)
@given(st.lists(CHANGE, max_size=40), st.integers(1, 30))
def test_portions_change_nothing(changes: list[KvChange], max_blocks: int) -> None:
    """Applied one after the other they lead to the same end."""
    whole, cut = set[tuple[Tier, int]](), set[tuple[Tier, int]]()
    for change in changes:
        tell(whole, change)
    for portion in portions(changes, max_blocks):
        for change in portion:
            tell(cut, change)
    assert cut == whole


def test_later_changes_do_not_show_in_runs() -> None:
    """A snapshot is of one moment, though it is sent over a while."""
    held = HeldBlocks()
    held.apply(KvStored([1, 2, 3]))
    runs = held.runs()
    held.apply(KvRemoved([2]))
    held.apply(KvCleared())
    assert list(runs) == [KvStored([1, 2, 3])]
    assert len(held) == 0


def test_portions_are_short_on_the_wire() -> None:
    """Also when every block is a run of its own, a portion is not much longer than nine bytes a block allow."""
    top = (1 << 60) - 1
    runs = [KvStored([top - n], top - n - 1, Tier.SHARED) for n in range(0, 60_000, 2)]
    for portion in portions(runs, 20_480):
        assert sum(len(encode(run)) for run in portion) < 300_000
