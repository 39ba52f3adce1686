"""Traffic made up: prefix trees, sessions and bursts, as requests of a trace. Deterministic by its seed.

Lengths are drawn from exponential distributions around their means: most are short, some are long, as recorded ones are.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from enum import StrEnum

import msgspec

from components.simulate.trace import TRACE_BLOCK_TOKENS, Request

_BRANCHES = 8  # of each node of a prefix tree
_DEPTH = 3  # levels that prompts share
_TEMPLATES = 16  # beginnings that sessions share
_MEAN_TURNS = 4.0
_THINKING_S = 20.0  # mean pause between an answer's end, as a trace can know it, and the next turn
_BURST_EVERY_S = 30.0
_BURST_S = 2.0
_BURST_SHARE = 0.5  # of all requests
_LONGEST = 8.0  # times the mean: what is drawn longer is cut


class Kind(StrEnum):
    """What the traffic is like."""

    PREFIXES = "prefixes"
    SESSIONS = "sessions"
    BURSTS = "bursts"


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What to make.

    Attributes:
        kind: prefixes: prompts are paths through a tree, some more popular; sessions: each turn's prompt is all that was
            said before and something new; bursts: half of the requests come in bursts of one new prefix each.
        requests: how many.
        rate: a second, on average.
        input_tokens: of a prompt, on average; of a session's first.
        output_tokens: of an answer, on average.
        seed: of all chance.
    """

    kind: Kind
    requests: int
    rate: float
    input_tokens: int = 4000
    output_tokens: int = 200
    seed: int = 0


def generate(traffic: Traffic) -> list[Request]:
    """Return the requests, in order of time."""
    source = _SOURCES[traffic.kind](traffic, random.Random(traffic.seed))
    return list(itertools.islice(source, traffic.requests))


class _Ids:
    """Hash ids that nobody has had."""

    def __init__(self) -> None:
        self._next = itertools.count()

    def new(self, tokens: int) -> list[int]:
        """Return ids for so many tokens."""
        return list(itertools.islice(self._next, -(-tokens // TRACE_BLOCK_TOKENS)))


def _length(rng: random.Random, mean: float) -> int:
    """Return a length of at least 1; a mean below that counts as 1."""
    mean = max(mean, 1.0)
    return 1 + int(min(rng.expovariate(1 / mean), _LONGEST * mean))


def _request(time_s: float, tokens: int, output: int, ids: list[int], session: str | None = None) -> Request:
    blocks = -(-tokens // TRACE_BLOCK_TOKENS)
    return Request(
        timestamp=time_s * 1000, input_length=tokens, output_length=output, hash_ids=ids[:blocks], session=session
    )


def _prefixes(traffic: Traffic, rng: random.Random) -> Iterator[Request]:
    """Paths through a tree whose levels together are half of a prompt, then something of its own."""
    ids, nodes = _Ids(), dict[tuple[int, ...], list[int]]()
    level_tokens = max(round(traffic.input_tokens / (2 * _DEPTH) / TRACE_BLOCK_TOKENS), 1) * TRACE_BLOCK_TOKENS
    weights = [1 / (branch + 1) for branch in range(_BRANCHES)]
    time_s = 0.0
    while True:
        time_s += rng.expovariate(traffic.rate)
        path = tuple(rng.choices(range(_BRANCHES), weights, k=_DEPTH))
        prompt: list[int] = []
        for depth in range(1, _DEPTH + 1):
            prompt += nodes.setdefault(path[:depth], []) or _fill(nodes[path[:depth]], ids.new(level_tokens))
        own = _length(rng, traffic.input_tokens - _DEPTH * level_tokens)
        tokens = _DEPTH * level_tokens + own
        yield _request(time_s, tokens, _length(rng, traffic.output_tokens), prompt + ids.new(own))


def _fill(node: list[int], ids: list[int]) -> list[int]:
    node += ids
    return node


def _sessions(traffic: Traffic, rng: random.Random) -> Iterator[Request]:
    """Conversations under way at the same time; those that begin share one of a few templates."""
    ids = _Ids()
    template_tokens = max(traffic.input_tokens // 2 // TRACE_BLOCK_TOKENS, 1) * TRACE_BLOCK_TOKENS
    templates = [ids.new(template_tokens) for _ in range(_TEMPLATES)]
    starts_s, numbers = 0.0, itertools.count()
    turns: list[tuple[float, int, int, list[int]]] = []  # when, which session, tokens said before, their ids
    while True:
        while not turns or turns[0][0] >= starts_s:
            starts_s += rng.expovariate(traffic.rate / _MEAN_TURNS)
            heapq.heappush(turns, (starts_s, next(numbers), template_tokens, list(rng.choice(templates))))
        time_s, number, before, said = heapq.heappop(turns)
        tokens = before + _length(rng, traffic.input_tokens - template_tokens)
        output = _length(rng, traffic.output_tokens)
        said += (
            ids.new(tokens + output - len(said) * TRACE_BLOCK_TOKENS)
            if tokens + output > len(said) * TRACE_BLOCK_TOKENS
            else []
        )
        yield _request(time_s, tokens, output, said, session=f"session-{number}")
        if rng.random() < 1 - 1 / _MEAN_TURNS:
            heapq.heappush(turns, (time_s + rng.expovariate(1 / _THINKING_S), number, tokens + output, said))


def _bursts(traffic: Traffic, rng: random.Random) -> Iterator[Request]:
    """A steady stream of prompts of their own, and now and then many at once that begin alike."""
    ids = _Ids()
    half = max(traffic.input_tokens // 2 // TRACE_BLOCK_TOKENS, 1) * TRACE_BLOCK_TOKENS
    in_burst = round(traffic.rate * _BURST_SHARE * _BURST_EVERY_S)

    def steady() -> Iterator[Request]:
        time_s = 0.0
        while True:
            time_s += rng.expovariate(traffic.rate * (1 - _BURST_SHARE))
            tokens = _length(rng, traffic.input_tokens)
            yield _request(time_s, tokens, _length(rng, traffic.output_tokens), ids.new(tokens))

    def bursting() -> Iterator[Request]:
        for number in itertools.count(1):
            prefix = ids.new(half)
            for time_s in sorted(number * _BURST_EVERY_S + rng.uniform(0, _BURST_S) for _ in range(in_burst)):
                own = _length(rng, traffic.input_tokens - half)
                yield _request(time_s, half + own, _length(rng, traffic.output_tokens), prefix + ids.new(own))

    return heapq.merge(steady(), bursting(), key=lambda request: request.timestamp)


_SOURCES: dict[Kind, Callable[[Traffic, random.Random], Iterator[Request]]] = {
    Kind.PREFIXES: _prefixes,
    Kind.SESSIONS: _sessions,
    Kind.BURSTS: _bursts,
}
