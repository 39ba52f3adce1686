"""Who is busy: the router's own bookkeeping of every request, from the choice to its end, corrected by worker status.

A reservation is made at the choice, so that the next choice, an instant later, sees it. It ends with the finish notice, its
deadline, its worker's disappearance or restart, or when the worker's own count says it is gone: nothing leaks when a notice
is lost. Replicas note each other's choices by the same calls.

Knows nothing of blocks or costs. Times are of one monotonic clock, in seconds.
"""

import heapq
from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

from components.router.cost import CostSettings, Load, Speed
from components.router.rate import Rate
from components.wire.process import WorkerStatus

SETTLE_S = 2.0
"""A request younger than this may not be in its worker's status yet."""

_AS_PREDICTED = 0.1  # share of the prompt by which reuse may differ from what was predicted


class Standing(NamedTuple):
    """One worker as a choice sees it.

    Attributes:
        worker: its name.
        store: the LMCache server it shares KV through; empty without one.
        load: how busy it is: our books, or its own word where that is more.
    """

    worker: str
    store: str
    load: Load


@dataclass(slots=True)
class _Reservation:
    """One request, from its choice to its end."""

    worker: str
    tokens: int
    uncached_tokens: int
    fetch_tokens: int
    ahead_tokens: int  # queued on the worker when this one was routed there
    since_s: float
    deadline_s: float
    prefilling: bool = True


@dataclass(slots=True)
class _Book:
    """One worker: what we know of its requests, and what it last told."""

    incarnation: str
    requests: dict[str, _Reservation] = field(default_factory=dict)  # oldest first
    queued_tokens: int = 0  # of requests without a first token
    active_tokens: int = 0  # of all: each is decoded there, or will be
    told_requests: int = 0  # the rest is the worker's word
    store: str = ""
    used_tokens: int = 0
    free_tokens: int = 0
    standing: Standing | None = None  # from all this; None when something has changed since

    def enter(self, entry: _Reservation, sign: int) -> None:
        """Add (1) or take away (-1) what `entry` counts for now."""
        self.standing = None
        self.active_tokens += sign * entry.tokens
        if entry.prefilling:
            self.queued_tokens += sign * entry.uncached_tokens


class Fleet:
    """All known workers and the requests on them."""

    def __init__(self, settings: CostSettings) -> None:
        self._books: dict[str, _Book] = {}
        self._requests: dict[str, _Reservation] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._prefill = Rate(settings.prefill_s_per_token)
        self._fetch = Rate(settings.fetch_s_per_token)
        self._usual = Speed(self._prefill.usual_s, self._fetch.usual_s)

    def update(self, worker: str, incarnation: str, status: WorkerStatus, now_s: float) -> bool:
        """Take a worker's word on itself.

        Args:
            worker: known or new.
            incarnation: of its process; another one than before means that all its requests are gone.
            status: what it tells.
            now_s: now.

        Returns:
            Whether it is new or was restarted: its blocks and anything else known of it are void.
        """
        book = self._books.get(worker)
        fresh = book is None or book.incarnation != incarnation
        if book is None or fresh:
            self.forget(worker)
            book = self._books[worker] = _Book(incarnation)
        told, book.store, book.standing = status.load, status.store, None
        book.told_requests = told.running_requests + told.waiting_requests
        book.used_tokens = round(told.kv_usage * status.kv_blocks) * status.block_size
        book.free_tokens = status.kv_blocks * status.block_size - book.used_tokens
        settled = [request_id for request_id, entry in book.requests.items() if entry.since_s <= now_s - SETTLE_S]
        for request_id in settled[: max(len(settled) - book.told_requests, 0)]:
            self.finish(request_id)
        return fresh

    def forget(self, worker: str) -> None:
        """Drop a worker and all requests on it."""
        if book := self._books.pop(worker, None):
            for request_id in book.requests:
                del self._requests[request_id]
        self._prefill.forget(worker)
        self._fetch.forget(worker)

    def reserve(
        self,
        request_id: str,
        worker: str,
        *,
        tokens: int,
        uncached_tokens: int,
        fetch_tokens: int = 0,
        now_s: float,
        deadline_s: float,
    ) -> None:
        """Note that a request was routed to `worker`; one that is known moves there. An unknown worker is ignored.

        Args:
            request_id: unique.
            worker: the choice.
            tokens: the prompt's length.
            uncached_tokens: of these, to be computed.
            fetch_tokens: of these, to be loaded from a slower tier.
            now_s: now.
            deadline_s: the request is gone by then, whatever we hear.
        """
        self.finish(request_id)
        book = self._books.get(worker)
        if book is None:
            return
        ahead_tokens = book.queued_tokens
        entry = _Reservation(worker, tokens, uncached_tokens, fetch_tokens, ahead_tokens, now_s, deadline_s)
        self._requests[request_id] = book.requests[request_id] = entry
        book.enter(entry, 1)
        heapq.heappush(self._deadlines, (deadline_s, request_id))
        if len(self._deadlines) > 64 + 2 * len(self._requests):
            self._deadlines = [(entry.deadline_s, request_id) for request_id, entry in self._requests.items()]
            heapq.heapify(self._deadlines)

    def first_token(self, request_id: str, now_s: float, cached_tokens: int | None = None) -> None:
        """Note that a request's prefill is over, and learn how long it took.

        Args:
            request_id: unknown ones are ignored.
            now_s: now.
            cached_tokens: of its prompt, what the engine says it had no need to compute; None if it does not say.
        """
        entry = self._requests.get(request_id)
        if entry is None or not entry.prefilling:
            return
        book = self._books[entry.worker]
        book.enter(entry, -1)
        entry.prefilling = False
        book.enter(entry, 1)
        self._learn(entry, now_s - entry.since_s, cached_tokens)

    def _learn(self, entry: _Reservation, ttft_s: float, cached_tokens: int | None) -> None:
        """Learn from a time to first token, each rate from requests that tell of it.

        Loading is learned where it went as predicted and was most of the work: else it would be the small difference of two
        large times. Where the engine had far more than predicted, a prefill worker has computed the prompt: that time, its
        queue included, is what a token costs a request that goes here; who was ahead on this worker did not delay it.
        """
        computed_tokens = entry.uncached_tokens + entry.ahead_tokens
        more_tokens = 0 if cached_tokens is None else cached_tokens - (entry.tokens - entry.uncached_tokens)
        if more_tokens > entry.tokens * _AS_PREDICTED:
            self._prefill.observe(entry.worker, entry.uncached_tokens, ttft_s)
        elif more_tokens < -entry.tokens * _AS_PREDICTED:
            self._prefill.observe(entry.worker, computed_tokens - more_tokens, ttft_s)
        elif not entry.fetch_tokens:
            self._prefill.observe(entry.worker, computed_tokens, ttft_s)
        elif entry.fetch_tokens >= computed_tokens:
            computing_s = computed_tokens * self._prefill.seconds(entry.worker)
            self._fetch.observe(entry.worker, entry.fetch_tokens, ttft_s - computing_s)
        self._usual = Speed(self._prefill.usual_s, self._fetch.usual_s)

    def finish(self, request_id: str) -> None:
        """Note that a request has ended, well or not. Unknown ones are ignored."""
        if entry := self._requests.pop(request_id, None):
            book = self._books[entry.worker]
            del book.requests[request_id]
            book.enter(entry, -1)

    def expire(self, now_s: float) -> int:
        """Drop requests whose deadline is over; return how many there were."""
        before = len(self._requests)
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, request_id = heapq.heappop(self._deadlines)
            entry = self._requests.get(request_id)
            if entry is not None and entry.deadline_s <= now_s:
                self.finish(request_id)
        return before - len(self._requests)

    def workers(self) -> list[str]:
        """Return the names of all known workers, in order of appearance."""
        return list(self._books)

    def store(self, worker: str) -> str:
        """Return the LMCache server a worker shares KV through; empty without one, or if the worker is unknown."""
        book = self._books.get(worker)
        return book.store if book else ""

    def knows(self, request_id: str) -> bool:
        """Return whether a request is on the books."""
        return request_id in self._requests

    def requests(self) -> int:
        """Return how many requests are on the books."""
        return len(self._requests)

    def load(self, worker: str) -> Load:
        """Return how busy a known worker is: our books, or its own word where that is more.

        Raises:
            KeyError: the worker is unknown.
        """
        return self._standing(worker, self._books[worker]).load

    def standings(self, excluded: Container[str] = ()) -> list[Standing]:
        """Return how all known workers stand, in order of appearance, but for those in `excluded`."""
        books = self._books.items()
        return [book.standing or self._standing(name, book) for name, book in books if name not in excluded]

    def _standing(self, worker: str, book: _Book) -> Standing:
        if book.standing is None:
            load = Load(
                requests=max(len(book.requests), book.told_requests),
                queued_tokens=book.queued_tokens,
                active_tokens=max(book.active_tokens, book.used_tokens),
                free_kv_tokens=book.free_tokens,
            )
            book.standing = Standing(worker, book.store, load)
        return book.standing

    def speed(self, worker: str) -> Speed:
        """Return how fast a worker computes and loads, as far as observed."""
        if worker in self._prefill.own_s or worker in self._fetch.own_s:
            return Speed(self._prefill.seconds(worker), self._fetch.seconds(worker))
        return self._usual
