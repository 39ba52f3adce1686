"""Where penstock's programs keep state, logs and sockets on this machine."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "penstock-sockets-"
_LONGEST_ROOT = 30  # a UNIX socket's path has at most 107 bytes; vLLM's names take 36, ours and the folders' the rest


def state_root() -> Path:
    """Return ``$PENSTOCK_STATE_DIR``, else ``$XDG_STATE_HOME/penstock``, else ``~/.local/state/penstock``."""
    if chosen := os.environ.get("PENSTOCK_STATE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "penstock"


class NoFolderError(Exception):
    """There is no place for sockets; the text says why in one line."""


@contextmanager
def socket_folder() -> Iterator[Path]:
    """Make a folder for the sockets of this program and of all it starts, and remove it in the end, with what they left.

    Its path is short, and only this user may enter. It is locked while this program lives; folders of programs that were
    killed are not, and are removed first.

    Raises:
        NoFolderError: it cannot be made.
    """
    root = Path(tempfile.gettempdir())
    if len(os.fsencode(root)) > _LONGEST_ROOT:
        root = Path("/tmp")  # noqa: S108 the folder in it has a random name and is this user's
    for left in root.glob(f"{_PREFIX}*"):
        _remove_unlocked(left)
    try:
        folder, lock = _make_locked(root)
    except OSError as error:
        raise NoFolderError(
            f"no folder for sockets in {root} (TMPDIR, or /tmp where that is longer than 30 bytes): {error}"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_locked(root: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        with suppress(FileNotFoundError):  # somebody else has just tidied up
            lock = os.open(folder, os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_unlocked(folder: Path) -> None:
    """Remove a folder of this user's that no living program has locked."""
    try:
        lock = os.open(folder, os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # removed meanwhile, or somebody else's
        return
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its program lives, or it cannot be locked here
        pass
    finally:
        os.close(lock)
