"""The decision, on one page: what each worker holds, how busy it is, what the request would cost there, and the choice.

Puts the pure parts together: indexes, fleet, recent choices, policy. Knows no messages, no bus and no clock.
"""

from collections.abc import Container, Mapping

import msgspec

from components.router.cost import NOTHING, Candidate, CostSettings, Overlap, Prompt, price
from components.router.fleet import Fleet
from components.router.kv_index import KvIndex
from components.router.policies.policy import Policy
from components.router.predictions import Predictions
from components.router.recent import RecentChoices

RECENT_TTL_S = 2.0
"""A prompt just routed counts as cached where it went for so long; by then its events are here."""


class Decision(msgspec.Struct, frozen=True):
    """A choice and its reasons.

    Attributes:
        choice: the worker that was chosen, priced; None when there is no worker.
        candidates: every worker that might have been, the choice among them.
    """

    choice: Candidate | None
    candidates: list[Candidate]


class Held(msgspec.Struct, frozen=True):
    """How many leading blocks of one prompt are where.

    Attributes:
        device: on the engines' devices, by worker.
        recent: in what was routed there a moment ago, by worker.
        host: in a slower tier of its own, by worker.
        shared: in LMCache, by store; workers load from their own.
    """

    device: Mapping[str, int]
    recent: Mapping[str, int]
    host: Mapping[str, int]
    shared: Mapping[str, int]

    def holders(self) -> set[str]:
        """Return the workers that have anything of it themselves; most of a large fleet have nothing."""
        return {*self.device, *self.recent, *self.host}

    def by(self, worker: str, store: str) -> Overlap:
        """Return what `worker` can reuse, which shares KV through `store`."""
        tier_blocks = max(self.host.get(worker, 0), self.shared.get(store, 0))
        return Overlap(self.device.get(worker, 0), self.recent.get(worker, 0), tier_blocks)


class Chooser:
    """Chooses workers, and keeps what later choices depend on.

    Attributes:
        device: what the engines hold, by worker.
        host: what each worker can load from a tier of its own (host memory, disk), by worker.
        shared: what LMCache holds, by store: whoever told of it, all workers of that store can load it.
        fleet: who is busy.
        predictions: what requests under way shall load from LMCache.
        loading: workers of whose blocks the index may hold only a part yet, or some that are gone: they count as empty.
    """

    def __init__(self, policy: Policy, block_size: int, settings: CostSettings, max_pairs: int = 20_000_000) -> None:
        """Start with no worker and nothing cached.

        Args:
            policy: picks among the candidates.
            block_size: tokens a block.
            settings: the cost formula's constants.
            max_pairs: most pairs of block and holder in each tier's index.
        """
        self.device = KvIndex(max_pairs)
        self.host = KvIndex(max_pairs)
        self.shared = KvIndex(max_pairs)
        self.fleet = Fleet(settings)
        self.loading: set[str] = set()
        self._recent = RecentChoices(RECENT_TTL_S)
        self.predictions = Predictions()
        self._policy = policy
        self._block_size = block_size
        self._settings = settings

    def explain(self, prompt: Prompt, now_s: float, excluded: Container[str] = ()) -> Decision:
        """Return what would be chosen now; changes nothing.

        Args:
            prompt: the request.
            now_s: monotonic time.
            excluded: workers that must not be chosen: draining, or just failed this request.
        """
        candidates = self.candidates(prompt, self.held(prompt, now_s), excluded)
        return Decision(self.pick(prompt, candidates, now_s), candidates)

    def held(self, prompt: Prompt, now_s: float) -> Held:
        """Return who holds how much of `prompt`: the first step of an explanation."""
        device, host = self.device.overlap(prompt.blocks), self.host.overlap(prompt.blocks)
        for worker in self.loading:
            device.pop(worker, None)
            host.pop(worker, None)
        return Held(
            self._policy.overlap(prompt, device, now_s),
            self._recent.overlap(prompt.blocks, now_s),
            host,
            self.shared.overlap(prompt.blocks),
        )

    def candidates(self, prompt: Prompt, held: Held, excluded: Container[str] = ()) -> list[Candidate]:
        """Return every worker that may be chosen, priced: the second step."""
        size, settings, speed = self._block_size, self._settings, self.fleet.speed
        holders, stores = held.holders(), held.shared
        return [
            price(
                worker,
                prompt,
                size,
                held.by(worker, store) if worker in holders or store in stores else NOTHING,
                load,
                speed(worker),
                settings,
            )
            for worker, store, load in self.fleet.standings(excluded)
        ]

    def pick(self, prompt: Prompt, candidates: list[Candidate], now_s: float) -> Candidate | None:
        """Return the policy's choice, None without candidates: the last step."""
        return self._policy.pick(prompt, candidates, now_s) if candidates else None

    def choose(
        self, request_id: str, prompt: Prompt, now_s: float, deadline_s: float, excluded: Container[str] = ()
    ) -> Decision:
        """Choose, and book the request on the chosen worker.

        Args:
            request_id: unique; a repeated one moves the request.
            prompt: the request.
            now_s: monotonic time.
            deadline_s: when the request is over at the latest, on the same clock.
            excluded: as in `explain`.
        """
        decision = self.explain(prompt, now_s, excluded)
        if decision.choice is not None:
            self.book(request_id, prompt, decision.choice, now_s, deadline_s)
        return decision

    def book(self, request_id: str, prompt: Prompt, choice: Candidate, now_s: float, deadline_s: float) -> None:
        """Book a request on the worker chosen here; arguments as in `choose`."""
        self.note(request_id, prompt, choice.worker, choice.uncached_tokens, now_s, deadline_s, choice.fetch_blocks)

    def note(
        self,
        request_id: str,
        prompt: Prompt,
        worker: str,
        uncached_tokens: int,
        now_s: float,
        deadline_s: float,
        fetch_blocks: int = 0,
    ) -> None:
        """Book a request on `worker`, which another replica chose; arguments as in `choose` and `Candidate`."""
        self.fleet.reserve(
            request_id,
            worker,
            tokens=prompt.tokens,
            uncached_tokens=uncached_tokens,
            fetch_tokens=fetch_blocks * self._block_size,
            now_s=now_s,
            deadline_s=deadline_s,
        )
        self._recent.note(worker, prompt.blocks, now_s)
        self._policy.chosen(prompt, worker, now_s)
        if fetch_blocks and (store := self.fleet.store(worker)):
            reused = min((prompt.tokens - uncached_tokens) // self._block_size, len(prompt.blocks))
            self.predictions.note(request_id, worker, store, prompt.blocks, reused)

    def first_token(self, request_id: str, worker: str, now_s: float, cached_tokens: int | None = None) -> None:
        """Note that a request's prefill is over on `worker`, and learn from it.

        When less was there than predicted, the worker's store has lost it: it is predicted no more, until told again.
        Arguments as in `Fleet.first_token`.
        """
        self.fleet.first_token(request_id, now_s, cached_tokens)
        if cached_tokens is None or cached_tokens < 0:
            self.predictions.forget(request_id)
        elif missing := self.predictions.check(request_id, worker, cached_tokens // self._block_size):
            self.shared.removed(missing.store, missing.blocks, missing.parents)

    def finish(self, request_id: str) -> None:
        """Note that a request has ended, well or not. Unknown ones are ignored."""
        self.fleet.finish(request_id)
        self.predictions.forget(request_id)

    def settle(self) -> None:
        """Do what a choice has put off; changes nothing that can be seen."""
        self._recent.settle()

    def distrust(self, worker: str) -> None:
        """Forget all that `worker` is said to hold: events were lost, or it was reset; no overlap until told anew.

        What a policy remembers by itself stays: no event told it.
        """
        self.device.cleared(worker)
        self.host.cleared(worker)
        self._recent.forget(worker)

    def restarted(self, worker: str) -> None:
        """Forget what went to `worker`: it is another process now. What it told of, the feed has dropped by `distrust`."""
        self._recent.forget(worker)
        self._policy.forget(worker)

    def forget(self, worker: str) -> None:
        """Drop a worker that is gone, and all that is known of it."""
        self.device.forget(worker)
        self.host.forget(worker)
        self._recent.forget(worker)
        self._policy.forget(worker)
        self.fleet.forget(worker)
        self.loading.discard(worker)
