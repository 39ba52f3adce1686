"""What all routers are told of requests under way, and what it changes in this one's books. Told the time."""

import time
from collections import OrderedDict

from components.router.answers import left_s
from components.router.chooser import Chooser
from components.router.cost import Candidate, Prompt
from components.router.journal import Journal
from components.router.metrics import Metrics
from components.router.roster import Roster
from components.wire.routing import RouteEvent, RouteNotice, RouteRequest

_MAX_EARLY = 4096


class Notices:
    """One router's ear for them."""

    def __init__(self, name: str, chooser: Chooser, roster: Roster, journal: Journal, metrics: Metrics) -> None:
        """Hear nothing yet.

        Args:
            name: this router's; what it chose itself is booked already.
            chooser: keeps the books.
            roster: who is there.
            journal: this router's own decisions.
            metrics: counts how they turned out.
        """
        self._name = name
        self._chooser = chooser
        self._roster = roster
        self._journal = journal
        self._metrics = metrics
        self._finished_early: OrderedDict[str, None] = OrderedDict()

    def withdrawn(self, request_id: str) -> bool:
        """Return whether the asker gave up before its query came; a later query with this id counts."""
        if request_id not in self._finished_early:
            return False
        del self._finished_early[request_id]
        return True

    def hear(self, notice: RouteNotice, now_s: float) -> None:
        """Take in a notice."""
        if notice.event is RouteEvent.CHOSEN:
            self._chosen(notice, now_s)
        elif notice.event is RouteEvent.FIRST_TOKEN:
            self._first_token(notice, now_s)
        else:
            self._finished(notice)

    def _chosen(self, notice: RouteNotice, now_s: float) -> None:
        """Book what another replica chose, unless its end was faster than this notice."""
        if notice.router == self._name or notice.worker not in self._roster.workers:
            return
        prompt = Prompt(notice.blocks, max(notice.prompt_tokens, 0), notice.session)
        deadline_s = now_s + left_s(notice.deadline_unix_s, time.time())
        uncached_tokens, fetch_blocks = max(notice.uncached_tokens, 0), max(notice.fetch_blocks, 0)
        self._chooser.note(notice.request_id, prompt, notice.worker, uncached_tokens, now_s, deadline_s, fetch_blocks)
        if self.withdrawn(notice.request_id):
            self._chooser.finish(notice.request_id)

    def _first_token(self, notice: RouteNotice, now_s: float) -> None:
        """Learn from a request's first token, and note how a decision of ours turned out."""
        cached_tokens = notice.cached_tokens
        self._chooser.first_token(notice.request_id, notice.worker, now_s, cached_tokens)
        entry = self._journal.find(notice.request_id)
        if entry is None:
            return
        if notice.ttft_s is not None:
            entry.ttft_ms = notice.ttft_s * 1000
        if entry.cached_tokens is None and cached_tokens is not None and 0 <= cached_tokens <= entry.prompt_tokens:
            entry.cached_tokens = cached_tokens
            self._metrics.reused(entry, cached_tokens)

    def _finished(self, notice: RouteNotice) -> None:
        if not self._chooser.fleet.knows(notice.request_id):
            self._finished_early[notice.request_id] = None
            if len(self._finished_early) > _MAX_EARLY:
                self._finished_early.popitem(last=False)
        self._chooser.finish(notice.request_id)
        if entry := self._journal.find(notice.request_id):
            entry.finished = True


def chosen(request: RouteRequest, choice: Candidate, router: str) -> RouteNotice:
    """Return the notice by which the other replicas book a choice of `router` too."""
    return RouteNotice(
        request.request_id,
        RouteEvent.CHOSEN,
        choice.worker,
        prompt_tokens=request.prompt_tokens,
        uncached_tokens=choice.uncached_tokens,
        fetch_blocks=choice.fetch_blocks,
        deadline_unix_s=request.deadline_unix_s,
        blocks=request.blocks,
        router=router,
        session=request.session,
    )
