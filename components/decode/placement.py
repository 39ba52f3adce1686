"""Where a prompt is prefilled: here, or by a prefill worker. Pure: what is known goes in, a reasoned decision comes out.

A prompt goes elsewhere when enough of it is cached nowhere near, the queue is short, and it pays. Here, computing it takes
prefill time from this request and from every stream that runs here; elsewhere, the request waits for the queue and then for
its KV to be loaded. Speeds are this worker's own measurements.
"""

import statistics
from collections import deque
from enum import StrEnum
from typing import Literal

import msgspec

from components.graph.schema import Disagg

_REMEMBERED = 15
"""Measurements whose median counts: one that was disturbed changes nothing."""


class Reason(StrEnum):
    """Why a prompt is prefilled where it is."""

    PAYS = "pays"
    OFF = "off"
    SHORT = "short"
    NO_PREFILL_WORKER = "no_prefill_worker"
    QUEUE_UNKNOWN = "queue_unknown"
    QUEUE_DEEP = "queue_deep"
    QUEUE_OLD = "queue_old"
    DEAR = "dear"


class Speeds:
    """What was measured lately; until then, what an 8B model on an H200 takes (docs/log.md).

    Attributes:
        prefill_s_per_token: computing.
        load_s_per_token: loading KV from LMCache.
        job_tokens: of a prefill job.
        overhead_s: of a remote prefill, beyond computing and loading: queue, lookups, messages.
    """

    def __init__(
        self,
        prefill_s_per_token: float = 28e-6,
        load_s_per_token: float = 4e-6,
        job_tokens: float = 4096.0,
        overhead_s: float = 0.01,
    ) -> None:
        self.prefill_s_per_token = prefill_s_per_token
        self.load_s_per_token = load_s_per_token
        self.job_tokens = job_tokens
        self.overhead_s = overhead_s
        self._measured: dict[str, deque[float]] = {}

    def measured(self, name: str, value: float) -> None:
        """Take in a measurement of the attribute `name`."""
        values = self._measured.setdefault(name, deque(maxlen=_REMEMBERED))
        values.append(value)
        setattr(self, name, statistics.median(values))

    def prefilled(self, tokens: int, prefill_s: float, queued_s: float, whole_s: float) -> None:
        """Learn from a remote prefill.

        Args:
            tokens: those it had to compute.
            prefill_s: how long the prefill worker computed.
            queued_s: how long the job waited for one.
            whole_s: from the wish to the news that it is done.
        """
        self.measured("prefill_s_per_token", prefill_s / max(tokens, 1))
        self.measured("job_tokens", tokens)
        self.measured("overhead_s", max(whole_s - prefill_s - queued_s, 0.0))

    def loaded(self, tokens: int, seconds: float) -> None:
        """Learn how long the engine took to a first token after so many tokens were prefilled elsewhere."""
        self.measured("load_s_per_token", seconds / tokens)


class Situation(msgspec.Struct, frozen=True):
    """What is known when a request comes.

    Attributes:
        prompt_tokens: its length.
        near_tokens: leading tokens whose KV this engine holds, or can load from LMCache.
        prefill_workers: those that are ready.
        queue_depth: jobs that nobody has taken; None when the queue cannot be seen.
        queue_age_s: age of the oldest job.
        running_requests: streams this engine computes.
        waiting_requests: requests that wait for this engine.
    """

    prompt_tokens: int
    near_tokens: int
    prefill_workers: int
    queue_depth: int | None
    queue_age_s: float
    running_requests: int
    waiting_requests: int

    @property
    def uncached_tokens(self) -> int:
        """What somebody has to compute."""
        return max(self.prompt_tokens - self.near_tokens, 0)


class Placement(msgspec.Struct, frozen=True):
    """The decision.

    Attributes:
        remote: a prefill worker shall compute the prompt.
        reason: why.
        local_s: predicted cost of computing here.
        remote_s: predicted cost of leaving it to others.
    """

    remote: bool
    reason: Reason
    local_s: float = 0.0
    remote_s: float = 0.0


def place(now: Situation, rules: Disagg, speeds: Speeds) -> Placement:
    """Return where the prompt is to be prefilled."""
    if not rules.enabled:
        return Placement(remote=False, reason=Reason.OFF)
    if now.uncached_tokens <= rules.max_local_prefill_tokens:
        return Placement(remote=False, reason=Reason.SHORT)
    if now.prefill_workers == 0:
        return Placement(remote=False, reason=Reason.NO_PREFILL_WORKER)
    if now.queue_depth is None:
        return Placement(remote=False, reason=Reason.QUEUE_UNKNOWN)
    if now.queue_depth >= rules.max_queue_depth:
        return Placement(remote=False, reason=Reason.QUEUE_DEEP)
    if now.queue_depth and now.queue_age_s > rules.max_queue_age_s:
        return Placement(remote=False, reason=Reason.QUEUE_OLD)
    local_s, remote_s = _local_s(now, speeds), _remote_s(now, now.queue_depth, speeds)
    pays = rules.always or remote_s <= local_s
    return Placement(pays, Reason.PAYS if pays else Reason.DEAR, local_s, remote_s)


def given_up(waited_s: float, rules: Disagg, *, taken: bool) -> Literal["late", "not_started"] | None:
    """Return why a remote prefill is no longer waited for, after so long; None while it is.

    Args:
        waited_s: since the wish.
        rules: how long to wait.
        taken: whether a prefill worker has begun.
    """
    if waited_s > rules.max_wait_s:
        return "late"
    return "not_started" if not taken and waited_s > rules.max_queue_age_s else None


def _local_s(now: Situation, speeds: Speeds) -> float:
    """Return what computing here costs: this request waits, and so does every stream here, or the next one to come."""
    prefill_s = now.uncached_tokens * speeds.prefill_s_per_token
    return (
        prefill_s * (1 + max(now.running_requests, 1))
        + now.waiting_requests * speeds.job_tokens * speeds.prefill_s_per_token
    )


def _remote_s(now: Situation, queue_depth: int, speeds: Speeds) -> float:
    """Return what leaving it to others costs: jobs before it, computing, loading, and the way there and back."""
    ahead_s = queue_depth * speeds.job_tokens * speeds.prefill_s_per_token / now.prefill_workers
    own_s = now.uncached_tokens * (speeds.prefill_s_per_token + speeds.load_s_per_token)
    return ahead_s + own_s + speeds.overhead_s
