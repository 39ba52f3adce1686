"""Who of the in-process workers is still there: the silent ones are asked, those that do not answer are forgotten.

Most workers never beat: LMCache leaves heartbeats off by default. Also keeps the workers' addresses in a file, by which a
controller that was restarted finds those again that would not come by themselves.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

import msgspec

from components.cache_controller.commands import HealthCommand, WorkerFailedError, WorkerSilentError, WorkerUnreachableError
from components.cache_controller.holdings import Trust
from components.cache_controller.limits import Counts, Limits
from components.cache_controller.lmcache_protocol import LMCacheProtocol
from components.cache_controller.reports import WorkerAddress
from components.cache_controller.roster import Instant, Kind, Roster, WorkerKey
from components.cache_controller.workers import Clock, WorkerReports

log = logging.getLogger(__name__)

_TICK_S = 0.25
_ASKED_AT_ONCE = 64


class _Remembered(msgspec.Struct, frozen=True):
    """A worker in the file.

    Attributes:
        registered_unix_s: when it came.
    """

    instance_id: str
    worker_id: int
    ip: str
    port: int
    peer_init_url: str | None
    registered_unix_s: float


@dataclass(frozen=True)
class _Former:
    """A worker that was registered before this controller began.

    Attributes:
        address: who and where.
        registered_unix_s: when it came.
        until_s: on the monotonic clock; it is asked until then.
    """

    address: WorkerAddress
    registered_unix_s: float
    until_s: float


class Liveness:
    """Watches over the workers in `roster`.

    Args:
        roster: who is there.
        reports: forgets and admits workers.
        protocol: asks them.
        limits: how long they may be silent.
        counts: what happened.
        clock: tells the time.
        state_file: where addresses are kept; None keeps none.
    """

    def __init__(
        self,
        roster: Roster,
        reports: WorkerReports,
        protocol: LMCacheProtocol,
        limits: Limits,
        counts: Counts,
        clock: Clock,
        state_file: Path | None,
    ) -> None:
        self._roster = roster
        self._reports = reports
        self._protocol = protocol
        self._timeout_s = limits.worker_timeout_s
        self._counts = counts
        self._clock = clock
        self._state_file = state_file
        self._former = self._remembered()
        self._last_asked_s: dict[WorkerKey, float] = {}
        self._at_once = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def watch(self) -> None:
        """Go on for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                now = self._clock()
                self._drop_dead(now)
                for address in self._to_ask(now):
                    self._last_asked_s[address.key] = now.monotonic_s
                    tasks.create_task(self._ask(address))
                if self._reports.addresses_changed and self._state_file:
                    self._reports.addresses_changed = False
                    await asyncio.to_thread(_write, self._state_file, self._addresses())
                await asyncio.sleep(min(_TICK_S, self._timeout_s / 8))

    def _drop_dead(self, now: Instant) -> None:
        for worker in self._roster.silent(Kind.WORKER, now, self._timeout_s):
            log.warning("a worker is gone", extra={"instance": worker.key.instance_id, "rank": worker.key.worker_id})
            self._counts.timeouts += 1
            self._reports.forget(worker.key)
            self._last_asked_s.pop(worker.key, None)
        self._former = {
            key: each
            for key, each in self._former.items()
            if now.monotonic_s < each.until_s and self._roster.find(key) is None
        }

    def _to_ask(self, now: Instant) -> list[WorkerAddress]:
        silent = self._roster.silent(Kind.WORKER, now, self._timeout_s / 2)
        addresses = [WorkerAddress(worker.key, worker.ip, worker.port, worker.peer_init_url) for worker in silent]
        addresses.extend(each.address for each in self._former.values())
        latest = now.monotonic_s - self._timeout_s / 8
        return [address for address in addresses if self._last_asked_s.get(address.key, latest) <= latest]

    async def _ask(self, address: WorkerAddress) -> None:
        async with self._at_once:
            try:
                await self._protocol.tell(address.ip, address.port, "health", HealthCommand(), self._timeout_s / 4)
            except (WorkerUnreachableError, WorkerSilentError):
                return
            except WorkerFailedError:
                pass  # unwell, but there
        former = self._former.pop(address.key, None)
        now = self._clock()
        if former and self._roster.find(address.key) is None:
            self._reports.admit(address, Instant(former.registered_unix_s, now.monotonic_s), Trust.UNKNOWN)
        self._roster.seen(address.key, now, beat=False)

    def _addresses(self) -> list[_Remembered]:
        workers = [worker for worker in self._roster.everyone() if worker.kind is Kind.WORKER]
        current = [
            _Remembered(*worker.key, worker.ip, worker.port, worker.peer_init_url, worker.registered.unix_s)
            for worker in workers
        ]
        former = [
            _Remembered(*key, each.address.ip, each.address.port, each.address.peer_init_url, each.registered_unix_s)
            for key, each in self._former.items()
        ]
        return current + former

    def _remembered(self) -> dict[WorkerKey, _Former]:
        if self._state_file is None:
            return {}
        try:
            listed = msgspec.json.decode(self._state_file.read_bytes(), type=list[_Remembered])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the workers of before cannot be read", extra={"file": str(self._state_file), "error": str(error)})
            return {}
        until_s = self._clock().monotonic_s + self._timeout_s
        return {
            (key := WorkerKey(each.instance_id, each.worker_id)): _Former(
                WorkerAddress(key, each.ip, each.port, each.peer_init_url), each.registered_unix_s, until_s
            )
            for each in listed
        }


def _write(file: Path, addresses: list[_Remembered]) -> None:
    """Replace the file whole."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(addresses))
        draft.replace(file)
    except OSError as error:
        log.warning("the workers cannot be remembered", extra={"file": str(file), "error": str(error)})
