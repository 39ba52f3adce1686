"""The worker side of the edge: hears who is there, hands requests out, takes tokens in, and tells workers to stop.

Knows the bus; decides nothing that `fleet` (who is least busy) and `streams` (what was lost) can decide.
"""

import asyncio
import logging
import time

import msgspec

from components.bus.client import Bus, BusError, NoListenerError, NoReplyError
from components.bus.member import Nothing
from components.processor.fleet import Fleet, Worker
from components.processor.streams import Attempt, Inbox, Streams
from components.wire.errors import CancelledError as WorkerCancelledError
from components.wire.errors import NoWorkerError, OverloadedError, WorkerLostError
from components.wire.messages import Cancel, GenerateRequest, TokenBatch
from components.wire.process import ProcessStatus
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 0.25
_LATE_S = 0.5  # a turn later than this may come before tokens and statuses that are here already
_WORD_TIMEOUT_S = 5.0
_LOST_FIRST_S = 3.0  # a worker that died is known to be lost before its silence about a request counts
_RETRY_INTERVAL_S = 0.1
_RETRY_AFTER_S = 1.0
_TRY_ANOTHER = (BusError, NoWorkerError, OverloadedError, WorkerLostError, WorkerCancelledError)


class Workers:
    """All workers this process can reach."""

    def __init__(
        self, bus: Bus, subjects: Subjects, name: str, fleet: Fleet, streams: Streams, silence_timeout_s: float
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._fleet = fleet
        self._streams = streams
        self._silence_timeout_s = silence_timeout_s
        self._word_timeout_s = max(_WORD_TIMEOUT_S, silence_timeout_s + _LOST_FIRST_S)
        self._cancels: dict[str, list[str]] = {}
        self._cancels_wait = asyncio.Event()
        self._numbers = 0
        self.name = name
        self.cancelled = 0

    async def listen(self) -> None:
        """From now on hear statuses and tokens, and ask everybody to tell theirs."""
        await self._bus.subscribe(self._subjects.tokens(self.name), TokenBatch, self._on_tokens)
        await self._bus.subscribe(self._subjects.every_status(), ProcessStatus, self._on_status)
        self._bus.on_reconnect(self._on_reconnect)
        await self._bus.publish(self._subjects.ask_status(), Nothing())

    async def watch(self) -> None:
        """Look for workers and tokens that do not come, for ever."""
        while True:
            due_s = time.monotonic() + _SWEEP_INTERVAL_S
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            now_s = time.monotonic()
            late_s = now_s - due_s
            if self._bus.connected:
                self._forget(self._fleet.expire(now_s, self._silence_timeout_s, late_s))
            if late_s < _LATE_S:
                self._streams.sweep(now_s)
            orphans, self._streams.orphans = self._streams.orphans, {}
            for worker, request_ids in orphans.items():
                self._cancel(worker, request_ids)

    async def send_cancels(self) -> None:
        """Tell workers what nobody waits for any more, for ever."""
        while True:
            await self._cancels_wait.wait()
            self._cancels_wait.clear()
            cancels, self._cancels = self._cancels, {}
            for worker, request_ids in cancels.items():
                self.cancelled += len(request_ids)
                try:
                    await self._bus.publish(self._subjects.cancel(worker), Cancel(request_ids))
                except BusError as error:
                    log.warning("a cancellation is lost", extra={"worker": worker, "error": str(error)})

    def choose(self, avoid: frozenset[str] = frozenset()) -> Worker | None:
        """Return the least busy worker, one of `avoid` only when there is no other; None while nobody can be reached."""
        return self._fleet.choose(avoid) if self._bus.connected else None

    def named(self, name: str) -> Worker | None:
        """Return the worker of this name if it takes new requests."""
        return self._fleet.accepting(name) if self._bus.connected else None

    async def place(
        self, request: GenerateRequest, sequence: int, inbox: Inbox, first: Worker | None, avoid: set[str], wait_s: float
    ) -> Attempt:
        """Give `request` to a worker, and return the attempt; it must be given to `release` later.

        Args:
            request: its id is completed here, unique to each attempt.
            sequence: its number within the client's request.
            inbox: where the tokens go.
            first: the worker to try first.
            avoid: workers to take only when there is no other; those that refuse are added.
            wait_s: how long to wait for a worker when there is none.

        Raises:
            NoWorkerError: no worker takes it.
            PenstockError: a worker refuses it for what it is.
        """
        until_s = time.monotonic() + wait_s
        worker = first or self.choose(frozenset(avoid))
        while True:
            if worker is not None:
                attempt = await self._try(request, sequence, inbox, worker)
                if attempt is not None:
                    return attempt
                avoid.add(worker.name)
            following = self.choose(frozenset(avoid))
            if following is None or following.name in avoid:
                await self._wait_for_change(until_s)
                following = self.choose(frozenset(avoid))
            worker = following

    def release(self, attempt: Attempt) -> None:
        """End `attempt`; its worker is told to stop if it may still be at it. Never waits."""
        attempt.worker.inflight -= 1
        if self._streams.close(attempt):
            self._cancel(attempt.worker.name, [attempt.request_id])

    async def _try(self, request: GenerateRequest, sequence: int, inbox: Inbox, worker: Worker) -> Attempt | None:
        """Give `request` to `worker`; None when it does not take any."""
        self._numbers += 1
        request = msgspec.structs.replace(request, request_id=f"{request.request_id}-{self._numbers}")
        attempt = Attempt(request.request_id, sequence, worker, inbox, time.monotonic())
        self._streams.open(attempt)
        worker.inflight += 1
        taken = False
        try:
            await self._submit(request, attempt)
            taken = True
        except NoListenerError:
            self._fleet.remove(worker)
        except _TRY_ANOTHER as error:
            log.warning("a worker does not take a request", extra={"worker": worker.name, "error": str(error)})
        finally:
            if not taken:
                self.release(attempt)
        return attempt if taken else None

    async def _submit(self, request: GenerateRequest, attempt: Attempt) -> None:
        """Send `request`, and wait until its worker has said a word of it.

        Raises:
            PenstockError, NoListenerError: that it does not take it.
            NoReplyError: nothing for too long.
        """
        forget = await self._bus.submit(self._subjects.generate(attempt.worker.name), request, attempt.settle)
        try:
            async with asyncio.timeout(self._word_timeout_s):
                await attempt.settled.wait()
        except TimeoutError:
            raise NoReplyError(f"no word of it within {self._word_timeout_s:g} s") from None
        finally:
            forget()
        if attempt.refusal is not None:
            raise attempt.refusal

    def _cancel(self, worker: str, request_ids: list[str]) -> None:
        self._cancels.setdefault(worker, []).extend(request_ids)
        self._cancels_wait.set()

    async def _wait_for_change(self, until_s: float) -> None:
        """Wait a moment for a worker to appear; not beyond `until_s`."""
        now_s = time.monotonic()
        if now_s >= until_s:
            raise NoWorkerError("no worker is ready", retry_after_s=_RETRY_AFTER_S)
        await asyncio.sleep(min(_RETRY_INTERVAL_S, until_s - now_s))

    def _forget(self, gone: list[Worker]) -> None:
        for worker in gone:
            log.warning("a worker is gone", extra={"worker": worker.name, "incarnation": worker.incarnation})
            self._streams.lose_worker(worker)

    async def _on_status(self, status: ProcessStatus) -> None:
        self._forget(self._fleet.hear(status, time.monotonic()))

    async def _on_tokens(self, batch: TokenBatch) -> None:
        self._streams.deliver(batch, time.monotonic())

    async def _on_reconnect(self) -> None:
        self._fleet.excuse(time.monotonic())
        await self._bus.publish(self._subjects.ask_status(), Nothing())
