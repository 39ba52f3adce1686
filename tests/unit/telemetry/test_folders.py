"""The folder for a program's sockets: its own, short, and not left behind for long, however the program ends."""

import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.telemetry.folders import socket_folder

PROGRAM = """
import sys
from components.telemetry.folders import socket_folder
with socket_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files whose path is short enough."""
    with tempfile.TemporaryDirectory(prefix="penstock-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@contextmanager
def another_program() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run a program that has a folder for sockets, with one in it."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        (folder / "left").touch()
        yield process, folder


def test_it_is_private_and_goes_with_what_is_in_it(root: Path) -> None:
    """Nobody else may enter; sockets that a library forgot go too."""
    with socket_folder() as folder:
        assert folder.parent == root
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "engine").mkdir()
        (folder / "engine" / "left").touch()
    assert list(root.iterdir()) == []


def test_that_of_a_killed_program_is_removed_by_the_next(root: Path) -> None:
    """It could not do so itself."""
    with another_program() as (process, left):
        process.kill()
    assert left.exists()
    with socket_folder() as folder:
        assert list(root.iterdir()) == [folder]


@pytest.mark.usefixtures("root")
def test_that_of_a_living_program_stays() -> None:
    """Programs come and go beside each other."""
    with another_program() as (_, other), socket_folder():
        assert (other / "left").exists()
    assert not other.exists()


def test_what_only_looks_like_one_stays(root: Path) -> None:
    """A link, or a file, of such a name is somebody else's."""
    (root / "elsewhere").mkdir()
    (root / "penstock-sockets-link").symlink_to(root / "elsewhere")
    (root / "penstock-sockets-file").touch()
    with socket_folder():
        pass
    names = {path.name for path in root.iterdir()}
    assert names == {"elsewhere", "penstock-sockets-link", "penstock-sockets-file"}


def test_its_path_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that of temporary files is not: vLLM's socket in an engine's folder must not be longer than 107 bytes."""
    far = tmp_path / ("deep" * 20)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    with socket_folder() as folder:
        assert len(str(folder / "an-8-key" / "f81d4fae-7dec-11d0-a765-00a0c91e6bf6")) <= 107
