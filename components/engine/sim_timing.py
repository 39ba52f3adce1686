"""How long the simulated engine takes: measured constants from a JSON file in `timing/`, and the formula they fill.

Knows no scheduling. A step is bound by launching its kernels or by computing its prompts, whichever is longer; decoding
sequences come on top. Terms that a table leaves out are zero: some tables know a step's cost by its contexts, others by how
full the KV memory is.
"""

from pathlib import Path

import msgspec

_TABLES = Path(__file__).parent / "timing"


class TimingError(Exception):
    """There is no such timing table, or it is wrong; the text says why in one line."""


class StepWork(msgspec.Struct):
    """What one step computes.

    Attributes:
        prefill_tokens: prompt tokens.
        squared_prefill_tokens: for each prompt chunk, end² - start², with positions in tokens.
        decode_sequences: sequences that go on by one token.
        decode_context_tokens: tokens these look back at, in all.
        grown_sequences: sequences that get a new token: those that go on, and those whose prompt ends in this step.
        kv_usage: share of KV blocks in use, 0 to 1.
    """

    prefill_tokens: int = 0
    squared_prefill_tokens: int = 0
    decode_sequences: int = 0
    decode_context_tokens: int = 0
    grown_sequences: int = 0
    kv_usage: float = 0.0


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One timing table.

    Attributes:
        comment: where the constants come from.
        request_ms: from a request's arrival until it may be scheduled.
        cache_hit_ms: further wait when any of its prompt is cached.
        per_cached_token_us: further wait for each cached token.
        base_ms: launching one step.
        per_prefill_token_us: computing a prompt token, attention apart.
        per_squared_prefill_token_ns: attention of a prompt; see `StepWork`.
        per_decode_sequence_us: sampling and bookkeeping for a sequence.
        per_decode_context_token_us: reading one token's KV.
        shared_hit_ms: further wait when any of its prompt comes from the shared cache.
        per_shared_token_us: further wait for each token that does.
        prefill_ms: added to a step that computes any prompt.
        per_squared_step_token_ns: for the square of a step's prompt tokens, whoever's they are.
        grow_ms: added to a step that gives any sequence a token.
        per_kv_usage_ms: added to it for the share of KV blocks in use.
        per_squared_kv_usage_ms: for the square of that share.
    """

    comment: str
    request_ms: float
    cache_hit_ms: float
    per_cached_token_us: float
    base_ms: float
    per_prefill_token_us: float
    per_squared_prefill_token_ns: float
    per_decode_sequence_us: float
    per_decode_context_token_us: float
    shared_hit_ms: float = 0.0
    per_shared_token_us: float = 0.0
    prefill_ms: float = 0.0
    per_squared_step_token_ns: float = 0.0
    grow_ms: float = 0.0
    per_kv_usage_ms: float = 0.0
    per_squared_kv_usage_ms: float = 0.0

    def step_s(self, work: StepWork) -> float:
        """Return how long a step takes, in seconds."""
        return (max(self.base_ms * 1e3, self._prefill_us(work)) + self._decode_us(work)) / 1e6

    def run_s(self, work: StepWork, times: int) -> float:
        """Return how long it takes to do `work` so many times, where it is only decoding, of contexts that grow."""
        longer_s = work.decode_sequences * self.per_decode_context_token_us / 1e6
        return times * self.step_s(work) + times * (times - 1) / 2 * longer_s

    def _prefill_us(self, work: StepWork) -> float:
        tokens = work.prefill_tokens
        if not tokens:
            return 0.0
        squares_us = work.squared_prefill_tokens * self.per_squared_prefill_token_ns / 1e3
        step_us = self.prefill_ms * 1e3 + tokens**2 * self.per_squared_step_token_ns / 1e3
        return tokens * self.per_prefill_token_us + squares_us + step_us

    def _decode_us(self, work: StepWork) -> float:
        decode_us = (
            work.decode_sequences * self.per_decode_sequence_us
            + work.decode_context_tokens * self.per_decode_context_token_us
        )
        if not work.grown_sequences:
            return decode_us
        used = work.kv_usage
        return decode_us + (self.grow_ms + used * self.per_kv_usage_ms + used**2 * self.per_squared_kv_usage_ms) * 1e3

    def arrival_s(self, cached_tokens: int) -> float:
        """Return how long a request waits before it may be scheduled, in seconds."""
        hit_ms = self.cache_hit_ms + cached_tokens * self.per_cached_token_us / 1e3 if cached_tokens else 0.0
        return (self.request_ms + hit_ms) / 1e3

    def load_s(self, tokens: int) -> float:
        """Return how long it takes to load the KV of `tokens` tokens from the shared cache, in seconds."""
        return (self.shared_hit_ms + tokens * self.per_shared_token_us / 1e3) / 1e3 if tokens else 0.0

    def faster(self, factor: float) -> "Timing":
        """Return the timing of an engine `factor` times as fast."""
        fields = {name: getattr(self, name) / factor for name in self.__struct_fields__ if name != "comment"}
        return Timing(comment=self.comment, **fields)


def load_timing(name: str) -> Timing:
    """Return the built-in table called `name`, or the one in the JSON file of that path.

    Raises:
        TimingError: there is none, or it is wrong.
    """
    builtin = _TABLES / f"{name}.json"
    path = builtin if builtin.exists() else Path(name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Timing)
    except OSError as error:
        known = ", ".join(sorted(table.stem for table in _TABLES.glob("*.json")))
        raise TimingError(f"timing: {name} is neither a file nor one of {known}") from error
    except msgspec.DecodeError as error:
        raise TimingError(f"timing: {path}: {error}") from error
