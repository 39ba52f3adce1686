"""The controller's end of its processes' connections: who shows a known key is heard, everybody else is sent away."""

import asyncio
import logging
from pathlib import Path
from typing import NoReturn, Protocol

import msgspec

from components.worker_controller.frames import HEAD_BYTES, head, length_in
from components.worker_controller.messages import MAX_MESSAGE_BYTES, AnyMessage, Hello, Message, decode, encode

log = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 5.0
_HELLO_BYTES = 4096


class Link:
    """One connection to a process."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def send(self, message: Message) -> None:
        """Send `message`; to a process that is gone, nothing is sent."""
        data = encode(message)
        if not self._writer.is_closing():
            self._writer.write(head(len(data)) + data)


class Peer(Protocol):
    """Whoever stands behind a key: a rank, or an engine with its two processes."""

    def joined(self, hello: Hello, link: Link) -> None:
        """A process has said hello."""
        ...

    def heard(self, message: AnyMessage) -> None:
        """A process has said something."""
        ...

    def left(self, hello: Hello) -> None:
        """The process that said `hello` is gone."""
        ...


class Hub:
    """Listens on the UNIX socket `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._peers: dict[str, Peer] = {}
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Event] = {}

    async def open(self) -> None:
        """Begin to listen, for this user only."""
        self._server = await asyncio.start_unix_server(self._welcome, self.path)
        self.path.chmod(0o600)

    async def close(self) -> None:
        """Hear nobody any more."""
        if self._server is not None:
            self._server.close()
        for writer, ended in list(self._open.items()):
            writer.close()
            await ended.wait()
        self.path.unlink(missing_ok=True)

    def expect(self, key: str, peer: Peer) -> None:
        """Let processes in that show `key`, for `peer`."""
        self._peers[key] = peer

    def forget(self, key: str) -> None:
        """Let nobody in with `key` any more."""
        self._peers.pop(key, None)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended = self._open[writer] = asyncio.Event()
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                hello = decode(await _read(reader, _HELLO_BYTES))
            # The keys are 32 random bytes that nobody else on this socket of ours has seen: a plain lookup tells nothing.
            peer = self._peers.get(hello.key) if isinstance(hello, Hello) else None
            if peer is not None and isinstance(hello, Hello):
                await _hear(peer, hello, reader, writer)
            log.warning("a process with an unknown key was sent away")
        except (EOFError, OSError, TimeoutError):
            log.debug("a process left")
        except (msgspec.DecodeError, ValueError) as error:
            log.warning("a process was sent away", extra={"why": str(error)[:200]})
        finally:
            writer.close()
            del self._open[writer]
            ended.set()


async def _hear(peer: Peer, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> NoReturn:
    """Pass on what a process says until it is gone."""
    peer.joined(hello, Link(writer))
    try:
        while True:
            peer.heard(decode(await _read(reader, MAX_MESSAGE_BYTES)))
    finally:
        peer.left(hello)


async def _read(reader: asyncio.StreamReader, max_bytes: int) -> bytes:
    """Return the next frame.

    Raises:
        ValueError: it is too long.
        EOFError, OSError: the other side is gone.
    """
    length = length_in(await reader.readexactly(HEAD_BYTES))
    if length > max_bytes:
        raise ValueError(f"a message of {length} bytes, of which {max_bytes} are taken")
    return await reader.readexactly(length)
