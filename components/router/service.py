"""The router on the bus: answers route queries, takes in events, statuses and notices. The thinking is done in pure files.

Knows messages and the clock; what they mean for a choice stands in `chooser`, `feed` and `roster`.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable

from components.bus.client import Bus, BusError
from components.bus.member import Nothing
from components.graph.schema import RouterSettings
from components.router.answers import entry, left_s, told
from components.router.chooser import Chooser, Decision
from components.router.cost import Candidate, Prompt
from components.router.feed import Feed
from components.router.journal import Entry, Journal
from components.router.metrics import Metrics
from components.router.roster import Roster
from components.wire.errors import InvalidRequestError, ModelNotFoundError, NoWorkerError
from components.wire.kv import KvBatch, SnapshotChunk, SnapshotRequest
from components.wire.messages import ProcessStatus
from components.wire.routing import RouteCandidate, RouteEvent, RouteNotice, RouteReply, RouteRequest, Trust
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

QUEUE = "routers"
_TICK_S = 0.1
_SWEEP_BLOCKS = 20_000
_RETRY_AFTER_S = 1.0
_MAX_EARLY = 4096


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
        self._finished_early: OrderedDict[str, None] = OrderedDict()

    async def listen(self) -> None:
        """From now on hear what goes on."""
        bus, subjects = self._bus, self._subjects
        await bus.subscribe(subjects.every_status(), ProcessStatus, self._on_status)
        if self._hears_kv:
            await bus.subscribe(subjects.every_kv_event(), KvBatch, self._on_batch)
            await bus.subscribe(subjects.kv_chunks(self.name), SnapshotChunk, self._on_chunk)
        await bus.subscribe(subjects.route_notices(), RouteNotice, self._on_notice)
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
        if request.dry_run or self._withdrawn(request.request_id):
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
        return told(candidate, self.feed.trust(candidate.worker))

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
            for index in (self.chooser.device, self.chooser.host):
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

    def _withdrawn(self, request_id: str) -> bool:
        """Return whether the asker gave up before its query came; a later query with this id counts."""
        if request_id not in self._finished_early:
            return False
        del self._finished_early[request_id]
        return True

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
        notice = RouteNotice(
            request.request_id,
            RouteEvent.CHOSEN,
            choice.worker,
            prompt_tokens=request.prompt_tokens,
            uncached_tokens=choice.uncached_tokens,
            deadline_unix_s=request.deadline_unix_s,
            blocks=request.blocks,
            router=self.name,
            session=request.session,
        )
        try:
            await self._bus.publish(self._subjects.route_notices(), notice)
        except BusError as error:
            log.warning("the other routers do not hear of a choice", extra={"error": str(error)})

    async def _on_notice(self, notice: RouteNotice) -> None:
        now_s = time.monotonic()
        fleet = self.chooser.fleet
        if notice.event is RouteEvent.CHOSEN:
            self._on_chosen(notice, now_s)
        elif notice.event is RouteEvent.FIRST_TOKEN:
            fleet.first_token(notice.request_id, now_s)
            if entry := self.journal.find(notice.request_id):
                self._on_first_token(notice, entry)
        else:
            if not fleet.knows(notice.request_id):
                self._finished_early[notice.request_id] = None
                if len(self._finished_early) > _MAX_EARLY:
                    self._finished_early.popitem(last=False)
            fleet.finish(notice.request_id)
            if entry := self.journal.find(notice.request_id):
                entry.finished = True

    def _on_first_token(self, notice: RouteNotice, entry: Entry) -> None:
        """Note how a decision of ours turned out."""
        if notice.ttft_s is not None:
            entry.ttft_ms = notice.ttft_s * 1000
        cached_tokens = notice.cached_tokens
        if entry.cached_tokens is None and cached_tokens is not None and 0 <= cached_tokens <= entry.prompt_tokens:
            entry.cached_tokens = cached_tokens
            self._metrics.reused(entry, cached_tokens)

    def _on_chosen(self, notice: RouteNotice, now_s: float) -> None:
        """Book what another replica chose, unless its end was faster than this notice."""
        if notice.router == self.name or notice.worker not in self.roster.workers:
            return
        prompt = Prompt(notice.blocks, max(notice.prompt_tokens, 0), notice.session)
        deadline_s = now_s + left_s(notice.deadline_unix_s, time.time())
        self.chooser.note(notice.request_id, prompt, notice.worker, max(notice.uncached_tokens, 0), now_s, deadline_s)
        if notice.request_id in self._finished_early:
            del self._finished_early[notice.request_id]
            self.chooser.fleet.finish(notice.request_id)

    async def _on_status(self, status: ProcessStatus) -> None:
        now_s = time.monotonic()
        if self.roster.hear(status, now_s):
            self._forget(status.name, status.state.value)
        present = self.roster.workers.get(status.name)
        if present is not None:
            if self.chooser.fleet.update(status.name, present.incarnation, present.offer, now_s):
                self.chooser.restarted(status.name)
            if self._hears_kv:
                self.feed.listen_to(status.name, present.incarnation, now_s)
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
        now = {worker: self.feed.trust(worker) for worker in self.roster.workers}
        for worker, trust in now.items():
            if self._trust.get(worker) is not trust:
                level = logging.INFO if trust is Trust.EXACT else logging.WARNING
                log.log(level, "trust in KV events", extra={"worker": worker, "trust": trust, "why": self.feed.why(worker)})
        self._trust = now
