"""Frames, calls and messages: what goes in comes out, and what is none of them is an error, never a crash."""

import socket
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.worker_controller.calls import Answer, Call, NoCallError, pack, unpack_answer, unpack_call
from components.worker_controller.frames import Frames, FrameTooLongError, StreamClosedError, head, same_user
from components.worker_controller.messages import Assign, Failed, Phase, RankFree, decode, encode


def pair(max_bytes: int = 1 << 24) -> tuple[Frames, Frames]:
    """Return both ends of a stream."""
    left, right = socket.socketpair()
    return Frames(left, max_bytes), Frames(right, max_bytes)


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) - 1, 1 << 20, 3 * (1 << 20) + 5])
def test_frames_of_any_length(size: int) -> None:
    """A frame made of parts arrives whole, and so does the next."""
    left, right = pair()
    data = bytes(range(256)) * (size // 256 + 1)
    sending = threading.Thread(target=lambda: (left.send(data[:size], b"end"), left.send(b"next")))
    sending.start()
    assert right.receive(5) == data[:size] + b"end"
    assert right.receive(5) == b"next"
    sending.join()


def test_too_long_a_frame_is_refused_before_it_is_read() -> None:
    """Its announced length is enough."""
    left, right = socket.socketpair()
    frames = Frames(right, 100)
    left.sendall(head(101))
    with pytest.raises(StreamClosedError, match="101"):
        frames.receive(5)


def test_too_long_a_frame_is_not_even_sent() -> None:
    """The sender knows the limit, too; what it sends next arrives."""
    left, right = pair(100)
    with pytest.raises(FrameTooLongError, match="101"):
        left.send(b"x" * 100, b"y")
    left.send(b"next")
    assert right.receive(5) == b"next"


def test_an_end_in_the_middle() -> None:
    """A frame that does not end is an end of the stream."""
    left, right = socket.socketpair()
    left.sendall(head(10) + b"half")
    left.close()
    with pytest.raises(StreamClosedError):
        Frames(right, 100).receive(5)


def test_a_silent_other_side() -> None:
    """Waiting has an end, and the other's death is noticed while nobody reads."""
    left, right = pair()
    with pytest.raises(TimeoutError):
        right.receive(0.01)
    noticing = threading.Thread(target=right.wait_closed)
    noticing.start()
    left.close()
    noticing.join(5)
    assert not noticing.is_alive()
    with pytest.raises(StreamClosedError):
        right.send(b"x")


def test_same_user() -> None:
    """Who is at the other end is known from the kernel."""
    import os

    left, _ = socket.socketpair()
    assert same_user(left, os.getuid())
    assert not same_user(left, os.getuid() + 1)


@given(st.binary())
def test_what_is_no_call(data: bytes) -> None:
    """Bytes that are no call raise one error, whatever they are."""
    for unpack in (unpack_call, unpack_answer):
        try:
            unpack(data)
        except NoCallError:
            continue


def test_calls_and_answers() -> None:
    """Both survive the trip; one is never taken for the other."""
    call = Call("execute_model", (1,), {"a": 2}, answered=True)
    assert unpack_call(pack(call)) == call
    answer = Answer(ok=False, value="why")
    assert unpack_answer(pack(answer)) == answer
    with pytest.raises(NoCallError):
        unpack_call(pack(answer))


@pytest.mark.parametrize(
    "message", [Assign("e", "k"), Failed("why", port_taken=True), Phase("e", "weights", 1.0, 2.0), RankFree("e", 5, 0.1)]
)
def test_messages(message: msgspec.Struct) -> None:
    """A message names its type."""
    assert decode(encode(message)) == message  # type: ignore[arg-type]


@given(st.binary())
def test_what_is_no_message(data: bytes) -> None:
    """Other bytes are refused."""
    try:
        decode(data)
    except msgspec.DecodeError:
        return
