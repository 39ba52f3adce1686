"""Names given by users can't reach beyond their place in a subject."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.wire.subjects import Subjects, name_of, stream_name, token


@given(st.text(min_size=1))
def test_any_name_becomes_one_safe_token(name: str) -> None:
    """Whatever the name, the token has none of NATS's special characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    assert token(name)
    assert all(char.isascii() and (char.isalnum() or char in "-_=") for char in token(name))
    assert name_of(token(name)) == name


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"), min_size=1))
def test_different_names_stay_different(one: str, other: str) -> None:
    """Two names never share a token."""
    assert (token(one) == token(other)) == (one == other)


def test_an_empty_name_is_refused() -> None:
    """NATS has no empty tokens."""
    with pytest.raises(ValueError, match="empty"):
        token("")


def test_graphs_do_not_overlap() -> None:
    """Two graphs on one server hear nothing of each other."""
    one, other = Subjects("a"), Subjects("a.generate")
    assert one.generate("w") != other.generate("w")
    assert other.generate("w").split(".")[1] == "a=2Egenerate"


def test_streams_have_names_nats_takes() -> None:
    """A stream's name has none of the characters the server refuses, and tells graphs and queues apart."""
    queue, dead = Subjects("a.b").queue("jobs"), Subjects("a.b").every_dead_letter("jobs")
    assert (stream_name(queue), stream_name(dead)) == ("penstock_a=2Eb_queue_jobs", "penstock_a=2Eb_dead_jobs")
    assert Subjects("g").queued("jobs", "x.y", "1").startswith(Subjects("g").queue("jobs").removesuffix(">"))
