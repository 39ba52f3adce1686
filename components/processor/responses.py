"""What chat and text answers have in common: usage, errors, server-sent events, models. JSON bytes out."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from components.processor.sequence import Sequence
from components.wire.errors import PenstockError
from components.wire.http_errors import error_body
from components.wire.messages import TokenLogprob

_encoder = msgspec.json.Encoder()
encode = _encoder.encode

_LEAST_LOGPROB = -9999.0
DONE = b"data: [DONE]\n\n"


class PromptDetails(msgspec.Struct, frozen=True):
    """Where the prompt's KV came from."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | UnsetType = UNSET


class Model(msgspec.Struct, frozen=True):
    """One of GET /v1/models."""

    id: str
    created: int
    max_model_len: int | None
    object: str = "model"
    owned_by: str = "penstock"


def event(chunk: Any) -> bytes:
    """Return `chunk` as a server-sent event."""
    return b"data: %b\n\n" % encode(chunk)


def usage_of(sequences: list[Sequence], choices: int) -> Usage:
    """Return the usage of a whole answer; a prompt counts once, however many of its `choices` there are."""
    prompts = sequences[::choices]
    prompt_tokens = sum(len(sequence.prompt.token_ids) for sequence in prompts)
    output_tokens = sum(len(sequence.token_ids) for sequence in sequences)
    known = [sequence.cached_tokens for sequence in prompts if sequence.cached_tokens is not None]
    details: PromptDetails | UnsetType = PromptDetails(sum(known)) if known else UNSET
    return Usage(prompt_tokens, output_tokens, prompt_tokens + output_tokens, details)


def usage_so_far(sequence: Sequence) -> Usage:
    """Return the usage of one choice, for `continuous_usage_stats`."""
    prompt_tokens, output_tokens = len(sequence.prompt.token_ids), len(sequence.token_ids)
    return Usage(prompt_tokens, output_tokens, prompt_tokens + output_tokens)


def json_logprob(token: TokenLogprob) -> float:
    """Return a log probability as answers hold it: JSON has no infinity, so the least is OpenAI's -9999."""
    return max(token.logprob, _LEAST_LOGPROB)


def error_event(error: PenstockError) -> bytes:
    """Return `error` as the last event of a stream."""
    return b"event: error\ndata: %b\n\n" % error_body(error)


def models_body(models: list[Model]) -> bytes:
    """Return the list of models."""
    return encode({"object": "list", "data": models})
