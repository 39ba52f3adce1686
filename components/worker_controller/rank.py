"""A rank's process: warm, without a model, it waits for engines and serves them one after another.

One thread: it waits for the controller, for an engine's core, and for that core's calls, whichever comes first.
Run by the pool as ``python -m components.worker_controller.rank_process RANK SOCKET CONTROLLER``; its key is in the environ.
"""

import contextlib
import gc
import hmac
import logging
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from vllm.platforms import current_platform

from components.telemetry.logs import setup_logging
from components.worker_controller.calls import HELLO_BYTES, NoCallError, unpack_call
from components.worker_controller.device import Device
from components.worker_controller.frames import Frames, StreamClosedError, listen, same_user
from components.worker_controller.messages import (
    IPC_VARIABLE,
    KEY_VARIABLE,
    MAX_MESSAGE_BYTES,
    Assign,
    Hello,
    Message,
    RankFree,
    RankReady,
    Release,
    decode,
    encode,
    phase_since,
)
from components.worker_controller.proxy_executor import ProxyExecutor

_HELLO_TIMEOUT_S = 1.0

log = logging.getLogger(__name__)


class Rank:
    """Serves the engines that the controller assigns.

    Attributes:
        assigned: the engine that has this rank, served or still to come.
    """

    def __init__(self, number: int, socket: Path, controller: Path) -> None:
        self._device = Device(number, on_gpu=not current_platform.is_cpu())
        self._device_index = 0 if current_platform.is_cpu() else number
        self._listener = listen(socket)
        self._max_ipc_bytes = int(os.environ[IPC_VARIABLE])
        self._control = Frames.connect(controller, MAX_MESSAGE_BYTES)
        self._proxy: ProxyExecutor | None = None
        self._calls: Frames | None = None
        self.assigned: Assign | None = None
        gc.collect()
        gc.freeze()
        self._tell(Hello(os.environ.pop(KEY_VARIABLE), "rank", os.getpid()))
        began, ended = self._device.warming_s
        log.info("warm", extra={"device_s": round(ended - began, 3)})
        self._tell(RankReady(self._device.memory_bytes()))

    def run(self) -> NoReturn:
        """Serve until the controller is gone."""
        while True:
            waiting: list[Any] = [self._control, self._listener, *([self._calls] if self._calls else [])]
            ready, _, _ = select.select(waiting, [], [])
            if self._control in ready:
                self._heed(decode(self._control.receive()))
            elif self._listener in ready:
                self._welcome()
            elif self._calls is not None:
                self._serve(self._calls)

    def _heed(self, order: object) -> None:
        match order:
            case Assign():
                self.assigned = order
            case Release(engine) if self.assigned is not None and self.assigned.engine == engine:
                self._end()
            case Release():
                log.debug("the engine was over already")
            case _:
                raise StreamClosedError(f"the controller says {type(order).__name__}")

    def _welcome(self) -> None:
        """Let the assigned engine's core in, and nobody else."""
        sock, _ = self._listener.accept()
        calls = Frames(sock, HELLO_BYTES)
        try:
            hello = msgspec.msgpack.decode(calls.receive(_HELLO_TIMEOUT_S), type=Hello)
        except (StreamClosedError, TimeoutError, msgspec.DecodeError) as error:
            log.warning("a stranger was sent away", extra={"why": str(error)})
            calls.close()
            return
        expected = self.assigned.key if self.assigned else ""
        known = bool(expected) and hmac.compare_digest(hello.key.encode(), expected.encode())
        if not known or self._calls is not None or not same_user(sock, os.getuid()):
            log.warning("a stranger was sent away", extra={"why": "not the assigned engine's core"})
            calls.close()
            return
        calls.set_max_bytes(self._max_ipc_bytes)
        self._calls = calls
        self._proxy = ProxyExecutor(self._device_index, calls, self._tell_phase)

    def _serve(self, calls: Frames) -> None:
        if self._proxy is None:
            raise StreamClosedError("calls without an engine")
        try:
            call = unpack_call(calls.receive())
        except (StreamClosedError, NoCallError) as error:
            log.info("the engine's core left", extra={"why": str(error)})
            self._end()
        else:
            self._proxy.run(call)

    def _end(self) -> None:
        """Give everything back and say so; the engine is over for this rank."""
        assigned, self.assigned = self.assigned, None
        began = time.monotonic()
        proxy, self._proxy = self._proxy, None
        if self._calls is not None:
            self._calls.close()
            self._calls = None
        if proxy is not None and not current_platform.is_cpu():
            # NCCL may not let go of its communicators: never while CUDA graphs that used them exist, and not always without
            # (vLLM 0.26, docs/log.md). A fork of the warm server is there in half a second, with nothing of theirs in it.
            log.info(
                "ending; a fresh process takes this rank's place", extra={"engine": assigned.engine if assigned else ""}
            )
            raise SystemExit(0)
        if proxy is not None:
            with _frozen_imports():
                proxy.close()
            del proxy
        self._device.give_back()
        if assigned is not None:
            self._tell(RankFree(assigned.engine, self._device.memory_bytes(), time.monotonic() - began))

    def _tell_phase(self, name: str, began_s: float) -> None:
        self._tell(phase_since(self.assigned.engine if self.assigned else "", name, began_s))

    def _tell(self, message: Message) -> None:
        self._control.send(encode(message))


@contextlib.contextmanager
def _frozen_imports() -> Iterator[None]:
    """Keep vLLM from unfreezing what was there before the fork: a collection that looks at it copies all of it."""
    unfreeze = gc.unfreeze
    gc.unfreeze = lambda: None
    try:
        yield
    finally:
        gc.unfreeze = unfreeze


def main(argv: list[str]) -> int:
    """Run a rank to its end and return its exit code."""
    number, socket, controller = int(argv[0]), Path(argv[1]), Path(argv[2])
    setup_logging(f"rank-{number}", "info", "text")
    try:
        Rank(number, socket, controller).run()
    except (StreamClosedError, msgspec.DecodeError) as error:
        log.error("the controller is gone", extra={"why": str(error)})  # noqa: TRY400 its end says it all
        return 1
