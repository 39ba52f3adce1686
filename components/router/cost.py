"""What a request would cost on a worker, in predicted seconds, term by term; what explanations show is what was decided on.

cost = prefill * (1 + occupancy) + fetch + queue + decode + memory, where
  prefill    uncached tokens * the worker's measured prefill time a token
  occupancy  a worker that computes cannot serve the next one meanwhile: computing costs more than waiting as long, else one
             new prefix that arrives many times at once would be computed everywhere
  fetch      tokens loaded from another tier (LMCache, host memory) * measured load time a token
  queue      uncached tokens already routed there whose first token is not out * prefill time a token
  decode     tokens of context decoded there, now or soon, * `decode_weight` * prefill time a token
  memory     tokens that do not fit the worker's free KV memory * prefill time a token: they wait, or evict and come again

Knows nothing of indexes, time or policies.
"""

import msgspec


class CostSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The formula's constants.

    Attributes:
        prefill_s_per_token: until measured; an 8B model on an H200 takes about this long (docs/log.md).
        fetch_s_per_token: of a token whose KV is loaded from LMCache or host memory, until measured.
        occupancy_weight: how much the worker's time counts beside the request's; 0 looks at this request alone.
        decode_weight: what a token of context being decoded costs a newcomer, against computing a token.
    """

    prefill_s_per_token: float = 28e-6
    fetch_s_per_token: float = 4e-6
    occupancy_weight: float = 1.0
    decode_weight: float = 0.1


class Prompt(msgspec.Struct, frozen=True):
    """What the router knows of a request; never a token.

    Attributes:
        blocks: block hashes of its full blocks.
        tokens: its length.
        session: requests of one session prefer one worker, where the policy cares.
    """

    blocks: list[int]
    tokens: int
    session: str | None = None


class Load(msgspec.Struct, frozen=True, gc=False):
    """How busy a worker is.

    Attributes:
        requests: routed there and not finished, whoever routed them.
        queued_tokens: uncached tokens of those without a first token.
        active_tokens: prompt tokens of all of them, or its KV memory in use if that is more: context it decodes now or soon.
        free_kv_tokens: room in its KV memory for new context; None where unknown.
    """

    requests: int = 0
    queued_tokens: int = 0
    active_tokens: int = 0
    free_kv_tokens: int | None = None


class Overlap(msgspec.Struct, frozen=True, gc=False):
    """How many leading blocks of a prompt can be reused on a worker.

    Attributes:
        device_blocks: in its engine's KV cache, by its events.
        recent_blocks: in what was routed there a moment ago.
        tier_blocks: in a slower tier it can load from.
    """

    device_blocks: int = 0
    recent_blocks: int = 0
    tier_blocks: int = 0


NOTHING = Overlap()
"""Of most workers, in a large fleet."""


class Speed(msgspec.Struct, frozen=True, gc=False):
    """Measured on the worker, in seconds a token."""

    prefill_s_per_token: float
    fetch_s_per_token: float


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One worker, priced for one prompt.

    Attributes:
        worker: its name.
        overlap_blocks: reusable blocks its engine holds, by its events; what the engine should report as cached.
        expected_blocks: the same, with what was routed there a moment ago.
        fetch_blocks: further blocks it would load from a slower tier.
        uncached_tokens: left to compute.
        load: how busy it is.
        prefill_s: computing them.
        fetch_s: loading.
        queue_s: waiting for prefills routed before.
        decode_s: slowed by other requests' decoding.
        memory_s: for want of KV memory.
        cost_s: all of it, the worker's occupancy included.
    """

    worker: str
    overlap_blocks: int
    expected_blocks: int
    fetch_blocks: int
    uncached_tokens: int
    load: Load
    prefill_s: float
    fetch_s: float
    queue_s: float
    decode_s: float
    memory_s: float
    cost_s: float


def price(
    worker: str, prompt: Prompt, block_size: int, overlap: Overlap, load: Load, speed: Speed, settings: CostSettings
) -> Candidate:
    """Return what `prompt` would cost on `worker`.

    An engine always computes the prompt's last token, so a block that ends with it is never reused.
    """
    overlap_blocks = expected_blocks = fetch_blocks = 0
    uncached_tokens = prompt.tokens
    if overlap is not NOTHING:
        usable = max(prompt.tokens - 1, 0) // block_size
        overlap_blocks = min(overlap.device_blocks, usable)
        expected_blocks = min(max(overlap.device_blocks, overlap.recent_blocks), usable)
        fetch_blocks = max(min(overlap.tier_blocks, usable) - expected_blocks, 0)
        uncached_tokens -= (expected_blocks + fetch_blocks) * block_size
    token_s = speed.prefill_s_per_token
    prefill_s = uncached_tokens * token_s
    fetch_s = fetch_blocks * block_size * speed.fetch_s_per_token
    queue_s = load.queued_tokens * token_s
    decode_s = load.active_tokens * settings.decode_weight * token_s
    memory_s = 0.0
    if load.free_kv_tokens is not None and (lacking := uncached_tokens + load.queued_tokens - load.free_kv_tokens) > 0:
        memory_s = lacking * token_s
    return Candidate(
        worker,
        overlap_blocks,
        expected_blocks,
        fetch_blocks,
        uncached_tokens,
        load,
        prefill_s,
        fetch_s,
        queue_s,
        decode_s,
        memory_s,
        prefill_s * (1 + settings.occupancy_weight) + fetch_s + queue_s + decode_s + memory_s,
    )
