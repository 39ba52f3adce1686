"""The pool: keeps one warm process a rank alive, lends ranks to engines, takes them back clean or replaces them."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from components.engine.warm import WarmChild, WarmPool, WarmStartError
from components.graph.schema import ControllerSettings
from components.worker_controller.hub import Hub
from components.worker_controller.messages import IPC_VARIABLE, KEY_VARIABLE, Phase, RankAddress
from components.worker_controller.placement import Folders
from components.worker_controller.rank_slot import OnDeath, RankSlot, RankView, how_it_ended
from components.worker_controller.waiting import first

RANK_MODULE = "components.worker_controller.rank_process"


_MAX_PAUSE_S = 10.0

log = logging.getLogger(__name__)


class NoRankError(Exception):
    """Not enough ranks are free, or so many do not exist.

    Attributes:
        ever: whether waiting may help.
    """

    def __init__(self, message: str, *, ever: bool) -> None:
        super().__init__(message)
        self.ever = ever


@dataclass(frozen=True)
class Lease:
    """Ranks lent to one engine, in the order of their places in it."""

    engine: str
    slots: tuple[RankSlot, ...]

    @property
    def numbers(self) -> list[int]:
        """The ranks' numbers."""
        return [slot.number for slot in self.slots]

    @property
    def addresses(self) -> tuple[RankAddress, ...]:
        """Where the ranks are found."""
        return tuple(RankAddress(slot.number, slot.socket) for slot in self.slots)


class Pool:
    """The ranks of one controller.

    Args:
        settings: the controller's.
        warm: what ranks are forked from.
        hub: where they say how they are.
        folders: for their sockets and logs.
        environments: each rank's variables; their number is the pool's size.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        warm: WarmPool,
        hub: Hub,
        folders: Folders,
        environments: list[Mapping[str, str]],
    ) -> None:
        self._settings = settings
        self._warm = warm
        self._hub = hub
        self._folders = folders
        self._environments = environments
        self.slots = tuple(RankSlot(number) for number in range(len(environments)))

    @property
    def ready(self) -> bool:
        """Whether every rank is warm; false again while one is being replaced."""
        return all(slot.ready.is_set() for slot in self.slots)

    def views(self) -> list[RankView]:
        """Return every rank as others may see it."""
        return [slot.view() for slot in self.slots]

    def lend(self, engine: str, count: int, key: str, on_death: OnDeath, on_phase: Callable[[int, Phase], None]) -> Lease:
        """Lend `count` free ranks to `engine`, at once or not at all; see `RankSlot.assign`.

        Raises:
            NoRankError: there are not so many.
        """
        if count > len(self.slots):
            raise NoRankError(f"{count} ranks are needed, and the pool has {len(self.slots)}", ever=False)
        free = [slot for slot in self.slots if slot.free]
        if len(free) < count:
            raise NoRankError(f"{count} ranks are needed, and {len(free)} of {len(self.slots)} are free", ever=True)
        lease = Lease(engine, tuple(free[:count]))
        for slot in lease.slots:
            slot.assign(engine, key, on_death, on_phase)
        return lease

    async def take_back(self, lease: Lease) -> None:
        """Have the ranks of an engine whose processes are gone reset; returns when each is free or being replaced."""
        async with asyncio.TaskGroup() as tasks:
            for slot in lease.slots:
                tasks.create_task(self._take_back(slot, lease.engine))

    async def _take_back(self, slot: RankSlot, engine: str) -> None:
        try:
            left_bytes = await slot.release(engine, self._settings.reset_timeout_s)
        except TimeoutError:
            self._replace(slot, f"did not reset within {self._settings.reset_timeout_s:g} s and was replaced")
            return
        if left_bytes is None:
            if slot.finished:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(slot.ready.wait(), self._settings.reset_timeout_s)
            return
        if left_bytes > self._settings.leak_tolerance_mb * 2**20:
            self._replace(slot, f"kept {left_bytes / 2**20:.0f} MiB after engine {engine} and was replaced")
        else:
            slot.become_free()

    def _replace(self, slot: RankSlot, why: str) -> None:
        log.warning("a rank is replaced", extra={"rank": slot.number, "why": why})
        slot.fate = why
        _kill(slot)

    async def run(self) -> None:
        """Keep every rank alive, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for slot in self.slots:
                tasks.create_task(self._keep(slot))

    async def _keep(self, slot: RankSlot) -> None:
        """Start this rank's process again whenever it ends; at once when it had been warm, else after growing pauses."""
        pause_s = 0.1
        while True:
            was_ready = await self._live(slot)
            pause_s = 0.1 if was_ready else min(pause_s * 2, _MAX_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def _live(self, slot: RankSlot) -> bool:
        """Run one process of a rank from start to end; returns whether it became warm."""
        key = secrets.token_urlsafe(32)
        socket = self._folders.sockets / f"rank-{slot.number}-{key[:6]}"
        slot.begin(str(socket))
        self._hub.expect(key, slot)
        began = time.monotonic()
        why, finished = "", False
        try:
            child = await self._start(slot, socket, key)
            slot.pid = child.pid
            was_ready = await self._watch(slot, child)
            code = await child.wait()
            why, finished = how_it_ended(code, began), code == 0
        except WarmStartError as error:
            was_ready, why = False, str(error)
        finally:
            self._hub.forget(key)
            socket.unlink(missing_ok=True)
        log.warning("a rank ended", extra={"rank": slot.number, "why": slot.fate or why})
        slot.died(why, finished=finished)
        return was_ready

    async def _start(self, slot: RankSlot, socket: Path, key: str) -> WarmChild:
        environment = {
            **self._environments[slot.number],
            KEY_VARIABLE: key,
            IPC_VARIABLE: str(self._settings.max_ipc_bytes),
        }
        argv = [str(slot.number), str(socket), str(self._hub.path)]
        log_file = self._folders.logs / f"rank-{slot.number}.log"
        return await asyncio.to_thread(self._warm.start, RANK_MODULE, argv, environment, log_file)

    async def _watch(self, slot: RankSlot, child: WarmChild) -> bool:
        """Wait until the process is gone; one that is not warm in time is killed. Returns whether it became warm."""
        if await first(slot.ready.wait(), child.wait(), timeout_s=self._settings.warm_timeout_s) is None:
            self._replace(slot, f"was not warm within {self._settings.warm_timeout_s:g} s and was replaced")
        was_ready = slot.ready.is_set()
        if was_ready:
            log.info("a rank is warm", extra={"rank": slot.number, "pid": slot.pid})
        await child.wait()
        return was_ready


def _kill(slot: RankSlot) -> None:
    if slot.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot.pid, signal.SIGKILL)
