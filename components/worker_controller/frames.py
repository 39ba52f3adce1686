"""Frames on a UNIX stream socket, for processes without an event loop: eight bytes of length, then as many bytes.

Knows nothing of what the bytes mean. Whoever gets nonsense, or more than was agreed on, closes the connection.
"""

import contextlib
import select
import socket
import struct
from pathlib import Path

_HEAD = struct.Struct("!Q")
_CHUNK_BYTES = 1 << 20


class StreamClosedError(Exception):
    """The other side is gone, or sent what is no frame."""


class FrameTooLongError(Exception):
    """What was to be sent is more than the other side takes; nothing of it was sent."""


def head(length: int) -> bytes:
    """Return what goes before `length` bytes."""
    return _HEAD.pack(length)


def length_in(data: bytes | bytearray) -> int:
    """Return the length that eight bytes announce."""
    length: int = _HEAD.unpack(data)[0]
    return length


HEAD_BYTES = _HEAD.size


class Frames:
    """Frames over a connected socket.

    Args:
        sock: blocking, of type SOCK_STREAM; belongs to this object from now on.
        max_bytes: the longest frame to take, and to send: both sides agree on it.
    """

    def __init__(self, sock: socket.socket, max_bytes: int) -> None:
        self._sock = sock
        self._max_bytes = max_bytes

    @classmethod
    def connect(cls, path: Path, max_bytes: int, timeout_s: float = 10.0) -> "Frames":
        """Connect to the UNIX socket `path`.

        Raises:
            StreamClosedError: nobody listens.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            sock.settimeout(None)
        except OSError as error:
            sock.close()
            raise StreamClosedError(f"nobody listens at {path}") from error
        return cls(sock, max_bytes)

    def fileno(self) -> int:
        """Return the socket's file descriptor, for select and poll."""
        return self._sock.fileno()

    def set_max_bytes(self, max_bytes: int) -> None:
        """Take longer or shorter frames from now on."""
        self._max_bytes = max_bytes

    def send(self, *parts: bytes | memoryview) -> None:
        """Send one frame made of `parts`; blocks until the kernel has it.

        Raises:
            StreamClosedError: the other side is gone.
            FrameTooLongError: it would be refused.
        """
        length = sum(memoryview(part).nbytes for part in parts)
        if length > self._max_bytes:
            raise FrameTooLongError(f"a message of {length} bytes, of which {self._max_bytes} are taken (max_ipc_bytes)")
        try:
            if length < _CHUNK_BYTES:
                self._sock.sendall(b"".join((head(length), *parts)))
                return
            self._sock.sendall(head(length))
            for part in parts:
                self._sock.sendall(part)
        except OSError as error:
            raise StreamClosedError("the other side is gone") from error

    def receive(self, timeout_s: float | None = None) -> bytearray:
        """Return the next frame.

        Args:
            timeout_s: how long to wait for it and for each further piece of it; None waits for ever.

        Raises:
            TimeoutError: it did not come in time; the stream is of no use any more if a part of it did.
            StreamClosedError: the other side is gone, or announces a frame that is too long.
        """
        self._sock.settimeout(timeout_s)
        try:
            length = length_in(self._exactly(HEAD_BYTES))
            if length > self._max_bytes:
                raise StreamClosedError(f"a frame of {length} bytes, of which {self._max_bytes} are taken")
            return self._exactly(length)
        except TimeoutError:
            raise
        except OSError as error:
            raise StreamClosedError("the other side is gone") from error
        finally:
            if self._sock.fileno() >= 0:
                self._sock.settimeout(None)

    def _exactly(self, count: int) -> bytearray:
        data = bytearray()
        while len(data) < count:
            piece = self._sock.recv(min(count - len(data), _CHUNK_BYTES))
            if not piece:
                raise StreamClosedError("the other side is gone")
            data += piece
        return data

    def wait_closed(self) -> None:
        """Wait until the other side is gone, reading nothing; another thread may receive meanwhile."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        poll.poll()

    def close(self) -> None:
        """Disconnect; a thread in `wait_closed` returns."""
        with contextlib.suppress(OSError):  # it is disconnected already
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def listen(path: Path) -> socket.socket:
    """Return a listening UNIX socket at `path`, for this user only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(16)
    return listener


def same_user(sock: socket.socket, uid: int) -> bool:
    """Return whether the process at the other end of a UNIX socket runs as `uid`."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", data)[1] == uid)
