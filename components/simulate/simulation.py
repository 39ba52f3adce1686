"""One run: a trace of requests through the router's own code to a fleet of simulated engines, in virtual time.

Everything that decides is what runs in production: `Chooser` with its policies, index and books, `Feed`, the placement of
prompts, `SimScheduler`. Only the wire is not there: KV events, notices and jobs arrive after a fixed delay, requests and
tokens at once, statuses once a second.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from components.engine.sim_sequence import SimSequence
from components.engine.sim_shared import SharedPrompts, capacity_chunks
from components.engine.sim_step import Step
from components.engine.sim_table import ChunkTable, empty_table
from components.engine.sim_timing import Timing, TimingError, load_timing
from components.graph.schema import LMCache
from components.router.cost import Prompt
from components.router.feed import Feed
from components.router.make import make_chooser
from components.simulate.clock import Clock
from components.simulate.outcome import Outcome
from components.simulate.prefill import PrefillPool, RemotePrefill
from components.simulate.scenario import Scenario, ScenarioError
from components.simulate.trace import Request
from components.simulate.worker import INCARNATION, MODEL, Worker
from components.wire.block_hash import root_hash
from components.wire.kv import SnapshotChunk

_STORE = "lmcache-0"
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
        timing = check(requests, scenario)
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
        self._under: dict[SimSequence, _Under] = {}
        chunks = _shared(scenario)
        self._store = _STORE if chunks else ""

        def worker(name: str, stepped: Callable[[Worker, Step], None]) -> Worker:
            return Worker(name, scenario, timing, self._clock, stepped, chunks)

        self._workers = {name: worker(name, self._stepped) for name in _names("decode", scenario.workers)}
        self._pool = PrefillPool(self._clock, scenario.delay_s)
        for name in _names("prefill", scenario.prefill_workers):
            self._pool.hire(worker(name, self._prefill_stepped))
        self._remotes: dict[str, RemotePrefill] = {}
        if chunks and scenario.prefill_workers:
            prompts = SharedPrompts(chunks, scenario.block_size)
            for name, each in self._workers.items():
                self._remotes[name] = RemotePrefill(
                    each, self._pool, prompts, scenario.disagg, self._clock, scenario.block_size
                )

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
        outcome.remote_prefills = sum(remote.prefilled for remote in self._remotes.values())
        outcome.workers = len(self._workers)
        outcome.span_s = self._clock.now_s
        outcome.wall_s = time.perf_counter() - started_s
        self._progress(self._all)
        return outcome

    def _open(self) -> None:
        """Have everybody known and trusted before the first request; statuses are spread over a second."""
        everybody = [*self._workers.values(), *self._pool.workers.values()]
        for place, worker in enumerate(everybody):
            self._tell(worker)
            self._clock.at(_STATUS_S * (1 + place / len(everybody)), partial(self._tell_on, worker))
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
        sequence = self._sequence(number, request, request.output_length)
        prompt = Prompt(sequence.prompt_hashes(size), sequence.prompt_tokens, request.session)
        choice = self._chooser.choose(str(number), prompt, now_s, now_s + _DEADLINE_S).choice
        if choice is None:
            raise ScenarioError("no worker to choose")
        self.outcome.expected_tokens += (choice.expected_blocks + choice.fetch_blocks) * size
        self._under[sequence] = _Under(str(number), now_s)
        if remote := self._remotes.get(choice.worker):
            remote.add(sequence, partial(self._sequence, number, request, 1))
        else:
            self._workers[choice.worker].add(sequence)
        self._await(coming)

    def _sequence(self, number: int, request: Request, max_tokens: int) -> SimSequence:
        return SimSequence(request.tokens(), max_tokens, lambda: _FIRST_OUTPUT_ID + number, self._root)

    def _stepped(self, worker: Worker, step: Step) -> None:
        grown = worker.scheduler.complete(step)
        later_s = self._clock.now_s + self._scenario.delay_s
        self._tell_kv(worker, step, later_s)
        for sequence in grown:
            if sequence.output_tokens == 1:
                self._first_token(worker, sequence, later_s)
            if sequence.finished:
                self._finished(sequence, later_s)

    def _prefill_stepped(self, worker: Worker, step: Step) -> None:
        grown = worker.scheduler.complete(step)
        self._tell_kv(worker, step, self._clock.now_s + self._scenario.delay_s)
        self._pool.stepped(grown)

    def _tell_kv(self, worker: Worker, step: Step | None, later_s: float) -> None:
        batch = worker.batch(step)
        if batch and self._hears_kv:
            self._clock.at(later_s, partial(self._feed.batch, batch, later_s))

    def _first_token(self, worker: Worker, sequence: SimSequence, later_s: float) -> None:
        under = self._under[sequence]
        under.ttft_s = self._clock.now_s - under.arrived_s
        hear = partial(self._chooser.first_token, under.number, worker.name, later_s, sequence.cached_tokens)
        self._clock.at(later_s, hear)
        if remote := self._remotes.get(worker.name):
            remote.first_token(sequence)

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
        """Have the router hear a worker's status; of prefill workers, it minds only what they put into the shared cache."""
        now_s, prefills = self._clock.now_s, worker.name in self._pool.workers
        if not prefills:
            remote = self._remotes.get(worker.name)
            status = worker.status(self._store, remote.waiting if remote else 0)
            self._chooser.fleet.update(worker.name, INCARNATION, status, now_s)
        if self._hears_kv:
            self._feed.listen_to(worker.name, INCARNATION, now_s, self._store, only_shared=prefills)

    def _tell_on(self, worker: Worker) -> None:
        self._tell(worker)
        self._tell_kv(worker, None, self._clock.now_s)
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


def _names(component: str, count: int) -> list[str]:
    return [f"{component}-{number}" for number in range(count)]


def _shared(scenario: Scenario) -> ChunkTable | None:
    """Return an empty shared cache, if there is one."""
    if not scenario.lmcache_gb:
        return None
    settings = LMCache(l1_gb=scenario.lmcache_gb, chunk_tokens=scenario.lmcache_chunk_tokens)
    return ChunkTable(empty_table(capacity_chunks(settings), settings.chunk_tokens))


def check(requests: Sequence[Request], scenario: Scenario) -> Timing:
    """Return the timing of the fleet's engines, once it is clear that it can take all requests.

    Raises:
        ScenarioError: it cannot, or there is no such timing.
    """
    if scenario.workers < 1:
        raise ScenarioError("workers: must be at least 1")
    if scenario.prefill_workers and not scenario.lmcache_gb:
        raise ScenarioError("prefill_workers: decode workers load their KV from LMCache; lmcache_gb must be more than 0")
    if scenario.lmcache_gb and scenario.lmcache_chunk_tokens % scenario.block_size:
        whole = f"must be a multiple of block_size {scenario.block_size}"
        raise ScenarioError(f"lmcache_chunk_tokens: {whole}, not {scenario.lmcache_chunk_tokens}")
    room = scenario.kv_blocks * scenario.block_size
    longest = max(request.input_length + request.output_length for request in requests)
    if longest > room:
        raise ScenarioError(
            f"kv_blocks: {scenario.kv_blocks} blocks of {scenario.block_size} tokens hold {room} tokens, "
            f"and the longest request of the trace has {longest}"
        )
    try:
        return load_timing(scenario.timing).faster(scenario.speed)
    except TimingError as error:
        raise ScenarioError(str(error)) from error
