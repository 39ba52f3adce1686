"""Chunk hashes as LMCache computes them."""

import pytest

from components.cache_controller.hashing import (
    Root,
    Scheme,
    chunk_hashes,
    likely_roots,
    likely_schemes,
    matched_tokens,
    root_of,
)

ZERO = Root("builtin", 0, "without vLLM")


def test_hashes_are_chained_over_parent_and_tokens() -> None:
    """Known values: Python's hash of tuples of numbers is the same in every process."""
    first = hash((0, (1, 2), ()))
    assert chunk_hashes([1, 2, 3], Scheme(ZERO, 2)) == [first, hash((first, (3,), ()))]
    assert chunk_hashes([], Scheme(ZERO, 2)) == []


def test_a_seed_fixes_where_the_chain_begins() -> None:
    """Whatever this process was started with."""
    assert root_of("builtin", "0") == root_of("builtin", "0")
    assert root_of("builtin", "0").value != root_of("builtin", "1").value


def test_sha256_cbor_is_vllms() -> None:
    """The digest's first eight bytes; the integration test compares with LMCache 0.5.6 and vLLM 0.32 themselves."""
    pytest.importorskip("cbor2")
    root = root_of("sha256_cbor", "0")
    assert root.value == 0x4E1195DF020DE59E
    assert chunk_hashes([1, 2], Scheme(root, 2)) == [0xBEFBE47AE6D99411]


@pytest.mark.parametrize("seed", ["random", "", "-1", str(2**32)])
def test_bad_seeds_are_refused(seed: str) -> None:
    """Python itself would not start with them."""
    with pytest.raises(ValueError, match="whole number"):
        root_of("builtin", seed)


def test_the_expected_scheme_is_tried_first_and_once() -> None:
    """The others are each another way to hash."""
    roots = likely_roots(root_of("builtin", "0"))
    assert len(roots) == len(set(roots))
    expected = Scheme(roots[0], 256)
    others = likely_schemes(expected, roots)
    assert expected not in others
    assert len(others) == len(set(others))


def test_matched_tokens_end_with_the_prompt() -> None:
    """A chunk that is not full counts as far as there are tokens."""
    assert [matched_tokens(chunks, 300, 256) for chunks in (0, 1, 2)] == [0, 256, 300]
