"""What the simulated shared cache holds: a table of chunk hashes, in memory or in a file that several processes map.

The table is set-associative, and the longest unused chunk of a set makes room, so it is nearly LRU. Nobody locks it: two
processes that write the same slot lose a chunk, which costs its computation again and nothing else.

A file has one owner, who makes it anew and holds a lock on it while it lives; others map it, and believe it only so long.
"""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_Words = npt.NDArray[np.uint64]

_MAGIC = int.from_bytes(b"penstock")
_VERSION = 1
_MAX_WAYS = 64
_HEADER_WORDS = 8
_CLOCK = 5  # the header's word that counts uses; those before it are the signature
_SHAPE = slice(2, 4)  # its words for sets, and slots a set
_CHUNK_TOKENS = 4  # its word for tokens a chunk
_WORD_BYTES = 8
_SLICE = 4096  # hashes looked up at once, which bounds the memory that takes


class ChunkTable:
    """Hashes of the chunks held.

    The words of its memory, 8 bytes each, in this machine's order: magic, version, sets, slots a set, tokens a chunk, clock,
    two unused; then every slot's hash plus one, zero when it is empty; then when every slot was last used.

    Attributes:
        capacity_chunks: how many there can be.
        chunk_tokens: tokens a chunk.
    """

    def __init__(self, memory: bytearray | mmap.mmap) -> None:
        """Use memory that `empty_table` has laid out."""
        words = np.frombuffer(memory, dtype=np.uint64)
        sets, ways = (int(word) for word in words[_SHAPE])
        self.capacity_chunks = sets * ways
        self.chunk_tokens = int(words[_CHUNK_TOKENS])
        self._clock = words[_CLOCK : _CLOCK + 1]
        self._keys, self._used = words[_HEADER_WORDS:].reshape(2, sets, ways)

    @property
    def chunks(self) -> int:
        """How many are held."""
        return int(np.count_nonzero(self._keys))

    def match(self, hashes: Sequence[int]) -> int:
        """Return how many of `hashes`, from the first on, are held; that uses them."""
        if not hashes:
            return 0
        keys, sets = self._places(hashes)
        slots = self._keys[sets] == keys[:, np.newaxis]
        held = slots.any(axis=1)
        count = len(hashes) if held.all() else int(held.argmin())
        self._used[sets[:count], slots[:count].argmax(axis=1)] = self._times(len(hashes))[:count]
        return count

    def store(self, hashes: Sequence[int]) -> list[int]:
        """Hold `hashes`, the chunks of one prompt in order; return those that are new."""
        if not hashes:
            return []
        keys, sets = self._places(hashes)
        slots = self._keys[sets] == keys[:, np.newaxis]
        held = slots.any(axis=1)
        times = self._times(len(hashes))
        self._used[sets[held], slots[held].argmax(axis=1)] = times[held]
        new = np.flatnonzero(~held)
        for index in new:
            place = sets[index], self._used[sets[index]].argmin()
            self._keys[place] = keys[index]
            self._used[place] = times[index]
        return [hashes[index] for index in new]

    def holds(self, hashes: Sequence[int]) -> list[bool]:
        """Return for each of `hashes` whether it is held; that does not use it."""
        held: list[bool] = []
        for start in range(0, len(hashes), _SLICE):
            keys, sets = self._places(hashes[start : start + _SLICE])
            held += (self._keys[sets] == keys[:, np.newaxis]).any(axis=1).tolist()
        return held

    def clear(self) -> None:
        """Hold nothing."""
        self._keys[:] = 0
        self._used[:] = 0

    def _places(self, hashes: Sequence[int]) -> tuple[_Words, _Words]:
        """Return what stands in the table for `hashes`, and the sets they belong to."""
        keys = np.array(hashes, dtype=np.uint64) + np.uint64(1)
        return keys, keys % np.uint64(len(self._keys))

    def _times(self, count: int) -> _Words:
        """Return when the chunks of one prompt are used: now, its first one last, so that it loses its end first."""
        self._clock += np.uint64(count)
        times: _Words = self._clock - np.arange(count, dtype=np.uint64)
        return times


def empty_table(capacity_chunks: int, chunk_tokens: int) -> bytearray:
    """Return the memory of an empty table.

    Args:
        capacity_chunks: it holds so many, or a few less; at least 1.
        chunk_tokens: tokens a chunk; kept for those who open the table.
    """
    sets, ways = _shape(capacity_chunks)
    header = np.zeros(_HEADER_WORDS, dtype=np.uint64)
    header[:_CLOCK] = _signature(sets, ways, chunk_tokens)
    return bytearray(header.tobytes()) + bytes(_table_bytes(sets, ways) - header.nbytes)


def _shape(capacity_chunks: int) -> tuple[int, int]:
    """Return how many sets of how many slots hold about so many chunks, and no more."""
    sets = -(-capacity_chunks // _MAX_WAYS)
    return sets, capacity_chunks // sets


def _signature(sets: int, ways: int, chunk_tokens: int) -> list[int]:
    return [_MAGIC, _VERSION, sets, ways, chunk_tokens]


def _table_bytes(sets: int, ways: int) -> int:
    return _WORD_BYTES * (_HEADER_WORDS + 2 * sets * ways)


def table_path(graph_part: str, port: int) -> Path:
    """Return where the table of a graph's shared cache lies: in shared memory where there is any.

    Args:
        graph_part: `Graph.part`.
        port: of the server that the table stands for; no two on one machine have the same.
    """
    memory = Path("/dev/shm")  # noqa: S108 made beside it and renamed; opened only when it is this user's
    folder = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    return folder / f"penstock-{os.geteuid()}-{graph_part}-{port}.chunks"


class TableFile:
    """A table's file, open.

    Attributes:
        table: what is in it.
        identity: device and inode.
    """

    def __init__(self, fd: int) -> None:
        """Map the table in the file `fd`, which is this object's from now on."""
        self._fd = fd
        self.identity = _identity(os.fstat(fd))
        self.table = ChunkTable(mmap.mmap(fd, 0))

    def in_place(self, path: Path) -> bool:
        """Return whether this is the file that lies at `path`."""
        try:
            return self.identity == _identity(path.stat(follow_symlinks=False))
        except OSError:
            return False

    def owned(self) -> bool:
        """Return whether the owner lives; for others to ask."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Let go of the file; who owned it does no more."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # the mapping holds a descriptor of its own, and may live a little longer
        os.close(self._fd)


def create_table(path: Path, capacity_chunks: int, chunk_tokens: int) -> TableFile:
    """Put a new, empty table at `path`, in place of what lies there, and own it; see `empty_table`.

    Raises:
        OSError: that is not possible.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode=0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        memory = empty_table(capacity_chunks, chunk_tokens)
        os.posix_fallocate(fd, 0, len(memory))  # later, a lack of room would kill whoever writes
        os.pwrite(fd, memory, 0)
        new.rename(path)  # nobody sees half a table
        return TableFile(fd)
    except OSError:
        os.close(fd)
        new.unlink(missing_ok=True)
        raise


def open_table(path: Path, chunk_tokens: int) -> TableFile | None:
    """Map the table at `path`; None when there is none of this user's, with such chunks, whose owner lives."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    if not _is_table(fd, chunk_tokens):
        os.close(fd)
        return None
    file = TableFile(fd)
    if not file.owned():
        file.close()
        return None
    return file


def _is_table(fd: int, chunk_tokens: int) -> bool:
    """Return whether a file is a table of this user's."""
    stat = os.fstat(fd)
    if stat.st_uid != os.geteuid() or stat.st_size < _WORD_BYTES * _HEADER_WORDS:
        return False
    header = np.frombuffer(os.pread(fd, _WORD_BYTES * _HEADER_WORDS, 0), dtype=np.uint64).tolist()
    sets, ways = header[_SHAPE]
    whole = sets * ways > 0 and stat.st_size == _table_bytes(sets, ways)
    return whole and header[:_CLOCK] == _signature(sets, ways, chunk_tokens)


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
