"""Processes forked from the warm server, from the side of whoever starts one. Built on the standard library's fork server.

Added to it: the child gets its starter's environment, standard output and process group, and ends when its starter ends.
Used by the supervisor to start workers, and inside workers as Python's ``spawn`` start method, which vLLM uses for its
inner processes.
"""

import contextlib
import ctypes
import io
import os
import pickle
import re
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from multiprocessing import connection, context, forkserver, reduction, resource_tracker, spawn, util
from multiprocessing.popen_forkserver import Popen as ForkServerPopen
from multiprocessing.popen_spawn_posix import Popen as SpawnPopen
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

set_by_imports: dict[str, str] = {}
"""Environment variables that modules set while the server imported them; its children get them too."""


class Server(NamedTuple):
    """How to reach the warm server: its socket, and the pipe whose open write ends keep it alive."""

    address: str
    alive_fd: int


class Birth(NamedTuple):
    """What a child is given besides its work.

    Attributes:
        environment: replaces the server's.
        group: the process group to join; None for a new one.
        stdout_fd: becomes its standard output.
        stderr_fd: becomes its standard error.
    """

    environment: Mapping[str, str]
    group: int | None
    stdout_fd: int
    stderr_fd: int


class WarmPopen(ForkServerPopen):
    """A child of `server`; the constructor returns once it is forked.

    Raises:
        OSError, EOFError: the server is gone.
    """

    def __init__(self, process: BaseProcess, server: Server, birth: Birth, preparation: Mapping[str, Any]) -> None:
        self._server = server
        self._birth = birth
        self._preparation = preparation
        super().__init__(process)

    def _launch(self, process: BaseProcess) -> None:
        message = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(self._preparation, message)
            reduction.dump(_Newborn(self._birth, process), message)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, data_w = _request_fork(self._server, self._fds)  # type: ignore[attr-defined]
        # The child learns of our end when the last write end of this pipe is closed.
        self.finalizer = util.Finalize(self, util.close_fds, (os.dup(data_w), self.sentinel))  # type: ignore[attr-defined]
        with open(data_w, "wb") as pipe:  # noqa: PTH123 a file descriptor
            pipe.write(message.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)


class WarmProcess(context.SpawnProcess):
    """A `multiprocessing.Process` that is forked from the server which the present process was forked from."""

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:  # noqa: N802 named by the standard library
        if os.fsdecode(spawn.get_executable()) != sys.executable:
            return SpawnPopen(process)  # somebody wants another program, such as numactl
        birth = Birth(dict(os.environ), os.getpgrp(), 1, 2)
        return WarmPopen(process, _own_server(), birth, spawn.get_preparation_data(process.name))

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        threading.Thread(target=_end_with, args=[parent_sentinel], name="watch-parent", daemon=True).start()
        code: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        return code


class WarmContext(context.SpawnContext):
    """What ``multiprocessing.get_context("spawn")`` returns in processes forked from the server."""

    Process = WarmProcess


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Args:
        parent: the starter's process id; when it is gone already, this process exits.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _own_server() -> Server:
    """Return the server this process was forked from; the standard library remembers it."""
    server = forkserver._forkserver
    return Server(server._forkserver_address, server._forkserver_alive_fd)  # type: ignore[attr-defined]


def _request_fork(server: Server, fds: list[int]) -> tuple[int, int]:
    """Ask for a child that inherits `fds`; return where its pid and exit code will be, and where to write its work.

    The protocol is that of `multiprocessing.forkserver.ForkServer.connect_to_new_process`.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server.address)
        status_r, status_w = os.pipe()
        data_r, data_w = os.pipe()
        try:
            reduction.sendfds(client, [data_r, status_w, server.alive_fd, _tracker_fd(), *fds])
        except OSError:
            os.close(status_r)
            os.close(data_w)
            raise
        finally:
            os.close(data_r)
            os.close(status_w)
    return status_r, data_w


def _tracker_fd() -> int:
    """Return the way to the process that frees shared memory and semaphores after their users; starts it if need be."""
    fd = resource_tracker.getfd()
    if fd is None:
        raise OSError("Python's resource tracker did not start")
    return fd


class _Newborn:
    """Pickles a process so that the child is given its birth before anything of its work is unpickled."""

    def __init__(self, birth: Birth, process: BaseProcess) -> None:
        self._birth = birth
        self._process = process

    def __reduce__(self) -> tuple[Any, ...]:
        stdout, stderr = (reduction.DupFd(fd) for fd in (self._birth.stdout_fd, self._birth.stderr_fd))
        work = bytes(reduction.ForkingPickler.dumps(self._process))
        return _be_born, (dict(self._birth.environment), self._birth.group, stdout, stderr, work)


def _be_born(environment: dict[str, str], group: int | None, stdout: Any, stderr: Any, work: bytes) -> Any:
    """Run in the child: take on what it was given, and return its work."""
    os.environ.clear()
    os.environ.update({**set_by_imports, **environment})
    if group is not None:
        with contextlib.suppress(PermissionError, ProcessLookupError):  # the starter is gone; `_end_with` will notice
            os.setpgid(0, group)
    for inherited, fd in ((stdout.detach(), 1), (stderr.detach(), 2)):
        os.dup2(inherited, fd)
        os.close(inherited)
    _heed_openmp(environment)
    return pickle.loads(work)  # noqa: S301 from our starter, over a pipe


def _heed_openmp(environment: Mapping[str, str]) -> None:
    """Do what the OpenMP library, loaded before the fork, did not read: thread count, and the cores to run on."""
    if "torch" not in sys.modules:
        return
    if (threads := environment.get("OMP_NUM_THREADS", "")).isdecimal():
        sys.modules["torch"].set_num_threads(int(threads))
    cores = environment.get("OMP_PLACES") or environment.get("GOMP_CPU_AFFINITY") or ""
    if re.fullmatch(r"\{?\d+(?:[, ]\d+)*\}?", cores):
        os.sched_setaffinity(0, {int(core) for core in re.findall(r"\d+", cores)})


def _end_with(parent_sentinel: int) -> None:
    """Kill this process as soon as the one that started it is gone."""
    connection.wait([parent_sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
