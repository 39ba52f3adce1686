"""What a chat job's payload may hold, and what an OpenAI request becomes of it. Pure.

The fields and defaults are the document's; beside them only fields of OpenAI's own pass, so that whoever may submit a job
cannot reach an engine's inner settings.
"""

import math
from datetime import UTC, datetime
from typing import Any

import msgspec

JOB_TYPES = frozenset({"chat_completion", "llm_inference"})
DEFAULT_MODEL = "default"
MAX_CHOICES = 128
_PASSED_ON = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
    }
)
_ENVELOPE = frozenset({"id", "job_type", "task", "payload"})
_OWN = frozenset({"job_type", "task", "messages", "model", "stream", "stream_options"})
_DEFAULTS: dict[str, Any] = {
    "temperature": 0.7,
    "max_tokens": 512,
    "top_p": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}


class PayloadError(ValueError):
    """A payload is none; the text names the field at fault, without its content."""


class ChatJob(msgspec.Struct, frozen=True):
    """A payload, read.

    Attributes:
        job_type: as the submitter named it; it is repeated in the result.
        request: the keyword arguments of OpenAI's chat completions, `model` and streaming left out.
        model: as the submitter named it; None means the engine's own.
    """

    job_type: str
    request: dict[str, Any]
    model: str | None


def read_payload(data: bytes | msgspec.Raw) -> ChatJob:
    """Return the chat job in `data`: the document's payload, with or without the envelope of id and job type around it.

    Raises:
        PayloadError: it is none.
    """
    try:
        outer = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise PayloadError("payload: not JSON") from None
    if not isinstance(outer, dict):
        raise PayloadError("payload: must be an object")
    payload = outer
    if "messages" not in outer and isinstance(outer.get("payload"), dict):
        payload = outer["payload"]
        _refuse_unknown(outer, _ENVELOPE)
    _refuse_unknown(payload, _PASSED_ON | _OWN)
    job_type = next(
        (each[key] for each in (payload, outer) for key in ("job_type", "task") if key in each), "chat_completion"
    )
    if job_type not in JOB_TYPES:
        raise PayloadError(f"job_type: must be one of {', '.join(sorted(JOB_TYPES))}")
    _check_messages(payload.get("messages"))
    model = payload.get("model", DEFAULT_MODEL)
    if not isinstance(model, str) or not model:
        raise PayloadError("model: must be a name")
    return ChatJob(job_type, _request(payload), None if model == DEFAULT_MODEL else model)


def result_of(job_type: str, completion: dict[str, Any], now: datetime | None = None) -> bytes:
    """Return a successful job's result as JSON, in the document's shape."""
    at = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return msgspec.json.encode({"status": "success", "job_type": job_type, "processed_at": at, "completion": completion})


def _refuse_unknown(payload: dict[str, Any], known: frozenset[str]) -> None:
    if unknown := sorted(set(payload) - known):
        raise PayloadError(f"{unknown[0][:100]}: not a field of a chat job")


def _request(payload: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name in sorted(_PASSED_ON) if (value := payload.get(name)) is not None}
    for name, (low, high) in _RANGES.items():
        if name in given and not (_is_number(given[name]) and low <= given[name] <= high):
            raise PayloadError(f"{name}: must be {low:g} to {high:g}")
    for name, most in (("max_tokens", 2**31), ("max_completion_tokens", 2**31), ("n", MAX_CHOICES)):
        value = given.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most):
            raise PayloadError(f"{name}: must be a whole number from 1 to {most}")
    _check_stop(given.get("stop"))
    defaults = dict(_DEFAULTS)
    if "max_completion_tokens" in given:
        del defaults["max_tokens"]
    return {"messages": payload["messages"]} | defaults | given


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise PayloadError("messages: must be a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise PayloadError(f"messages[{index}]: must be an object with a role")
        if not isinstance(message.get("content"), str | list) and "tool_calls" not in message:
            raise PayloadError(f"messages[{index}].content: must be text or a list of parts")


def _check_stop(stop: object) -> None:
    texts = [stop] if isinstance(stop, str) else stop
    if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise PayloadError("stop: must be a text or a list of texts")
