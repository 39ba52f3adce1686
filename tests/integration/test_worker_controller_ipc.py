"""A rank's process, spoken to as its controller and an engine's core would, and worse: nonsense costs it only time."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from components.worker_controller.calls import HELLO_BYTES, Call, pack, unpack_answer
from components.worker_controller.frames import Frames, StreamClosedError, head, listen
from components.worker_controller.messages import (
    IPC_VARIABLE,
    KEY_VARIABLE,
    MAX_MESSAGE_BYTES,
    Assign,
    Hello,
    RankFree,
    RankReady,
    Release,
    decode,
    encode,
)

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]

_MAX_IPC_BYTES = 1 << 20


@dataclass
class Rank:
    """A running rank.

    Attributes:
        process: its process.
        control: the controller's end of its stream.
        socket: where cores come in.
    """

    process: subprocess.Popen[bytes]
    control: Frames
    socket: Path

    def core(self, engine: str) -> Frames:
        """Give it to an engine, and connect as that engine's core."""
        self.control.send(encode(Assign(engine, f"key of {engine}")))
        calls = Frames.connect(self.socket, _MAX_IPC_BYTES)
        calls.send(encode(Hello(f"key of {engine}", "core", os.getpid())))
        calls.send(pack(Call("no such method", (), {}, answered=True)))
        assert not unpack_answer(calls.receive(30)).ok  # it is let in, and its mistakes are answered
        return calls

    def frees(self, engine: str) -> None:
        """Expect it to give back what the engine had, unasked, and to go on."""
        freed = decode(self.control.receive(30))
        assert isinstance(freed, RankFree), freed
        assert freed.engine == engine
        assert self.process.poll() is None


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rank]:
    """One rank, whose controller is this test."""
    folder = tmp_path_factory.mktemp("rank")
    with listen(folder / "controller") as listener:
        argv = [sys.executable, "-m", "components.worker_controller.rank_process", "0"]
        argv += [str(folder / "rank"), str(folder / "controller")]
        environment = {**os.environ, KEY_VARIABLE: "its key", IPC_VARIABLE: str(_MAX_IPC_BYTES)}
        with subprocess.Popen(argv, env=environment) as process:
            listener.settimeout(90)
            sock, _ = listener.accept()
            control = Frames(sock, MAX_MESSAGE_BYTES)
            assert decode(control.receive(30)) == Hello("its key", "rank", process.pid)
            assert isinstance(decode(control.receive(30)), RankReady)
            yield Rank(process, control, folder / "rank")
            control.close()
            assert process.wait(30) == 1, "without its controller it ends"


@pytest.mark.parametrize(
    "data",
    [
        head(5) + b"hello",
        head(_MAX_IPC_BYTES + 1),
        b"\xff" * 8,
        head(1000) + b"half of it",
        head(30) + b"\x80\x05\x95" + bytes(27),
        msgspec.msgpack.encode({"type": "Hello"}),
        b"",
    ],
    ids=["no call", "too long", "longest", "half a frame", "half a pickle", "another protocol", "nothing"],
)
def test_a_core_that_sends_nonsense_has_left(rank: Rank, data: bytes) -> None:
    """Even one that has shown its key; the rank is free at once, and works for the next."""
    calls = rank.core("doubtful")
    calls._sock.sendall(data)
    if not data.startswith((head(5), head(_MAX_IPC_BYTES + 1), b"\xff", head(30))):
        calls.close()
    rank.frees("doubtful")
    calls.close()
    rank.control.send(encode(Release("doubtful")))
    rank.core("decent").close()
    rank.frees("decent")


def test_nobody_else_gets_in(rank: Rank) -> None:
    """A wrong key, a second core, a first frame that is too long: each is sent away, and the engine goes on."""
    calls = rank.core("mine")
    for hello in (encode(Hello("key of another", "core", 1)), encode(Hello("key of mine", "core", 1)), bytes(HELLO_BYTES)):
        stranger = Frames.connect(rank.socket, _MAX_IPC_BYTES)
        stranger.send(hello + bytes(HELLO_BYTES if hello == bytes(HELLO_BYTES) else 0))
        with pytest.raises(StreamClosedError):
            stranger.receive(30)
    with socket.socket(socket.AF_UNIX) as silent:  # it costs the rank a second, not more
        silent.connect(str(rank.socket))
        calls.send(pack(Call("no such method", (), {}, answered=True)))
        assert not unpack_answer(calls.receive(30)).ok
    calls.close()
    rank.frees("mine")
