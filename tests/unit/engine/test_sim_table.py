"""The table of chunks: what is stored is found, the longest unused goes first, a file is believed while owned."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.engine.sim_table import ChunkTable, create_table, empty_table, open_table, table_path

rng = random.Random(1)


def new_table(capacity: int = 256) -> ChunkTable:
    """Return an empty table in memory."""
    return ChunkTable(empty_table(capacity, 64))


def prompt(chunks: int) -> list[int]:
    """Return hashes nobody has seen."""
    return [rng.randrange(1 << 60) for _ in range(chunks)]


def test_matches_what_is_stored_from_the_first_on() -> None:
    """A match ends at the first chunk that is not held."""
    table, hashes = new_table(), prompt(9)
    assert table.match([]) == 0
    assert table.match(hashes) == 0
    assert table.store([]) == []
    assert table.store(hashes[:5]) == hashes[:5]
    assert table.match(hashes) == 5
    assert table.match(hashes[1:]) == 4
    assert table.match([*prompt(1), *hashes]) == 0
    assert table.store(hashes) == hashes[5:]
    assert (table.match(hashes), table.chunks) == (9, 9)
    assert table.holds([*hashes[:2], *prompt(1)]) == [True, True, False]


def test_extreme_hashes() -> None:
    """The smallest and the largest hash are hashes like others."""
    table, hashes = new_table(), [0, (1 << 60) - 1]
    assert table.match([0]) == 0
    table.store(hashes)
    assert table.match(hashes) == 2


@pytest.mark.parametrize("capacity", [1, 2, 63, 64, 65, 100, 129, 8192])
def test_capacity(capacity: int) -> None:
    """Never more than said, and hardly less."""
    table = new_table(capacity)
    assert 0.9 * capacity - 1 <= table.capacity_chunks <= capacity
    table.store(prompt(2 * capacity))
    assert table.chunks <= table.capacity_chunks
    assert table.chunk_tokens == 64


def test_a_full_table_keeps_what_was_used_last() -> None:
    """Old prompts make room for new ones; one that is asked for again and again stays."""
    table, kept = new_table(256), prompt(20)
    table.store(kept)
    for _ in range(50):
        newest = prompt(40)
        table.store(newest)
        assert table.match(newest) == 40
        assert table.match(kept) == 20
    assert 200 < table.chunks <= 256


def test_a_prompt_too_long_keeps_its_beginning() -> None:
    """A prompt that does not fit loses its end, since a beginning can be used."""
    table, long = new_table(64), prompt(200)
    table.store(long)
    assert table.match(long) == 63
    table.store(prompt(10))
    assert table.match(long) == 54  # the last of all went first


def test_looking_is_no_use() -> None:
    """`holds` saves nothing from eviction."""
    table, old = new_table(64), prompt(10)
    table.store(old)
    table.store(prompt(54))
    assert table.holds(old) == [True] * 10
    table.store(prompt(10))
    assert table.holds(old) == [False] * 10


def test_clear() -> None:
    """A cleared table is as new."""
    table, hashes = new_table(), prompt(5)
    table.store(hashes)
    table.clear()
    assert (table.chunks, table.match(hashes)) == (0, 0)
    table.store(hashes)
    assert table.match(hashes) == 5


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True), max_size=30))
def test_with_room_it_is_a_set(prompts: list[list[int]]) -> None:
    """As long as nothing must go, a table does what a set of hashes does."""
    table = new_table(64)
    known: set[int] = set()
    for hashes in prompts:
        assert table.match(hashes) == next((i for i, each in enumerate(hashes) if each not in known), len(hashes))
        assert table.store(hashes) == [each for each in hashes if each not in known]
        known.update(hashes)
    assert table.chunks == len(known)


def test_two_map_one_file(tmp_path: Path) -> None:
    """What one process stores, others find; the file is its user's alone."""
    path, hashes = tmp_path / "chunks", prompt(4)
    owned = create_table(path, 256, 64)
    first, second = open_table(path, 64), open_table(path, 64)
    assert first is not None
    assert second is not None
    first.table.store(hashes)
    assert second.table.match(hashes) == owned.table.match(hashes) == 4
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["chunks"]
    assert first.in_place(path)
    assert first.owned()
    owned.close()
    assert not first.owned()
    assert open_table(path, 64) is None


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """It is empty, and whoever has mapped the old one can tell."""
    path, hashes = tmp_path / "chunks", prompt(4)
    create_table(path, 256, 64).table.store(hashes)
    new = create_table(path, 256, 64)
    mapped = open_table(path, 64)
    assert mapped is not None
    assert mapped.table.match(hashes) == 0
    newest = create_table(path, 256, 64)
    assert not new.in_place(path)
    assert not mapped.in_place(path)
    assert newest.in_place(path)
    path.unlink()
    assert not newest.in_place(path)


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 64, b"x" * 4096])
def test_a_file_that_is_no_table(tmp_path: Path, content: bytes) -> None:
    """Nothing is made of it."""
    path = tmp_path / "chunks"
    path.write_bytes(content)
    assert open_table(path, 64) is None


def test_what_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    """No file, a link, other chunks, a damaged header or a file cut short: no table."""
    path = tmp_path / "chunks"
    assert open_table(path, 64) is None
    owned = create_table(path, 256, 64)
    assert open_table(path, 128) is None
    (tmp_path / "link").symlink_to(path)
    assert open_table(tmp_path / "link", 64) is None
    data = bytearray(path.read_bytes())
    for position in range(0, 40, 8):
        other = bytearray(data)
        other[position] ^= 0xFF
        path.write_bytes(other)
        assert open_table(path, 64) is None
    path.write_bytes(data[:-8])
    assert open_table(path, 64) is None
    owned.close()


def test_nowhere_to_put_it(tmp_path: Path) -> None:
    """The error is the system's."""
    with pytest.raises(FileNotFoundError):
        create_table(tmp_path / "no" / "chunks", 256, 64)


def test_paths_keep_graphs_apart() -> None:
    """By name, host and port."""
    assert len({table_path(part, port) for part in ("a", "b", "a-b") for port in (1, 2)}) == 6
