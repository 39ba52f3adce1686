"""What the simulated engine's scheduler hands out: steps, and counters of what it has done. Pure data."""

import msgspec

from components.engine.sim_cache import BlockEvent
from components.engine.sim_sequence import SimSequence
from components.engine.sim_timing import StepWork
from components.wire.kv import KvStored


class Chunk(msgspec.Struct, gc=False):
    """`tokens` of `sequence` are computed in a step."""

    sequence: SimSequence
    tokens: int


class Step(msgspec.Struct):
    """One forward pass, or several that are alike.

    Attributes:
        chunks: what it computes.
        work: the same, in sums.
        duration_s: how long it takes, in seconds.
        times: how many times in a row it is taken; see `SimScheduler.repeats`.
        events: KV blocks stored and removed for it, in order.
        shared: blocks newly put into the shared cache; known once it is complete.
    """

    chunks: list[Chunk]
    work: StepWork
    duration_s: float = 0.0
    times: int = 1
    events: list[BlockEvent] = []
    shared: list[KvStored] = []


class Totals(msgspec.Struct):
    """What a scheduler has done since it was made; tokens unless named otherwise.

    Attributes:
        prompt: prompts computed or found in a cache.
        cached: those of them found in a cache, its own or the shared one.
        output: generated.
        cache_queries: looked up in its own cache.
        cache_hits: found there.
        shared_queries: looked up in the shared cache, since its own did not have them.
        shared_hits: loaded from there.
        preempted_sequences: how often one had to give its blocks back.
    """

    prompt: int = 0
    cached: int = 0
    output: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    shared_queries: int = 0
    shared_hits: int = 0
    preempted_sequences: int = 0
