"""What a client may ask: OpenAI's request bodies with vLLM's additions, as typed structs, or a 400 naming the field.

A field that stands here is honoured, or has no effect by its definition (such as ``user``). Fields that may only hold
the value they have anyway (``best_of: 1``) are typed so; any other field is refused. Knows shapes and ranges that need
no model; what depends on the model is checked in `components.processor.sampling`.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from components.processor.messages import ChatMessage
from components.wire.errors import InvalidRequestError

Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
Scalar = str | int | float | bool | None


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Root of everything a client sends; unknown fields are refused, and null means absent."""


class StreamOptions(Body, frozen=True, kw_only=True):
    """How a stream reports usage."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Function(Body, frozen=True, kw_only=True):
    """A function the model may call; `parameters` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body, frozen=True, kw_only=True):
    """One of `tools`."""

    function: Function
    type: Literal["function"] = "function"


class FunctionName(Body, frozen=True, kw_only=True):
    """Names one of the functions."""

    name: Name


class NamedTool(Body, frozen=True, kw_only=True):
    """A `tool_choice` that forces one function."""

    function: FunctionName
    type: Literal["function"] = "function"


class JsonSchema(Body, frozen=True, kw_only=True):
    """The schema of a `response_format`."""

    name: Name
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body, frozen=True, kw_only=True):
    """The form of the output: free text, any JSON object, or one that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Constraint(Body, frozen=True, kw_only=True):
    """vLLM's `structured_outputs`: exactly one is set."""

    json: dict[str, Any] | str | None = None
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=1024)] | None = None
    grammar: str | None = None
    structural_tag: str | None = None


class Generation(Body, frozen=True, kw_only=True):
    """What chat and text completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=64)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=1024)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    bad_words: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=1024)] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Constraint | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    echo: bool | None = None
    user: str | None = None  # tells OpenAI who asks; changes no answer


class ChatRequest(Generation, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=1024)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Scalar] | None = None
    metadata: dict[str, str] | None = None  # kept beside stored answers; nothing is stored
    safety_identifier: str | None = None  # as `user`
    prompt_cache_key: str | None = None  # a hint; prefixes are found without it
    store: Literal[False] | None = None
    modalities: Annotated[list[Literal["text"]], Meta(min_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    audio: None = None
    prediction: None = None
    function_call: None = None
    functions: None = None


class CompletionRequest(Generation, frozen=True, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: Any  # a string, strings, token ids, or lists of them; see `prompts`
    logprobs: Annotated[int, Meta(ge=0)] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None


class TokenizeRequest(Body, frozen=True, kw_only=True):
    """The body of POST /tokenize: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    tools: Annotated[list[Tool], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Scalar] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body, frozen=True, kw_only=True):
    """The body of POST /detokenize."""

    tokens: list[TokenId]
    model: str | None = None


B = TypeVar("B", bound=Body)

_INSTEAD = {
    "functions": "tools",
    "function_call": "tool_choice",
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
    "reasoning_effort": "chat_template_kwargs",
}
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?$")
_AT = re.compile(r"^(?P<what>.*) - at `(?:key` in `)?\$\.?(?P<path>[^`]*)`$", re.DOTALL)
_QUOTED = re.compile(r"^Invalid (enum )?value .*$", re.DOTALL)
_decoders: dict[type[Body], msgspec.json.Decoder[Any]] = {}


def parse(data: bytes, kind: type[B]) -> B:
    """Return the request of type `kind` in the JSON text `data`.

    Raises:
        InvalidRequestError: it is none; `param` names the field.
    """
    decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        body: B = decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequestError("the body is not valid JSON in UTF-8") from None
    except RecursionError:
        raise InvalidRequestError("the body is nested too deeply") from None
    return body


def prompts(value: Any) -> list[str | list[int]]:
    """Return the prompts in a completion's `prompt`: each a text or token ids.

    Raises:
        InvalidRequestError: it is no string, no list of strings, no list of token ids and no list of such lists; or empty.
    """
    if isinstance(value, list) and value and type(value[0]) is int:
        value = [value]
    for kind in (list[str], list[list[TokenId]]):
        try:
            found: list[str | list[int]] = msgspec.convert([value] if isinstance(value, str) else value, kind)
        except msgspec.ValidationError:
            continue
        if not found or not all(found):
            raise InvalidRequestError("prompt: must not be empty", param="prompt")
        return found
    raise InvalidRequestError(
        "prompt: must be a string, a list of strings, token ids or a list of lists of them", param="prompt"
    )


def _explain(text: str) -> InvalidRequestError:
    """Return msgspec's complaint for a client, without the values it sent."""
    if unknown := _UNKNOWN.match(text):
        param = _join(unknown["path"], unknown["field"][:128])
        instead = _INSTEAD.get(param)
        return InvalidRequestError(f"{param}: is not supported{f'; use {instead}' if instead else ''}", param=param)
    if missing := _MISSING.match(text):
        param = _join(missing["path"], missing["field"])
        return InvalidRequestError(f"{param}: is missing", param=param)
    if at := _AT.match(text):
        what = "is not one of the supported values" if _QUOTED.match(at["what"]) else at["what"][0].lower() + at["what"][1:]
        return InvalidRequestError(f"{at['path']}: {what}", param=at["path"] or None)
    return InvalidRequestError(f"the body must be a JSON object: {text[0].lower() + text[1:]}")


def _join(path: str | None, field: str) -> str:
    return f"{path}.{field}" if path else field
