"""The router on the bus: answers route queries, takes in events, statuses and notices. The thinking is done in pure files.

Knows messages and the clock; what they mean for a choice stands in `chooser`, `feed` and `roster`.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

from components.bus.client import Bus, BusError
from components.bus.member import Nothing
from components.graph.schema import RouterSettings
from components.router.answers import entry, left_s, told
from components.router.chooser import Chooser, Decision
from components.router.cost import Candidate, Prompt
from components.router.feed import Feed
from components.router.journal import Journal
from components.router.metrics import Metrics
from components.router.notices import Notices, chosen
from components.router.roster import Roster
from components.wire.errors import InvalidRequestError, ModelNotFoundError, NoWorkerError
from components.wire.kv import KvBatch, SnapshotChunk, SnapshotRequest
from components.wire.process import ProcessStatus, WorkerRole
from components.wire.routing import RouteCandidate, RouteNotices, RouteReply, RouteRequest, Trust
from components.wire.store_life import StoreLife
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

QUEUE = "routers"
STORE = "lmcache"
"""The component whose processes keep what Tier.SHARED holds."""

_TICK_S = 0.1
_SWEEP_BLOCKS = 20_000
_RETRY_AFTER_S = 1.0


class RouterService:
    """One router replica."""

    def __init__(
        self,
        name: str,
        model: str,
        settings: RouterSettings,
        block_size: int,
        silence_timeout_s: float,
        chooser: Chooser,
        metrics: Metrics,
        bus: Bus,
        subjects: Subjects,
    ) -> None:
        """Prepare, without listening yet.

        Args:
            name: this router's.
            model: the one it routes for.
            settings: the graph's.
            block_size: tokens a block.
            silence_timeout_s: a process not heard of for so long is gone.
            chooser: decides.
            metrics: counts.
            bus: the connection.
            subjects: of the graph.
        """
        self.name = name
        self.model = model
        self.policy = settings.policy
        self.block_size = block_size
        self.chooser = chooser
        self.feed = Feed(chooser, name)
        self._hears_kv = settings.wants_kv_events
        self.roster = Roster(model, name, silence_timeout_s)
        self.journal = Journal()
        self._metrics = metrics
        self._bus = bus
        self._subjects = subjects
        self._trust: dict[str, Trust] = {}
        self._chosen = asyncio.Event()
        self._notices = Notices(name, chooser, self.roster, self.journal, metrics)
        self._stores: dict[str, StoreLife] = {}

    async def listen(self) -> None:
        """From now on hear what goes on."""
        bus, subjects = self._bus, self._subjects
        await bus.subscribe(subjects.every_status(), ProcessStatus, self._on_status)
        if self._hears_kv:
            await bus.subscribe(subjects.every_kv_event(), KvBatch, self._on_batch)
            await bus.subscribe(subjects.kv_chunks(self.name), SnapshotChunk, self._on_chunk)
        await bus.subscribe(subjects.route_notices(), RouteNotices, self._on_notices)
        bus.on_reconnect(self._on_reconnect)
        await bus.publish(subjects.ask_status(), Nothing())

    async def route(self, request: RouteRequest) -> RouteReply:
        """Answer a query, and book the request unless it is a dry run, or withdrawn already.

        Raises:
            InvalidRequestError: its numbers contradict each other.
            ModelNotFoundError: it is for another model.
            NoWorkerError: there is no worker to choose.
        """
        self._check(request)
        prompt = Prompt(request.blocks, request.prompt_tokens, request.session)
        if request.dry_run or self._notices.withdrawn(request.request_id):
            return self._reply(self.explain(prompt, request.excluded), everything=request.dry_run)
        decision = self._decide(request, prompt)
        self._chosen.set()
        if decision.choice is None:
            self._metrics.refused()
        elif not self.roster.alone:
            await self._tell_peers(request, decision.choice)
        return self._reply(decision)

    def explain(self, prompt: Prompt, excluded: Iterable[str] = ()) -> Decision:
        """Return what would be chosen now; changes nothing."""
        return self.chooser.explain(prompt, time.monotonic(), self.roster.draining.union(excluded))

    def told(self, candidate: Candidate) -> RouteCandidate:
        """Return a candidate as it travels."""
        worker = candidate.worker
        return told(candidate, self.feed.trust(worker), self.chooser.fleet.store(worker))

    async def reset(self, worker: str) -> None:
        """Drop what is known of a worker's KV, and ask it anew if the policy goes by its word.

        Raises:
            KeyError: the worker is unknown.
        """
        if self._hears_kv:
            self.feed.reset(worker, "it was reset", time.monotonic())
            await self._ask()
        else:
            self.chooser.restarted(worker)

    async def watch(self) -> None:
        """Do what time asks for: forget who is silent, end what is overdue, free memory, ask for snapshots; for ever."""
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            if self._bus.connected:
                for worker in self.roster.expire(now_s):
                    self._forget(worker, "silent")
            self.chooser.fleet.expire(now_s)
            for index in (self.chooser.device, self.chooser.host, self.chooser.shared):
                index.sweep(_SWEEP_BLOCKS)
            await self._ask()
            if self._hears_kv:
                self._log_trust()

    async def tidy(self) -> None:
        """Do after each answer what choosing has put off; for ever."""
        while True:
            await self._chosen.wait()
            self._chosen.clear()
            await asyncio.sleep(0)  # the answer goes first
            self.chooser.settle()

    def _check(self, request: RouteRequest) -> None:
        if request.model != self.model:
            raise ModelNotFoundError(f"{self.name} routes for {self.model!r}, not {request.model!r}", param="model")
        if request.prompt_tokens < len(request.blocks) * self.block_size:
            raise InvalidRequestError(f"{len(request.blocks)} blocks of {self.block_size} tokens are longer than the prompt")

    def _decide(self, request: RouteRequest, prompt: Prompt) -> Decision:
        """Choose and book, and note how long each phase took."""
        now_s = time.monotonic()
        excluded = self.roster.draining.union(request.excluded) if request.excluded else self.roster.draining
        start_s = time.perf_counter()
        held = self.chooser.held(prompt, now_s)
        looked_up_s = time.perf_counter()
        candidates = self.chooser.candidates(prompt, held, excluded)
        priced_s = time.perf_counter()
        choice = self.chooser.pick(prompt, candidates, now_s)
        if choice is not None:
            self.chooser.book(
                request.request_id, prompt, choice, now_s, now_s + left_s(request.deadline_unix_s, time.time())
            )
        end_s = time.perf_counter()
        self._metrics.lookup_s.observe(looked_up_s - start_s)
        self._metrics.price_s.observe(priced_s - looked_up_s)
        self._metrics.pick_s.observe(end_s - priced_s)
        if choice is not None:
            self._metrics.decided()
            trust = self.feed.trust(choice.worker)
            self.journal.write(entry(request, choice, trust, len(candidates), time.time(), (end_s - start_s) * 1e6))
        return Decision(choice, candidates)

    def _reply(self, decision: Decision, everything: bool = False) -> RouteReply:
        if decision.choice is None:
            raise NoWorkerError("no worker to choose", retry_after_s=_RETRY_AFTER_S)
        candidates = [self.told(candidate) for candidate in decision.candidates] if everything else []
        return RouteReply(self.policy, self.told(decision.choice), candidates, self.name)

    async def _tell_peers(self, request: RouteRequest, choice: Candidate) -> None:
        """Tell the other replicas of a choice, so that they book it too."""
        notices = RouteNotices([chosen(request, choice, self.name)])
        try:
            await self._bus.publish(self._subjects.route_notices(), notices)
        except BusError as error:
            log.warning("the other routers do not hear of a choice", extra={"error": str(error)})

    async def _on_notices(self, told: RouteNotices) -> None:
        now_s = time.monotonic()
        for notice in told.notices:
            self._notices.hear(notice, now_s)

    async def _on_status(self, status: ProcessStatus) -> None:
        now_s = time.monotonic()
        if self.roster.hear(status, now_s):
            self._forget(status.name, status.state.value)
        if status.component == STORE and self._stores.setdefault(status.name, StoreLife()).hear(status, now_s):
            self.feed.store_lost(status.name)  # a silent one's workers withdraw what it held
        if present := self.roster.workers.get(status.name):
            if self.chooser.fleet.update(status.name, present.incarnation, present.offer, now_s):
                self.chooser.restarted(status.name)
        else:
            present = self.roster.prefill_workers.get(status.name)
        if present is not None and self._hears_kv:
            only_shared = present.offer.role is WorkerRole.PREFILL
            self.feed.listen_to(status.name, present.incarnation, now_s, present.offer.store, only_shared=only_shared)
            await self._ask()

    async def _on_batch(self, batch: KvBatch) -> None:
        self.feed.batch(batch, time.monotonic())
        if self.feed.seq(batch.worker) is None:
            await self._ask()
        await asyncio.sleep(0)  # a flood of events must not keep queries waiting

    async def _on_chunk(self, chunk: SnapshotChunk) -> None:
        self.feed.chunk(chunk, time.monotonic())
        await asyncio.sleep(0)

    async def _on_reconnect(self) -> None:
        now_s = time.monotonic()
        self.roster.excuse(now_s)  # events lost meanwhile show as a gap, at each worker's next batch or repeated number
        await self._bus.publish(self._subjects.ask_status(), Nothing())

    async def _ask(self) -> None:
        """Ask for the snapshots that are due."""
        for ask in self.feed.due(time.monotonic()):
            request = SnapshotRequest(ask.snapshot_id, self._subjects.kv_chunks(self.name))
            try:
                await self._bus.publish(self._subjects.kv_snapshot(ask.worker), request)
            except BusError as error:
                log.warning("cannot ask for a snapshot", extra={"worker": ask.worker, "error": str(error)})

    def _forget(self, worker: str, why: str) -> None:
        log.warning("a worker is gone", extra={"worker": worker, "why": why})
        self.chooser.forget(worker)
        self.feed.forget(worker)

    def _log_trust(self) -> None:
        """Write a line when the trust in a worker's events has changed: routing never degrades silently."""
        now = {worker: self.feed.trust(worker) for worker in self.roster.everybody}
        for worker, trust in now.items():
            if self._trust.get(worker) is not trust:
                level = logging.INFO if trust is Trust.EXACT else logging.WARNING
                log.log(level, "trust in KV events", extra={"worker": worker, "trust": trust, "why": self.feed.why(worker)})
        self._trust = now
