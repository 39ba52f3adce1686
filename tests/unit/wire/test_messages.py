"""The bytes on the wire: what is sent today must be read by yesterday's and tomorrow's penstock."""

import os
from pathlib import Path

import msgspec
import pytest

from components.wire.errors import HTTP_STATUS, ErrorCode, ErrorReply, PenstockError, from_reply
from components.wire.messages import (
    Cancel,
    Message,
    TokenBatch,
    TokenDelta,
    decode,
    encode,
)
from tests.support.answers import Answered
from tests.unit.wire.examples import EXAMPLES

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes(name: str) -> None:
    """Encoding has not changed (PENSTOCK_UPDATE_GOLDEN=1 writes the files anew, after a decision)."""
    message, file = EXAMPLES[name], GOLDEN / f"{name}.msgpack"
    if os.environ.get("PENSTOCK_UPDATE_GOLDEN"):
        file.write_bytes(encode(message))
    assert encode(message) == file.read_bytes()
    assert decode(file.read_bytes(), type(message)) == message


@pytest.mark.parametrize("name", EXAMPLES)
def test_unknown_keys_are_ignored(name: str) -> None:
    """A newer sender may add keys."""
    plain = msgspec.msgpack.decode(encode(EXAMPLES[name]))
    newer = msgspec.msgpack.encode({**plain, "a_key_from_tomorrow": [1]})
    assert decode(newer, type(EXAMPLES[name])) == EXAMPLES[name]


def test_every_message_is_an_example_or_part_of_one() -> None:
    """No message is left without golden bytes."""
    seen: set[type] = set()

    def visit(value: object) -> None:
        if isinstance(value, msgspec.Struct):
            seen.add(type(value))
            for field in value.__struct_fields__:
                visit(getattr(value, field))
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)

    for example in EXAMPLES.values():
        visit(example)
    ours = {kind for kind in Message.__subclasses__() if kind.__module__.startswith("components.wire.")}
    assert ours <= seen


def test_garbage_is_refused() -> None:
    """Bytes that are no message raise DecodeError, not something else."""
    for garbage in (b"", b"\xc1", b"\x80", b"not msgpack", encode(Answered("w"))[:-1]):
        with pytest.raises(msgspec.DecodeError):
            decode(garbage, Cancel)


def test_defaults_are_not_shared() -> None:
    """Two messages never share a default list."""
    one, other = TokenBatch("w", "i", 0), TokenBatch("w", "i", 0)
    one.deltas.append(TokenDelta("r"))
    assert other.deltas == []


@pytest.mark.parametrize("code", ErrorCode)
def test_errors_survive_the_wire(code: ErrorCode) -> None:
    """Every code has a status and an exception class, and comes back as it was."""
    reply = ErrorReply(code, "what happened", "param", 2.0)
    error = from_reply(decode(encode(reply), ErrorReply))
    assert isinstance(error, PenstockError)
    assert error.reply() == reply
    assert 400 <= HTTP_STATUS[code] < 600
