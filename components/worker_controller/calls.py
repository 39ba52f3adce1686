"""A call from an engine's core to a rank, and its answer: pickled, between processes of one user that share a key.

Knows no vLLM, so that frames can be made and read without it.
"""

import pickle
from typing import Any, NamedTuple

HELLO_BYTES = 4096
"""The longest first frame; until a caller has shown the engine's key, nothing longer is read, and nothing is unpickled."""


class Call(NamedTuple):
    """Run a method of the worker.

    Attributes:
        method: its name; `LOAD` makes the worker; bytes hold a function, pickled by
            cloudpickle, to be called with the worker.
        args: positional arguments.
        kwargs: keyword arguments.
        answered: whether the caller waits for this rank's answer.
    """

    method: str | bytes
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answered: bool


class Answer(NamedTuple):
    """What came of a call.

    Attributes:
        ok: whether it succeeded.
        value: what it returned, or an error's text.
    """

    ok: bool
    value: Any


LOAD = "penstock:load"
"""The method that makes a worker and loads the model; its arguments are those of `ProxyExecutor.load`."""


class NoCallError(Exception):
    """A frame holds something else than was agreed on."""


def pack(message: Call | Answer) -> bytes:
    """Return `message` as it travels."""
    return pickle.dumps(tuple(message), protocol=pickle.HIGHEST_PROTOCOL)


def unpack_call(data: bytes | bytearray) -> Call:
    """Return the call in `data`.

    Raises:
        NoCallError: there is none.
    """
    return Call(*_fields(data, 4))


def unpack_answer(data: bytes | bytearray) -> Answer:
    """Return the answer in `data`.

    Raises:
        NoCallError: there is none.
    """
    return Answer(*_fields(data, 2))


def _fields(data: bytes | bytearray, count: int) -> tuple[Any, ...]:
    try:
        fields = pickle.loads(data)  # noqa: S301 from a process of this user that showed the engine's key
    except Exception as error:
        raise NoCallError(f"a frame that cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(fields, tuple) or len(fields) != count:
        raise NoCallError("a frame that is no call")
    return fields
