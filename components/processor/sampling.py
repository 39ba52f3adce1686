"""From a request's fields to the engine's sampling settings; refuses what the model or the server cannot keep.

Pure. Ranges that need no model are checked by `components.processor.openai`.
"""

import json
from typing import TypeVar

import msgspec

from components.processor.defaults import NO_DEFAULTS, Defaults
from components.processor.openai import ChatRequest, CompletionRequest, Constraint, Generation
from components.processor.tools import check_depth
from components.wire.errors import ContextLengthExceededError, InvalidRequestError
from components.wire.messages import Sampling, StructuredOutputs

T = TypeVar("T", int, float)

_DEFAULT_COMPLETION_TOKENS = 16


class Limits(msgspec.Struct, frozen=True):
    """What a request may ask for.

    Attributes:
        vocab_size: token ids are below this.
        max_choices: sequences one request may ask for.
        max_logprobs: alternatives a token it may ask for.
        context_tokens: prompt and output together; None while no worker has told.
        defaults: what holds where it says nothing.
        reasoning: whether the workers tell reasoning from answers.
    """

    vocab_size: int
    max_choices: int
    max_logprobs: int
    context_tokens: int | None = None
    defaults: Defaults = NO_DEFAULTS
    reasoning: bool = False


def sampling_of(body: Generation, limits: Limits, forced: StructuredOutputs | None = None) -> Sampling:
    """Return the sampling settings that `body` asks for; `max_tokens` is settled later, by `fit`.

    Args:
        body: the request.
        limits: what it may ask for.
        forced: a constraint that its tools imply.

    Raises:
        InvalidRequestError: a field's value cannot be kept.
    """
    for field in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
        if any(token_id >= limits.vocab_size for token_id in getattr(body, field) or ()):
            raise InvalidRequestError(f"{field}: token ids must be 0 to {limits.vocab_size - 1}", param=field)
    if body.n is not None and body.n > limits.max_choices:
        raise InvalidRequestError(f"n: must be at most {limits.max_choices}", param="n")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options: needs `stream`", param="stream_options")
    usual = limits.defaults
    return Sampling(
        max_tokens=1,
        temperature=_first(body.temperature, usual.temperature, 1.0),
        top_p=_first(body.top_p, usual.top_p, 1.0),
        top_k=max(_first(body.top_k, usual.top_k, 0), 0),
        min_p=_first(body.min_p, usual.min_p, 0.0),
        presence_penalty=_first(body.presence_penalty, usual.presence_penalty, 0.0),
        frequency_penalty=_first(body.frequency_penalty, usual.frequency_penalty, 0.0),
        repetition_penalty=_first(body.repetition_penalty, usual.repetition_penalty, 1.0),
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop_str_in_output=body.include_stop_str_in_output or False,
        ignore_eos=body.ignore_eos or False,
        min_tokens=body.min_tokens or 0,
        logprobs=_logprobs(body, limits.max_logprobs),
        logit_bias=body.logit_bias or {},
        allowed_token_ids=tuple(body.allowed_token_ids or ()),
        bad_words=tuple(body.bad_words or ()),
        skip_special_tokens=body.skip_special_tokens is not False,
        spaces_between_special_tokens=body.spaces_between_special_tokens is not False,
        structured_outputs=_constraint(body, forced),
    )


def fit(
    sampling: Sampling, asked: int | None, usual: int | None, prompt_tokens: int, context_tokens: int, param: str
) -> Sampling:
    """Return `sampling` with its `max_tokens` settled.

    Args:
        sampling: how to choose tokens.
        asked: output tokens asked for; None for the usual.
        usual: output tokens of a request that asks for none; None for all that the context leaves.
        prompt_tokens: of the prompt.
        context_tokens: of prompt and output together.
        param: the field that holds the prompt.

    Raises:
        ContextLengthExceededError: the prompt, or prompt and output, are longer than the context.
        InvalidRequestError: `min_tokens` is above `max_tokens`.
    """
    left = context_tokens - prompt_tokens
    if left < 1 or (asked or 1) > left:
        output = f" and {asked} for the output" if asked else ""
        raise ContextLengthExceededError(
            f"the model's context is {context_tokens} tokens; the request takes {prompt_tokens} for the prompt{output}",
            param=param,
        )
    max_tokens = asked or min(usual or left, left)
    if sampling.min_tokens > max_tokens:
        raise InvalidRequestError(f"min_tokens: must be at most max_tokens, {max_tokens}", param="min_tokens")
    return msgspec.structs.replace(sampling, max_tokens=max_tokens)


def asked_tokens(body: Generation) -> int | None:
    """Return how many output tokens `body` asks for at most; None: as many as fit.

    Raises:
        InvalidRequestError: two fields disagree.
    """
    if not isinstance(body, ChatRequest):
        return body.max_tokens or _DEFAULT_COMPLETION_TOKENS
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequestError("max_tokens: contradicts max_completion_tokens", param="max_tokens")
    return body.max_completion_tokens or body.max_tokens


def _first(value: T | None, usual: T | None, default: T) -> T:
    """Return the first of them that says something."""
    if value is not None:
        return value
    return default if usual is None else usual


def _logprobs(body: Generation, most: int) -> int | None:
    """Return how many alternatives a token to report; None for nothing."""
    if isinstance(body, ChatRequest):
        if body.top_logprobs and not body.logprobs:
            raise InvalidRequestError("top_logprobs: needs `logprobs`", param="top_logprobs")
        param, count = "top_logprobs", (body.top_logprobs or 0) if body.logprobs else None
    else:
        param, count = "logprobs", body.logprobs if isinstance(body, CompletionRequest) else None
    if count is not None and count > most:
        raise InvalidRequestError(f"{param}: must be at most {most}", param=param)
    return count


def _constraint(body: Generation, forced: StructuredOutputs | None) -> StructuredOutputs | None:
    """Return the one constraint on the output that `body` asks for."""
    asked = [found for found in (forced, _from_response_format(body), _from_constraint(body.structured_outputs)) if found]
    if len(asked) > 1:
        param = "structured_outputs" if body.structured_outputs else "response_format"
        raise InvalidRequestError(f"{param}: the request constrains its output in another way too", param=param)
    return asked[0] if asked else None


def _from_response_format(body: Generation) -> StructuredOutputs | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return StructuredOutputs(json_object=True)
    if wanted.json_schema is None:
        raise InvalidRequestError("response_format.json_schema: is missing", param="response_format.json_schema")
    check_depth(wanted.json_schema.schema, "response_format.json_schema.schema")
    return StructuredOutputs(json_schema=json.dumps(wanted.json_schema.schema))


def _from_constraint(wanted: Constraint | None) -> StructuredOutputs | None:
    if wanted is None:
        return None
    if sum(getattr(wanted, field) is not None for field in wanted.__struct_fields__) != 1:
        raise InvalidRequestError("structured_outputs: exactly one constraint must be set", param="structured_outputs")
    return StructuredOutputs(
        json_schema=_schema_text(wanted.json),
        json_object=bool(wanted.json_object),
        regex=wanted.regex,
        choice=tuple(wanted.choice or ()),
        grammar=wanted.grammar,
        structural_tag=wanted.structural_tag,
    )


def _schema_text(schema: dict[str, object] | str | None) -> str | None:
    if schema is None:
        return None
    try:
        value = msgspec.json.decode(schema, type=dict[str, object]) if isinstance(schema, str) else schema
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequestError("structured_outputs.json: is no JSON object", param="structured_outputs.json") from None
    check_depth(value, "structured_outputs.json")
    return json.dumps(value)
