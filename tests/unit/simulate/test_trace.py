"""Traces are read, checked, written and cut."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.simulate.trace import Request, TraceError, cut, read_trace, write_trace

GOOD = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}'


def requests_of(*times_ms: float) -> list[Request]:
    """Return requests that come then."""
    return [Request(timestamp=time_ms, input_length=1, output_length=1, hash_ids=[0]) for time_ms in times_ms]


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("{", "line 3: .*JSON|line 3: Input"),
        ('{"timestamp": 0, "input_length": 600, "output_length": 5}', "line 3: .*hash_ids"),
        (GOOD.replace("[0, 1]", "[0]"), "line 3: hash_ids: must be 2"),
        (GOOD.replace("[0, 1]", "[0, -1]"), "line 3: hash_ids: must be 0 to"),
        (GOOD.replace('th": 5', 'th": 0'), "line 3: input_length and output_length"),
        (GOOD.replace('stamp": 0', 'stamp": -1'), "line 3: timestamp"),
        (GOOD.replace('stamp": 0', 'stamp": "now"'), "line 3: .*timestamp"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, mistake: str) -> None:
    """With its number, blank lines counted."""
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(TraceError, match=mistake):
        read_trace(path)


def test_no_trace(tmp_path: Path) -> None:
    """A file that is not there, and one that is empty."""
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TraceError, match="has no requests"):
        read_trace(tmp_path / "empty.jsonl")


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=20))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, times_ms: list[float]) -> None:
    """In order of time, whatever the order of lines."""
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    write_trace(path, requests_of(*times_ms))
    assert read_trace(path) == requests_of(*sorted(times_ms))


def test_cut() -> None:
    """By the trace's own seconds, then by number; sped up, and from 0 on."""
    requests = requests_of(1000, 1500, 2000, 4000)
    assert [request.timestamp for request in cut(requests, speed=2)] == [0, 250, 500, 1500]
    assert [request.timestamp for request in cut(requests, seconds=1)] == [0, 500]
    assert [request.timestamp for request in cut(requests, limit=3)] == [0, 500, 1000]


def test_tokens_share_as_hash_ids_do() -> None:
    """Equal ids, equal tokens; the last block may be shorter."""
    request = Request(timestamp=0, input_length=600, output_length=1, hash_ids=[7, 8])
    assert request.tokens() == [7] * 512 + [8] * 88
