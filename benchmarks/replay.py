"""A fleet of simulated engines behind the router's own code, in a virtual clock: what one trace of requests would see.

Everything that decides is what runs in production: `Chooser`, `Feed`, the policies, `SimScheduler`. Only the wire is not
there: KV events and notices arrive after a fixed delay, requests and tokens at once, statuses once a second.
"""

import random
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.replay_worker import INCARNATION, Clock, Setup, Worker
from components.engine.sim_sequence import SimSequence
from components.engine.sim_step import Step
from components.router.chooser import Chooser
from components.router.cost import Prompt
from components.router.feed import Feed
from components.router.policies import make_policy
from components.router.policies.policy import PolicySettings
from components.wire.block_hash import root_hash
from components.wire.kv import SnapshotChunk

TRACE_BLOCK = 512
"""Tokens that one hash id of a trace stands for; the last one's of a prompt may be fewer."""

_DEADLINE_S = 3600.0
_STATUS_S = 1.0
_FIRST_OUTPUT_ID = 1 << 31  # what is said differs from all prompts, and from request to request


class Arrival(msgspec.Struct, frozen=True):
    """One line of a trace in Mooncake's format; `timestamp` in ms, lengths in tokens."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]

    def tokens(self) -> list[int]:
        """Return token ids such that prompts share as many as their hash ids say."""
        return [hash_id for hash_id in self.hash_ids for _ in range(TRACE_BLOCK)][: self.input_length]


class Outcome(msgspec.Struct):
    """What came of a replay; times in seconds.

    Attributes:
        ttft_s: of each request, in the order of their first tokens.
        e2e_s: of each request, in the order of their ends.
        prompt_tokens: of all requests.
        cached_tokens: of these, reused by the engines.
        predicted_tokens: of these, that the router expected to be reused.
        output_tokens: said.
        preempted: how often a request lost its KV memory to another.
        span_s: from the first arrival to the last token.
        wall_s: how long the replay itself took.
    """

    ttft_s: list[float] = []
    e2e_s: list[float] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    predicted_tokens: int = 0
    output_tokens: int = 0
    preempted: int = 0
    span_s: float = 0.0
    wall_s: float = 0.0


class _Request(msgspec.Struct):
    number: str
    arrived_s: float


class Replay:
    """One policy's run over a trace."""

    def __init__(self, arrivals: Sequence[Arrival], speed: float, policy: str, setup: Setup) -> None:
        """Prepare `setup` for `arrivals`, which come `speed` times as fast as recorded."""
        self.outcome = Outcome()
        self._arrivals = iter(arrivals)
        self._start_ms = arrivals[0].timestamp
        self._left = len(arrivals)
        self._speed = speed
        self._setup = setup
        self._clock = Clock()
        self._chooser = Chooser(
            make_policy(policy, PolicySettings(), random.Random(setup.seed)), setup.block_size, setup.costs
        )
        self._feed = Feed(self._chooser, "replay")
        self._root = root_hash("trace")
        self._workers = {
            name: Worker(name, setup, self._clock, self._stepped) for name in (f"decode-{n}" for n in range(setup.workers))
        }
        self._requests: dict[SimSequence, _Request] = {}

    def run(self) -> Outcome:
        """Return what came of it."""
        started_s = time.perf_counter()
        for place, worker in enumerate(self._workers.values()):
            self._tell(worker)
            self._clock.at(_STATUS_S * (1 + place / len(self._workers)), partial(self._tell_on, worker))
        for ask in self._feed.due(0.0):
            chunk = SnapshotChunk(
                snapshot_id=ask.snapshot_id, worker=ask.worker, incarnation=INCARNATION, seq=-1, index=0, last=True
            )
            self._feed.chunk(chunk, 0.0)
        self._await(enumerate(self._arrivals))
        self._clock.run(lambda: not self._left)
        for worker in self._workers.values():
            totals = worker.scheduler.totals
            self.outcome.prompt_tokens += totals.prompt
            self.outcome.cached_tokens += totals.cached
            self.outcome.output_tokens += totals.output
            self.outcome.preempted += totals.preempted_sequences
        self.outcome.span_s = self._clock.now_s
        self.outcome.wall_s = time.perf_counter() - started_s
        return self.outcome

    def _await(self, coming: Iterator[tuple[int, Arrival]]) -> None:
        for number, arrival in coming:
            due_s = (arrival.timestamp - self._start_ms) / 1000 / self._speed
            self._clock.at(due_s, partial(self._arrive, number, arrival, coming))
            return

    def _arrive(self, number: int, arrival: Arrival, coming: Iterator[tuple[int, Arrival]]) -> None:
        now_s, size = self._clock.now_s, self._setup.block_size
        sequence = SimSequence(arrival.tokens(), arrival.output_length, lambda: _FIRST_OUTPUT_ID + number, self._root)
        prompt = Prompt(sequence.hashes(sequence.prompt_tokens // size, size), sequence.prompt_tokens)
        choice = self._chooser.choose(str(number), prompt, now_s, now_s + _DEADLINE_S).choice
        if choice is None:
            raise RuntimeError("no worker to choose")
        self.outcome.predicted_tokens += choice.expected_blocks * size
        self._requests[sequence] = _Request(str(number), now_s)
        self._workers[choice.worker].add(sequence)
        self._await(coming)

    def _stepped(self, worker: Worker, step: Step) -> None:
        later_s, fleet = self._clock.now_s + self._setup.delay_s, self._chooser.fleet
        if step.events:
            self._clock.at(later_s, partial(self._feed.batch, worker.batch(step), later_s))
        for sequence in worker.scheduler.complete(step):
            if sequence.output_tokens == 1:
                request = self._requests[sequence]
                self.outcome.ttft_s.append(self._clock.now_s - request.arrived_s)
                self._clock.at(later_s, partial(fleet.first_token, request.number, later_s))
            if sequence.finished:
                request = self._requests.pop(sequence)
                self.outcome.e2e_s.append(self._clock.now_s - request.arrived_s)
                self._clock.at(later_s, partial(fleet.finish, request.number))
                self._left -= 1

    def _tell(self, worker: Worker) -> None:
        now_s = self._clock.now_s
        self._chooser.fleet.update(worker.name, INCARNATION, worker.status(), now_s)
        self._feed.listen_to(worker.name, INCARNATION, now_s)

    def _tell_on(self, worker: Worker) -> None:
        self._tell(worker)
        self._chooser.fleet.expire(self._clock.now_s)
        self._clock.at(self._clock.now_s + _STATUS_S, partial(self._tell_on, worker))


def read_trace(path: Path, seconds: float | None, requests: int | None) -> list[Arrival]:
    """Return the first requests of a trace: those of its first `seconds`, and at most `requests`."""
    decoder = msgspec.json.Decoder(Arrival)
    arrivals = [decoder.decode(line) for line in path.read_bytes().splitlines() if line]
    end_ms = float("inf") if seconds is None else arrivals[0].timestamp + seconds * 1000
    return [arrival for arrival in arrivals if arrival.timestamp < end_ms][:requests]
