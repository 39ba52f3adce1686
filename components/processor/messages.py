"""The messages of a chat as clients send them, and as a chat template wants them.

Text only: parts of any other kind are refused by name. Knows nothing of tokens.
"""

from typing import Any, Literal

import msgspec

from components.wire.errors import InvalidRequestError


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Root of what messages consist of."""


class TextPart(_Part, frozen=True):
    """A piece of text content."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class CalledFunction(_Part, frozen=True):
    """What an assistant called; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(_Part, frozen=True, kw_only=True):
    """A tool call in an assistant's message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class SystemMessage(_Part, frozen=True, tag_field="role", tag="system"):
    """Instructions."""

    content: Content
    name: str | None = None


class DeveloperMessage(_Part, frozen=True, tag_field="role", tag="developer"):
    """Instructions, by OpenAI's newer name; templates get it as ``system``, which all of them know."""

    content: Content
    name: str | None = None


class UserMessage(_Part, frozen=True, tag_field="role", tag="user"):
    """What the user said."""

    content: Content
    name: str | None = None


class AssistantMessage(_Part, frozen=True, tag_field="role", tag="assistant"):
    """What the model said before; takes everything that an answer of ours holds."""

    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[None] | None = None


class ToolMessage(_Part, frozen=True, tag_field="role", tag="tool"):
    """The result of a tool call."""

    content: Content
    tool_call_id: str
    name: str | None = None


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage

_ROLES: dict[type[Any], str] = {
    SystemMessage: "system",
    DeveloperMessage: "system",
    UserMessage: "user",
    AssistantMessage: "assistant",
    ToolMessage: "tool",
}


def text_of(message: ChatMessage) -> str | None:
    """Return a message's text; several parts are joined by a newline, as vLLM does."""
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content)
    return message.content


def as_json(messages: list[ChatMessage]) -> str:
    """Return `messages` as JSON text in OpenAI's own shape, in which what is not said is left out, not null."""
    said = [{name: value for name, value in entry.items() if value is not None} for entry in msgspec.to_builtins(messages)]
    return msgspec.json.encode(said).decode()


def for_template(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Return `messages` as chat templates read them: content as text, tool arguments as objects.

    Raises:
        InvalidRequestError: a tool call's arguments are no JSON object, or an assistant's message is empty.
    """
    return [_for_template(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _for_template(message: ChatMessage, path: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": _ROLES[type(message)], "content": text_of(message)}
    if message.name is not None:
        entry["name"] = message.name
    if isinstance(message, ToolMessage):
        entry["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage):
        reasoning = message.reasoning or message.reasoning_content
        if message.content is None and not message.tool_calls and reasoning is None:
            raise InvalidRequestError(f"{path}.content: is missing", param=f"{path}.content")
        entry["content"] = entry["content"] or ""
        if reasoning is not None:
            entry["reasoning_content"] = reasoning
        if message.tool_calls:
            calls = enumerate(message.tool_calls)
            entry["tool_calls"] = [_call(call, f"{path}.tool_calls[{index}].function.arguments") for index, call in calls]
    return entry


def _call(call: ToolCall, path: str) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequestError(f"{path}: is not the text of a JSON object", param=path) from None
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
