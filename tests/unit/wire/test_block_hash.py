"""Tests for the chained block hash: golden values, and the properties everything else relies on."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from components.wire.block_hash import HASH_MASK, block_hashes, extend, root_hash

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=200)
BLOCK_SIZE = st.integers(1, 40)
ROOT = st.integers(0, HASH_MASK)
NAME = st.none() | st.text(max_size=8)


def test_golden_values() -> None:
    """These numbers are the protocol: processes of different versions must agree on them."""
    root = root_hash("demo")
    assert root == 717707758922127504
    assert root_hash("demo", "sql") == 465458115490650123
    assert root_hash("demo", None, "tenant") == 999335644323645890
    assert block_hashes(list(range(10)), 4, root) == [682788787610093039, 377901871052104321]
    assert block_hashes([0] * 64, 32, root) == [953601517287518023, 151004952200769462]
    assert block_hashes([2**32 - 1] * 16, 16, root) == [235372672206945720]


@given(TOKENS, TOKENS, BLOCK_SIZE, ROOT)
def test_a_prefix_has_the_prefix_of_the_hashes(tokens: list[int], more: list[int], block_size: int, root: int) -> None:
    """Appending tokens never changes the hashes of the full blocks before them."""
    before = block_hashes(tokens, block_size, root)
    assert len(before) == len(tokens) // block_size
    assert block_hashes(tokens + more, block_size, root)[: len(before)] == before


@given(TOKENS, BLOCK_SIZE, ROOT, st.data())
def test_chaining_piece_by_piece_equals_hashing_at_once(
    tokens: list[int], block_size: int, root: int, data: st.DataObject
) -> None:
    """An event that starts in the middle of a prompt yields the hashes that the prompt has there."""
    tokens = tokens[: len(tokens) - len(tokens) % block_size]
    whole = block_hashes(tokens, block_size, root)
    cut = data.draw(st.integers(0, len(whole)))
    parent = whole[cut - 1] if cut else root
    assert whole[:cut] + extend(parent, tokens[cut * block_size :], block_size) == whole


@given(TOKENS, BLOCK_SIZE, ROOT, st.data())
def test_one_changed_token_changes_its_block_and_all_after(
    tokens: list[int], block_size: int, root: int, data: st.DataObject
) -> None:
    """Blocks before the change keep their hash; the changed one and all that follow get another."""
    assume(len(tokens) >= block_size)
    full = len(tokens) - len(tokens) % block_size
    at = data.draw(st.integers(0, full - 1))
    changed = [*tokens[:at], tokens[at] ^ data.draw(st.integers(1, 2**32 - 1)), *tokens[at + 1 :]]
    old, new = block_hashes(tokens, block_size, root), block_hashes(changed, block_size, root)
    first = at // block_size
    assert old[:first] == new[:first]
    assert all(a != b for a, b in zip(old[first:], new[first:], strict=True))


@given(st.tuples(st.text(max_size=8), NAME, NAME), st.tuples(st.text(max_size=8), NAME, NAME))
def test_roots_differ_when_any_part_of_the_key_does(
    one: tuple[str, str | None, str | None], other: tuple[str, str | None, str | None]
) -> None:
    """Model, adapter and salt are kept apart: moving a letter from one to the next changes the root."""
    assert (root_hash(*one) == root_hash(*other)) == (one == other)


@given(TOKENS, BLOCK_SIZE, ROOT)
def test_hashes_stay_in_their_range(tokens: list[int], block_size: int, root: int) -> None:
    """All hashes can serve as a parent, and fit a small Python int."""
    assert all(0 <= block <= HASH_MASK for block in block_hashes(tokens, block_size, root))


def test_numpy_arrays_hash_as_lists_do() -> None:
    """A caller may hold its tokens in an array."""
    tokens = list(range(100))
    assert block_hashes(np.array(tokens), 8, 1) == block_hashes(tokens, 8, 1)


@pytest.mark.parametrize("bad", [-1, 2**32, 1.5, "7", None])
def test_a_bad_token_id_is_refused(bad: object) -> None:
    """What is no uint32 raises ValueError, and the text holds no token."""
    with pytest.raises(ValueError, match=r"integers in 0 … 2\*\*32 - 1"):
        block_hashes([1, 2, bad, 4], 4, 0)  # type: ignore[list-item]


@pytest.mark.parametrize(("block_size", "root"), [(0, 1), (-4, 1), (2.0, 1), (4, -1), (4, HASH_MASK + 1), (4, None)])
def test_a_bad_block_size_or_root_is_refused(block_size: int, root: int) -> None:
    """Both are checked before any hashing."""
    with pytest.raises(ValueError, match="must be an integer"):
        block_hashes([1, 2, 3, 4], block_size, root)


def test_an_event_must_hold_whole_blocks() -> None:
    """A partial block in an event is a mistake, not something to cut off."""
    with pytest.raises(ValueError, match="5 tokens are no whole number of blocks of 4"):
        extend(0, [1, 2, 3, 4, 5], 4)
