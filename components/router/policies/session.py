"""Session affinity around any policy: a session stays with its worker, unless that costs too much just now.

Each session decides for itself: one hot worker does not end the others' affinity.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.router.cost import Candidate, Prompt
from components.router.policies.policy import Policy, PolicySettings

_MAX_SESSIONS = 100_000


@dataclass(slots=True)
class _Seat:
    """Where a session sits."""

    worker: str
    until_s: float


class Sessions(Policy):
    """The session's worker if it has one that is present and not too busy; else what the inner policy picks."""

    def __init__(self, inner: Policy, settings: PolicySettings) -> None:
        self._inner = inner
        self._ttl_s = settings.session_ttl_s
        self._patience_s = settings.session_patience_s
        self._seats: OrderedDict[str, _Seat] = OrderedDict()  # least recently used first

    def pick(self, prompt: Prompt, candidates: Sequence[Candidate], now_s: float) -> Candidate:
        """Return the session's worker, or another one."""
        choice = self._inner.pick(prompt, candidates, now_s)
        seat = self._seats.get(prompt.session) if prompt.session is not None else None
        if seat is None or seat.until_s <= now_s:
            return choice
        for candidate in candidates:
            if candidate.worker == seat.worker and candidate.cost_s <= choice.cost_s + self._patience_s:
                return candidate
        return choice

    def overlap(self, prompt: Prompt, indexed: Mapping[str, int], now_s: float) -> Mapping[str, int]:
        """Ask the inner policy."""
        return self._inner.overlap(prompt, indexed, now_s)

    def chosen(self, prompt: Prompt, worker: str, now_s: float) -> None:
        """Keep the session there; the least recently used sessions make room."""
        self._inner.chosen(prompt, worker, now_s)
        if prompt.session is None:
            return
        self._seats[prompt.session] = _Seat(worker, now_s + self._ttl_s)
        self._seats.move_to_end(prompt.session)
        oldest = next(iter(self._seats.values()))
        if len(self._seats) > _MAX_SESSIONS or oldest.until_s <= now_s:
            self._seats.popitem(last=False)

    def forget(self, worker: str) -> None:
        """Its sessions stay with it only if it comes back; the inner policy hears of it."""
        self._inner.forget(worker)
