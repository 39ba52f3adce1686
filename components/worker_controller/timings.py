"""Where the time of an engine's creation went. Takes phases on one clock, returns durations; no I/O."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from components.worker_controller.messages import Phase

ON_RANKS = ("device", "weights", "kv_profiling", "kv_cache", "warm_up")
"""Phases that run in the ranks, in their order."""


class Seen(NamedTuple):
    """A phase, and the rank that went through it; None for the engine's own processes."""

    rank: int | None
    phase: Phase


class WorkerTimings(msgspec.Struct, frozen=True):
    """What one rank did for an engine, in seconds by phase."""

    rank: int
    phases: dict[str, float]
    total_s: float


class LoadTimings(msgspec.Struct, frozen=True):
    """The answer of GET /engines/{uuid}/load_timings.

    Attributes:
        engine_uuid: the engine.
        workers: each rank's.
        summed: the ranks' added up, by phase.
        total_s: from the request until the engine answered; None while it does not.
    """

    engine_uuid: str
    workers: list[WorkerTimings]
    summed: dict[str, float]
    total_s: float | None


def create_timings(seen: Sequence[Seen], asked_s: float, running_s: float) -> dict[str, float]:
    """Return how many seconds each phase of a creation took, in order, and the total.

    Nothing is imported in any of them. Ranks work side by side, so the slowest counts. ``config`` is vLLM's reading of the
    model's configuration and tokenizer and the fork of its core; ``other`` is what lies between the phases.
    """
    own = {each.phase.name: each.phase for each in seen if each.rank is None}
    found: dict[str, float] = {}
    for name in ("fork", "arguments"):
        if name in own:
            found[name] = own[name].ended_s - own[name].began_s
    if "core" in own and "arguments" in own:
        found["config"] = own["core"].began_s - own["arguments"].ended_s
    for name in ON_RANKS:
        if times := [
            each.phase.ended_s - each.phase.began_s for each in seen if each.rank is not None and each.phase.name == name
        ]:
            found[name] = max(times)
    if "api" in own:
        found["api"] = own["api"].ended_s - own["api"].began_s
    total_s = running_s - asked_s
    found["other"] = max(0.0, total_s - sum(found.values()))
    return {f"{name}_s": round(value, 4) for name, value in (*found.items(), ("total", total_s))}


def load_timings(engine: str, ranks: Sequence[int], seen: Sequence[Seen], total_s: float | None) -> LoadTimings:
    """Return what each of `ranks` did for `engine`, and the sum."""
    workers = []
    for rank in ranks:
        phases = {each.phase.name: round(each.phase.ended_s - each.phase.began_s, 4) for each in seen if each.rank == rank}
        workers.append(WorkerTimings(rank, phases, round(sum(phases.values()), 4)))
    names = dict.fromkeys(name for worker in workers for name in worker.phases)
    summed = {name: round(sum(worker.phases.get(name, 0.0) for worker in workers), 4) for name in names}
    return LoadTimings(engine, workers, summed, total_s)
