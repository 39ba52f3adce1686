"""What the controller and its processes tell one another: MessagePack of these types, and nothing else.

Times are `time.monotonic()` of this machine, which all its processes share, so that phases of different processes compare.
"""

import time
from typing import TypeVar

import msgspec

MAX_MESSAGE_BYTES = 1 << 20
"""The longest message between the controller and a process of its."""

JOB_VARIABLE = "PENSTOCK_ENGINE_JOB"
"""The environment variable that carries an `EngineJob` to an engine's processes."""


KEY_VARIABLE = "PENSTOCK_RANK_KEY"
"""The environment variable that carries a rank's key."""

IPC_VARIABLE = "PENSTOCK_MAX_IPC_BYTES"
"""The environment variable that carries the longest frame between a core and a rank."""


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Root of all messages; the class's name travels along."""


class Hello(Message, frozen=True):
    """The first message of every process.

    Attributes:
        key: the secret it was started with.
        part: which process of an engine it is: ``server`` or ``core``; ``rank`` for a rank.
        pid: its process id.
    """

    key: str
    part: str
    pid: int


class RankReady(Message, frozen=True):
    """A rank has made its device context and waits for work.

    Attributes:
        memory_bytes: what is used of its GPU, or what its process holds besides files; see `Device.memory_bytes`.
    """

    memory_bytes: int


class RankFree(Message, frozen=True):
    """A rank has given back what an engine used.

    Attributes:
        engine: whose it was.
        memory_bytes: as in `RankReady`, now.
        reset_s: how long the reset took.
    """

    engine: str
    memory_bytes: int
    reset_s: float


class Phase(Message, frozen=True):
    """Something that takes time is done.

    Attributes:
        engine: for which engine; empty for a rank's own warming up.
        name: such as ``weights``.
        began_s: when it began.
        ended_s: when it ended.
    """

    engine: str
    name: str
    began_s: float
    ended_s: float


class Doing(Message, frozen=True):
    """What an engine's process has begun to do, for whoever waits."""

    what: str


class Running(Message, frozen=True):
    """The engine answers requests."""


class Leaving(Message, frozen=True):
    """The engine was told to end, or ends of its own will; its core will leave without a fault."""


class Failed(Message, frozen=True):
    """The engine cannot start or go on.

    Attributes:
        reason: one line for a person.
        port_taken: somebody else took its port; another one may do.
    """

    reason: str
    port_taken: bool = False


class Done(Message, frozen=True):
    """Answer to `Sleep` and `WakeUp`.

    Attributes:
        number: of the order.
        error: why it failed; empty when it did not.
    """

    number: int
    error: str = ""


class Assign(Message, frozen=True):
    """To a rank: an engine will come.

    Attributes:
        engine: its uuid.
        key: what its engine core will show.
    """

    engine: str
    key: str


class Release(Message, frozen=True):
    """To a rank: the engine is gone, or will not come."""

    engine: str


class Sleep(Message, frozen=True):
    """To an engine's server: free its GPU memory.

    Attributes:
        number: to be named in the answer.
        level: 1 keeps the weights in host memory, 2 forgets them.
    """

    number: int
    level: int


class WakeUp(Message, frozen=True):
    """To an engine's server: take the GPU memory again."""

    number: int


AnyMessage = (
    Hello | RankReady | RankFree | Phase | Doing | Running | Leaving | Failed | Done | Assign | Release | Sleep | WakeUp
)
"""Every message there is."""


class RankAddress(msgspec.Struct, frozen=True):
    """Where a rank of the pool is found.

    Attributes:
        rank: its number in the pool, and its device's index.
        socket: path of its UNIX socket.
    """

    rank: int
    socket: str


class EngineJob(msgspec.Struct, frozen=True):
    """All that an engine's processes need; see `JOB_VARIABLE`.

    Attributes:
        engine: its uuid.
        key: shown to the controller and to the ranks.
        controller: path of the controller's UNIX socket.
        ranks: the pool's ranks that serve it; the position in this list is the rank in the engine.
        rendezvous: path of a file, not there yet, where the ranks' process groups meet, in a folder of this engine's. vLLM
            names shared memory after the file.
        host: address of its HTTP server.
        port: its TCP port.
        args: vLLM engine arguments.
        max_ipc_bytes: the longest frame between core and ranks.
        asked_s: when the engine was asked for.
    """

    engine: str
    key: str
    controller: str
    ranks: tuple[RankAddress, ...]
    rendezvous: str
    host: str
    port: int
    args: dict[str, object]
    max_ipc_bytes: int
    asked_s: float


M = TypeVar("M")
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """Return `message` as it travels."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes | bytearray) -> AnyMessage:
    """Return the message in `data`.

    Raises:
        msgspec.DecodeError: there is none.
    """
    return _decoder.decode(data)


def phase_since(engine: str, name: str, began_s: float) -> Phase:
    """Return the phase that began at `began_s` and ends now."""
    return Phase(engine, name, began_s, time.monotonic())
