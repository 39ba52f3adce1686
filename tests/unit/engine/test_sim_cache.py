"""KV blocks: shared while equal, evicted when long unused, never lost."""

from hypothesis import given
from hypothesis import strategies as st

from components.engine.sim_cache import BlockCache, BlockRemoved, BlockStored


def stored(cache: BlockCache, *block_hashes: int) -> None:
    """Let a sequence fill blocks with these hashes and finish."""
    cache.take(len(block_hashes))
    for block_hash in block_hashes:
        assert cache.store(BlockStored(block_hash, 0))
    cache.release(block_hashes, 0)


def test_matches_the_longest_stored_prefix() -> None:
    """A match ends at the first block that is not stored."""
    cache = BlockCache(8)
    stored(cache, 1, 2, 4)
    assert cache.match([1, 2, 3, 4]) == 2
    assert cache.match([3, 1]) == 0
    assert cache.match([1, 2, 4]) == 3


def test_evicts_the_longest_unused_tail_first() -> None:
    """The block used longest ago goes first, and within a sequence its end."""
    cache = BlockCache(4)
    stored(cache, 1, 2)
    stored(cache, 3, 4)
    cache.hold([1, 2])
    cache.release([1, 2], 0)
    cache.events.clear()
    cache.take(3)
    assert cache.events == [BlockRemoved(4), BlockRemoved(3), BlockRemoved(2)]
    assert cache.match([1]) == 1


def test_blocks_in_use_stay() -> None:
    """What a sequence holds is neither available nor evicted."""
    cache = BlockCache(4)
    stored(cache, 1, 2)
    cache.hold([1, 2])
    assert cache.available() == 2
    assert cache.usage == 0.5
    cache.hold([1])
    cache.release([1, 2], 0)
    assert cache.available() == 3


def test_start_counts_idle_blocks_once() -> None:
    """An idle block that will be reused cannot be evicted for the same sequence."""
    cache = BlockCache(4)
    stored(cache, 1, 2)
    assert cache.can_start([1, 2], 2)
    assert not cache.can_start([1, 2], 3)
    assert cache.can_start([], 4)


def test_equal_blocks_are_stored_once() -> None:
    """The second of two equal blocks stays private."""
    cache = BlockCache(4)
    cache.take(2)
    assert cache.store(BlockStored(1, 0))
    assert not cache.store(BlockStored(1, 0))
    cache.release([1], 1)
    assert cache.available() == 4


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), max_size=30))
def test_no_block_is_lost(sequences: list[list[int]]) -> None:
    """Whatever comes and goes, all blocks are available in the end, and the events tell what is stored."""
    cache = BlockCache(6)
    for hashes in sequences:
        reused = hashes[: cache.match(hashes)]
        rest = hashes[len(reused) :]
        if not cache.can_start(reused, len(rest)):
            continue
        cache.hold(reused)
        cache.take(len(rest))
        held = reused + [block for block in rest if cache.store(BlockStored(block, 0))]
        cache.release(held, len(hashes) - len(held))
    told: set[int] = set()
    for event in cache.events:
        if isinstance(event, BlockStored):
            told.add(event.block_hash)
        else:
            told.remove(event.block_hash)
    assert cache.available() == 6
    assert {block for block in range(10) if cache.match([block])} == told
