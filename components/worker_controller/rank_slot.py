"""One rank of the pool as the controller sees it: free, assigned, being reset, being started. No I/O but its link."""

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum

import msgspec

from components.worker_controller.hub import Link
from components.worker_controller.messages import AnyMessage, Assign, Hello, Phase, RankFree, RankReady, Release

OnDeath = Callable[[str], None]


class RankState(StrEnum):
    """What a rank is doing."""

    STARTING = "starting"
    FREE = "free"
    ASSIGNED = "assigned"
    RESETTING = "resetting"


class RankView(msgspec.Struct, frozen=True):
    """A rank in the answer of GET /workers.

    Attributes:
        rank: its number.
        status: see `RankState`.
        assigned_to: uuid of the engine that has it.
        pid: its process; None while there is none.
        memory_bytes: what was used of its GPU, or what its process held besides files, when it last said so.
        warm_memory_bytes: the same, before its first engine.
        engines_served: how many engines this process has had.
        replaced: how many processes this rank has had before.
        last_death: why the one before ended.
    """

    rank: int
    status: RankState
    assigned_to: str | None
    pid: int | None
    memory_bytes: int | None
    warm_memory_bytes: int | None
    engines_served: int
    replaced: int
    last_death: str


class RankSlot:
    """A place in the pool; the process in it changes, the number stays.

    Attributes:
        number: 0, 1, …; on a machine with GPUs the index of its GPU.
        socket: path of the living process's UNIX socket.
        pid: the living process.
        ready: set while a process is warm.
        fate: why the process is about to be killed by us; empty when it dies by itself.
        finished: the last process ended because its engine had, as all do on GPUs; it is nobody's failure.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.socket = ""
        self.pid: int | None = None
        self.ready = asyncio.Event()
        self.fate = ""
        self.finished = False
        self._state = RankState.STARTING
        self._link: Link | None = None
        self._engine: str | None = None
        self._on_death: OnDeath | None = None
        self._on_phase: Callable[[int, Phase], None] | None = None
        self._freed: asyncio.Future[RankFree | None] | None = None
        self._memory_bytes: int | None = None
        self._warm_memory_bytes: int | None = None
        self._served = 0
        self._replaced = 0
        self._last_death = ""

    @property
    def free(self) -> bool:
        """Whether an engine can have it now."""
        return self._state is RankState.FREE

    def joined(self, hello: Hello, link: Link) -> None:
        """The process has connected; see `Peer`."""
        self._link = link

    def left(self, hello: Hello) -> None:
        """The process has disconnected; its death is noticed elsewhere. See `Peer`."""
        self._link = None

    def heard(self, message: AnyMessage) -> None:
        """The process says something; see `Peer`."""
        if isinstance(message, RankReady):
            self._memory_bytes = self._warm_memory_bytes = message.memory_bytes
            self._state = RankState.FREE
            self.ready.set()
        elif isinstance(message, RankFree):
            self._memory_bytes = message.memory_bytes
            if self._freed is not None and not self._freed.done() and message.engine == self._engine:
                self._freed.set_result(message)
        elif isinstance(message, Phase) and self._on_phase is not None:
            self._on_phase(self.number, message)

    def assign(self, engine: str, key: str, on_death: OnDeath, on_phase: Callable[[int, Phase], None]) -> None:
        """Give this free rank to an engine.

        Args:
            engine: its uuid.
            key: what its core will show.
            on_death: called once, with the reason, if the process dies before the rank is released.
            on_phase: hears what the rank does for it.
        """
        self._state = RankState.ASSIGNED
        self._engine = engine
        self._on_death = on_death
        self._on_phase = on_phase
        self._freed = asyncio.get_running_loop().create_future()
        self._served += 1
        if self._link is not None:
            self._link.send(Assign(engine, key))

    async def release(self, engine: str, timeout_s: float) -> int | None:
        """Take this rank back from `engine`, whose processes are gone, and return what memory it still holds beyond its own.

        None: the process has died meanwhile, so that there is nothing to take back.

        Raises:
            TimeoutError: it does not answer.
        """
        if self._engine != engine or self._freed is None:
            return None
        self._state = RankState.RESETTING
        self._on_death = None
        if self._link is not None:
            self._link.send(Release(engine))
        async with asyncio.timeout(timeout_s):
            freed = await asyncio.shield(self._freed)
        if freed is None:
            return None
        return freed.memory_bytes - (self._warm_memory_bytes or 0)

    def become_free(self) -> None:
        """Let the next engine have it."""
        self._engine = self._on_phase = None
        self._state = RankState.FREE

    def begin(self, socket: str) -> None:
        """A new process is about to be started."""
        self.socket = socket
        self.ready.clear()
        self._state = RankState.STARTING

    def died(self, why: str, *, finished: bool = False) -> None:
        """The process is gone; `finished`: because its engine was over."""
        self.finished = finished
        self._last_death = self.fate or why
        self._replaced += 1
        self._served = 0
        self.fate, self.pid, self._link, self._state = "", None, None, RankState.STARTING
        self._memory_bytes = self._warm_memory_bytes = None
        self.ready.clear()
        if self._freed is not None and not self._freed.done():
            self._freed.set_result(None)
        callback, self._on_death, self._on_phase, self._engine = self._on_death, None, None, None
        if callback is not None and not finished:
            callback(f"worker rank {self.number} {self._last_death}")

    def view(self) -> RankView:
        """Return what others may see."""
        return RankView(
            rank=self.number,
            status=self._state,
            assigned_to=self._engine,
            pid=self.pid,
            memory_bytes=self._memory_bytes,
            warm_memory_bytes=self._warm_memory_bytes,
            engines_served=self._served,
            replaced=self._replaced,
            last_death=self._last_death,
        )


def how_it_ended(code: int, began_s: float) -> str:
    """Return how a process ended, for a person."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{how} after {time.monotonic() - began_s:.0f} s"
