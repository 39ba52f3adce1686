"""Warm start: one server process imports vLLM, and every vLLM process of a graph is forked from it.

This is the supervisor's side. `warm_server` is the server's program, `warm_process` the way to fork from it. Knows
nothing of vLLM.
"""

import asyncio
import contextlib
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from components.engine.warm_process import Birth, Server, WarmPopen, WarmProcess

SERVER_MODULE = "components.engine.warm_server"
VLLM_MODULES = "components.engine.warm_modules"


class WarmStartError(Exception):
    """The server ended before it could fork; the text says so in one line."""


class WarmChild:
    """A process forked from the server, leader of its own process group."""

    def __init__(self, popen: WarmPopen) -> None:
        self._popen = popen
        self._exit: asyncio.Future[int] | None = None

    @property
    def pid(self) -> int:
        """Its process id, which is its group's id too."""
        return int(self._popen.pid)

    async def wait(self) -> int:
        """Return its exit code once it is gone; negative for a signal. Its inner processes are gone by then, too."""
        if self._exit is None:
            loop = asyncio.get_running_loop()
            self._exit = loop.create_future()
            loop.add_reader(self._popen.sentinel, self._ended)
        return await asyncio.shield(self._exit)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._popen.sentinel)
        try:
            code = forkserver.read_signed(self._popen.sentinel)
        except EOFError:  # the server died, and the kernel killed its children
            code = -signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._exit is not None and not self._exit.done():
            self._exit.set_result(code)


class WarmPool:
    """Owns the server.

    Args:
        environment: the server's variables; those of the children are given at their start.
        preload: modules to import besides vLLM's, such as the children's own.
        log: the server's output is appended to it; by default it is dropped.
        sockets: where the server's socket is made; by default among the temporary files.
        vllm: whether to import vLLM.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        preload: Sequence[str] = (),
        log: Path | None = None,
        *,
        sockets: Path | None = None,
        vllm: bool = True,
    ) -> None:
        self._environment = dict(environment)
        self._preload = (*preload, VLLM_MODULES) if vllm else tuple(preload)
        self._log = log
        self._sockets = sockets
        self._process: subprocess.Popen[bytes] | None = None
        self._server: Server | None = None
        # The kernel ends the server with the thread that started it, so that thread lives as long as the pool.
        self._thread = ThreadPoolExecutor(1, "warm-pool")

    def open(self) -> None:
        """Start the server; returns at once, its imports go on in the background."""
        self._thread.submit(self._launch).result()

    def start(self, module: str, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> WarmChild:
        """Fork a child that runs ``python -m module argv``; blocks until it is forked, so until all is imported.

        A server that has died since the last call is started again.

        Args:
            module: a module or package that can be run.
            argv: its arguments.
            environment: the child's variables. Those read when a library is loaded have no effect.
            log: the child's output is appended to it.

        Raises:
            WarmStartError: the server ended before it could fork.
        """
        return self._thread.submit(self._start, module, argv, environment, log).result()

    def close(self) -> None:
        """End the server and all its children, now."""
        if self._process is not None:
            self._process.kill()
        self._thread.submit(self._clear).result()
        self._thread.shutdown()

    def _start(self, module: str, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> WarmChild:
        server = self._server
        if server is None or self._process is None or self._process.poll() is not None:
            self._clear()
            server = self._launch()
        process = WarmProcess(target=_run_module, args=(module, list(argv)), name=module)
        with log.open("ab") as output:
            birth = Birth(environment, None, output.fileno(), output.fileno())
            try:
                return WarmChild(WarmPopen(process, server, birth, {"name": module}))
            except (OSError, EOFError) as error:
                raise WarmStartError("the warm server ended before it could fork a process") from error

    def _launch(self) -> Server:
        """Start the server's program; it inherits a listening socket and the read end of its lifeline."""
        folder = Path(tempfile.mkdtemp(prefix="penstock-warm-", dir=self._sockets))  # only this user may enter
        address = folder / "socket"
        alive_r, alive_w = os.pipe()
        with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
            listener.bind(str(address))
            listener.listen()
            output: Any = stack.enter_context(self._log.open("ab")) if self._log else subprocess.DEVNULL
            arguments = [str(os.getpid()), str(listener.fileno()), str(alive_r), *self._preload]
            self._process = subprocess.Popen(
                [sys.executable, "-m", SERVER_MODULE, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno(), alive_r],
            )
        os.close(alive_r)
        self._server = Server(str(address), alive_w)
        return self._server

    def _clear(self) -> None:
        """Remove what a server leaves behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._server is not None:
            os.close(self._server.alive_fd)
            shutil.rmtree(Path(self._server.address).parent, ignore_errors=True)
            self._server = None


def _run_module(module: str, argv: list[str]) -> None:
    """Run in the child: what ``python -m module argv`` does."""
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
