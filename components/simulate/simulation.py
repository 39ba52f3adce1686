"""One run: a trace of requests through the router's own code to a fleet of simulated engines, in virtual time.

Everything that decides is what runs in production: `Chooser` with its policies, index and books, `Feed`, `SimScheduler`.
Only the wire is not there: KV events and notices arrive after a fixed delay, requests and tokens at once, statuses once a
second.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from components.engine.sim_sequence import SimSequence
from components.engine.sim_step import Step
from components.engine.sim_timing import TimingError, load_timing
from components.router.cost import Prompt
from components.router.feed import Feed
from components.router.make import make_chooser
from components.simulate.clock import Clock
from components.simulate.outcome import Outcome
from components.simulate.scenario import Scenario, ScenarioError
from components.simulate.trace import Request
from components.simulate.worker import INCARNATION, MODEL, Worker
from components.wire.block_hash import root_hash
from components.wire.kv import SnapshotChunk

_DEADLINE_S = 3600.0
_STATUS_S = 1.0
_FIRST_OUTPUT_ID = 1 << 31  # what is said differs from all prompts, and from request to request


class _Under(msgspec.Struct):
    """A request under way.

    Attributes:
        number: names it in the router's books.
        arrived_s: when it came.
        ttft_s: how long its first token took; None before.
    """

    number: str
    arrived_s: float
    ttft_s: float | None = None


class Simulation:
    """One scenario's run over a trace."""

    def __init__(
        self, requests: Sequence[Request], scenario: Scenario, progress: Callable[[int], None] = lambda ended: None
    ) -> None:
        """Prepare a fleet for `requests`.

        Args:
            requests: in order of time; at least one.
            scenario: the fleet.
            progress: called now and then with how many requests have ended.

        Raises:
            ScenarioError: the fleet makes no sense, or a request fits none of its engines.
        """
        _check(requests, scenario)
        try:
            timing = load_timing(scenario.timing).faster(scenario.speed)
        except TimingError as error:
            raise ScenarioError(str(error)) from error
        self.outcome = Outcome()
        self._requests = iter(requests)
        self._left = self._all = len(requests)
        self._scenario = scenario
        self._progress = progress
        self._clock = Clock()
        router = msgspec.structs.replace(scenario.router, policy=scenario.policy)
        self._chooser = make_chooser(router, scenario.block_size, random.Random(scenario.seed))
        self._hears_kv = router.wants_kv_events
        self._feed = Feed(self._chooser, "router-0")
        self._root = root_hash(MODEL)
        self._workers = {
            name: Worker(name, scenario, timing, self._clock, self._stepped)
            for name in (f"decode-{number}" for number in range(scenario.workers))
        }
        self._under: dict[SimSequence, _Under] = {}

    def run(self) -> Outcome:
        """Return what came of it."""
        started_s = time.perf_counter()
        self._open()
        self._await(enumerate(self._requests))
        self._clock.run(lambda: not self._left)
        outcome = self.outcome
        for worker in self._workers.values():
            totals = worker.scheduler.totals
            outcome.prompt_tokens += totals.prompt
            outcome.cached_tokens += totals.cached
            outcome.preempted += totals.preempted_sequences
            outcome.busy_s += worker.busy_s
        outcome.workers = len(self._workers)
        outcome.span_s = self._clock.now_s
        outcome.wall_s = time.perf_counter() - started_s
        self._progress(self._all)
        return outcome

    def _open(self) -> None:
        """Have everybody known and trusted before the first request; statuses are spread over a second."""
        for place, worker in enumerate(self._workers.values()):
            self._tell(worker)
            self._clock.at(_STATUS_S * (1 + place / len(self._workers)), partial(self._tell_on, worker))
        for ask in self._feed.due(0.0):
            chunk = SnapshotChunk(
                snapshot_id=ask.snapshot_id, worker=ask.worker, incarnation=INCARNATION, seq=-1, index=0, last=True
            )
            self._feed.chunk(chunk, 0.0)

    def _await(self, coming: Iterator[tuple[int, Request]]) -> None:
        for number, request in coming:
            self._clock.at(request.timestamp / 1000, partial(self._arrive, number, request, coming))
            return

    def _arrive(self, number: int, request: Request, coming: Iterator[tuple[int, Request]]) -> None:
        now_s, size = self._clock.now_s, self._scenario.block_size
        sequence = SimSequence(request.tokens(), request.output_length, lambda: _FIRST_OUTPUT_ID + number, self._root)
        prompt = Prompt(sequence.prompt_hashes(size), sequence.prompt_tokens, request.session)
        choice = self._chooser.choose(str(number), prompt, now_s, now_s + _DEADLINE_S).choice
        if choice is None:
            raise ScenarioError("no worker to choose")
        self.outcome.expected_tokens += (choice.expected_blocks + choice.fetch_blocks) * size
        self._under[sequence] = _Under(str(number), now_s)
        self._workers[choice.worker].add(sequence)
        self._await(coming)

    def _stepped(self, worker: Worker, step: Step) -> None:
        now_s = self._clock.now_s
        later_s = now_s + self._scenario.delay_s
        grown = worker.scheduler.complete(step)
        if self._hears_kv and (batch := worker.batch(step)):
            self._clock.at(later_s, partial(self._feed.batch, batch, later_s))
        for sequence in grown:
            if sequence.output_tokens == 1:
                self._first_token(worker, sequence, later_s)
            if sequence.finished:
                self._finished(sequence, later_s)

    def _first_token(self, worker: Worker, sequence: SimSequence, later_s: float) -> None:
        under = self._under[sequence]
        under.ttft_s = self._clock.now_s - under.arrived_s
        hear = partial(self._chooser.first_token, under.number, worker.name, later_s, sequence.cached_tokens)
        self._clock.at(later_s, hear)

    def _finished(self, sequence: SimSequence, later_s: float) -> None:
        under = self._under.pop(sequence)
        if under.ttft_s is None:
            raise RuntimeError("a request ended before its first token")
        self.outcome.ended(under.ttft_s, self._clock.now_s - under.arrived_s, sequence.output_tokens)
        self._clock.at(later_s, partial(self._chooser.finish, under.number))
        self._left -= 1
        if self._left % 256 == 0:
            self._progress(self._all - self._left)

    def _tell(self, worker: Worker) -> None:
        now_s = self._clock.now_s
        self._chooser.fleet.update(worker.name, INCARNATION, worker.status(""), now_s)
        if self._hears_kv:
            self._feed.listen_to(worker.name, INCARNATION, now_s)

    def _tell_on(self, worker: Worker) -> None:
        self._tell(worker)
        self._chooser.fleet.expire(self._clock.now_s)
        self._clock.at(self._clock.now_s + _STATUS_S, partial(self._tell_on, worker))


def simulate(
    requests: Sequence[Request], scenario: Scenario, progress: Callable[[int], None] = lambda ended: None
) -> Outcome:
    """Return what came of a run; see `Simulation`. The garbage collector rests meanwhile: nothing here is circular."""
    gc.collect()
    gc.disable()
    try:
        return Simulation(requests, scenario, progress).run()
    finally:
        gc.enable()


def _check(requests: Sequence[Request], scenario: Scenario) -> None:
    """Raise what `Simulation` raises."""
    if scenario.workers < 1:
        raise ScenarioError("workers: must be at least 1")
    room = scenario.kv_blocks * scenario.block_size
    longest = max(request.input_length + request.output_length for request in requests)
    if longest > room:
        raise ScenarioError(
            f"kv_blocks: {scenario.kv_blocks} blocks of {scenario.block_size} tokens hold {room} tokens, "
            f"and the longest request of the trace has {longest}"
        )
