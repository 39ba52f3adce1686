"""What processors ask a router, what it answers, and what everybody tells the router's replicas about requests under way."""

from enum import StrEnum

from components.wire.messages import Message


class RouteRequest(Message, frozen=True):
    """Which worker shall take this request?

    Attributes:
        request_id: the processor's id of the client's request; reserved on the chosen worker until `RouteNotice` ends it.
        model: the served model's name.
        blocks: block hashes of the prompt's full blocks.
        prompt_tokens: its length.
        deadline_unix_s: the reservation ends by then at the latest.
        session: requests of one session prefer one worker.
        excluded: workers that just failed this request.
        dry_run: only explain; reserve nothing.
    """

    request_id: str
    model: str
    blocks: list[int]
    prompt_tokens: int
    deadline_unix_s: float
    session: str | None = None
    excluded: list[str] = []
    dry_run: bool = False


class Trust(StrEnum):
    """How far the router's knowledge of a worker's KV can be trusted."""

    EXACT = "exact"
    DEGRADED = "degraded"
    FALLBACK = "fallback"


class RouteCandidate(Message, frozen=True):
    """One worker as the router saw it; every term of its cost in predicted seconds.

    Attributes:
        worker: its name.
        trust: exact: all events are known; degraded: some were missed, overlap is a lower bound; fallback: nothing is known.
        overlap_blocks: leading blocks its engine holds.
        expected_blocks: the same, with what was routed there a moment ago.
        fetch_blocks: further blocks it can load from a slower tier.
        uncached_tokens: left to compute.
        requests: on it now.
        queued_tokens: uncached tokens of those without a first token.
        active_tokens: context it decodes now or soon.
        prefill_s: computing the uncached tokens.
        fetch_s: loading from the slower tier.
        queue_s: waiting for prefills routed before.
        decode_s: slowed by other requests' decoding.
        memory_s: for want of KV memory.
        cost_s: all of it.
        store: the LMCache server it can load from; empty without one.
    """

    worker: str
    trust: Trust = Trust.EXACT
    overlap_blocks: int = 0
    expected_blocks: int = 0
    fetch_blocks: int = 0
    uncached_tokens: int = 0
    requests: int = 0
    queued_tokens: int = 0
    active_tokens: int = 0
    prefill_s: float = 0.0
    fetch_s: float = 0.0
    queue_s: float = 0.0
    decode_s: float = 0.0
    memory_s: float = 0.0
    cost_s: float = 0.0
    store: str = ""


class RouteReply(Message, frozen=True):
    """The choice.

    Attributes:
        policy: which policy chose.
        chosen: the worker, priced.
        candidates: all of them, the chosen one included; only in answer to a dry run.
        router: who answered.
    """

    policy: str
    chosen: RouteCandidate
    candidates: list[RouteCandidate] = []
    router: str = ""


class RouteEvent(StrEnum):
    """A moment in the life of a routed request."""

    CHOSEN = "chosen"
    FIRST_TOKEN = "first_token"  # noqa: S105 no password
    FINISHED = "finished"


class RouteNotice(Message, frozen=True):
    """Told to every router replica, so that all keep the same books.

    Attributes:
        request_id: as in `RouteRequest`.
        event: what happened.
        worker: where.
        prompt_tokens: with `chosen`: the prompt's length.
        uncached_tokens: with `chosen`: left to compute.
        deadline_unix_s: with `chosen`: when it is over at the latest.
        blocks: with `chosen`: the prompt's block hashes.
        ttft_s: with `first_token`: from dispatch to the first token.
        cached_tokens: with `first_token`: what the engine says it reused.
        router: with `chosen`: which replica chose, and so has it in its books already.
        session: with `chosen`: as in `RouteRequest`.
        fetch_blocks: with `chosen`: blocks to be loaded from a slower tier.
    """

    request_id: str
    event: RouteEvent
    worker: str
    prompt_tokens: int = 0
    uncached_tokens: int = 0
    deadline_unix_s: float = 0.0
    blocks: list[int] = []
    ttft_s: float | None = None
    cached_tokens: int | None = None
    router: str = ""
    session: str | None = None
    fetch_blocks: int = 0


class RouteNotices(Message, frozen=True):
    """What one process has to tell about requests, together; they came up within a few milliseconds.

    Attributes:
        notices: in the order of the moments.
    """

    notices: list[RouteNotice]


class TokenizeQuery(Message, frozen=True):
    """Which tokens would this prompt become? Asked by a router that explains; it has no tokenizer of its own.

    Attributes:
        body: JSON, as POST /tokenize takes it.
    """

    body: bytes


class Tokenized(Message, frozen=True):
    """The answer.

    Attributes:
        token_ids: the prompt, rendered as a request's is.
    """

    token_ids: list[int]
