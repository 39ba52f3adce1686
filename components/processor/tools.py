"""Tools: what `tools` and `tool_choice` ask of the engine, and how constrained text becomes tool calls again.

``auto`` is the worker's tool parser's business. ``required`` and a named function constrain the output by a JSON schema
(the same as vLLM's), and `ForcedCalls` cuts the resulting text into OpenAI's tool calls, piece by piece.
"""

import json
import re
import secrets
from typing import Any

import msgspec

from components.processor.messages import as_json
from components.processor.openai import ChatRequest, NamedTool, Tool
from components.wire.errors import InvalidRequestError
from components.wire.messages import OutputParsing, StructuredOutputs, ToolCallDelta

_MAX_SCHEMA_DEPTH = 64


class Tooling(msgspec.Struct, frozen=True):
    """What a request's tools ask for.

    Attributes:
        constraint: on the output, when a call is forced.
        named: the forced function's name.
        parsing: for the worker's parsers, when the model may call or not, or may reason.
        parallel: whether more than one call may be made.
    """

    constraint: StructuredOutputs | None = None
    named: str | None = None
    parsing: OutputParsing | None = None
    parallel: bool = True

    @property
    def auto(self) -> bool:
        """Whether the model itself may choose to call."""
        return self.parsing is not None and bool(self.parsing.tools)


def tooling(body: ChatRequest, reasoning: bool = False) -> Tooling:
    """Return what the tools in `body` ask for.

    Args:
        body: the request.
        reasoning: whether the workers shall tell reasoning from the answer.

    Raises:
        InvalidRequestError: they contradict each other, or ask for what cannot be kept.
    """
    tools = body.tools or []
    choice = body.tool_choice or ("auto" if tools else "none")
    _check(tools)
    if choice != "none" and not tools:
        raise InvalidRequestError("tool_choice: needs `tools`", param="tool_choice")
    parallel = body.parallel_tool_calls is not False
    plain = OutputParsing("", as_json(body.messages), _text(body.chat_template_kwargs or {})) if reasoning else None
    if choice == "none":
        return Tooling(parsing=plain)
    if choice == "auto":
        for index, tool in enumerate(tools):
            if tool.function.strict:
                param = f"tools[{index}].function.strict"
                raise InvalidRequestError(f"{param}: can only be kept when a tool is required or named", param=param)
        offered, variables = _text([_plain(tool) for tool in tools]), _text(body.chat_template_kwargs or {})
        parsing = OutputParsing(offered, as_json(body.messages), variables)
        return Tooling(parsing=parsing, parallel=parallel)
    if isinstance(choice, NamedTool):
        name = choice.function.name
        schema = next((_parameters(tool) for tool in tools if tool.function.name == name), None)
        if schema is None:
            raise InvalidRequestError("tool_choice.function.name: is none of `tools`", param="tool_choice.function.name")
        return Tooling(StructuredOutputs(json_schema=json.dumps(schema)), named=name, parsing=plain)
    constraint = StructuredOutputs(json_schema=json.dumps(_array_schema(tools, parallel)))
    return Tooling(constraint, parsing=plain, parallel=parallel)


def for_template(tools: list[Tool] | None) -> list[dict[str, Any]] | None:
    """Return `tools` as chat templates read them."""
    return [_plain(tool) for tool in tools] if tools else None


def check_depth(schema: Any, param: str) -> None:
    """Refuse a JSON schema so deep that compiling it may exhaust a stack.

    Raises:
        InvalidRequestError: it is nested more than 64 deep.
    """
    level = [schema]
    for _ in range(_MAX_SCHEMA_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise InvalidRequestError(f"{param}: is nested more than {_MAX_SCHEMA_DEPTH} deep", param=param)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check(tools: list[Tool]) -> None:
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.function.name in names:
            param = f"tools[{index}].function.name"
            raise InvalidRequestError(f"{param}: is the name of another tool too", param=param)
        names.add(tool.function.name)
        check_depth(tool.function.parameters, f"tools[{index}].function.parameters")


def _plain(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.function.name, "description": tool.function.description, "parameters": tool.function.parameters}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _parameters(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object", "properties": {}}


def _array_schema(tools: list[Tool], parallel: bool) -> dict[str, Any]:
    """Return the schema of a list of calls, as vLLM makes it; ``$defs`` move to the top."""
    defs: dict[str, Any] = {}
    calls = []
    for tool in tools:
        parameters = dict(_parameters(tool))
        mine = parameters.pop("$defs", {})
        if not isinstance(mine, dict) or any(defs.get(name, schema) != schema for name, schema in mine.items()):
            raise InvalidRequestError("tools: two of them define the same name in `$defs` differently", param="tools")
        defs.update(mine)
        properties = {"name": {"type": "string", "enum": [tool.function.name]}, "parameters": parameters}
        calls.append({"properties": properties, "required": ["name", "parameters"]})
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}
    return schema | ({} if parallel else {"maxItems": 1}) | ({"$defs": defs} if defs else {})


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


_HEAD = re.compile(r'\s*[\[,]?\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"parameters"\s*:\s*(?=\{)', re.DOTALL)


class ForcedCalls:
    """Cuts the text of forced calls into tool call deltas, whatever the pieces it comes in.

    Of a named function the whole text is its arguments. Otherwise the text is ``[{"name": …, "parameters": {…}}, …]``.
    """

    def __init__(self, named: str | None) -> None:
        self._named = named
        self._index = -1
        self._head = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> tuple[ToolCallDelta, ...]:
        """Return the calls, or pieces of them, that `text` adds."""
        if self._named is not None:
            if self._index < 0 and text:
                return (self._begin(self._named, text),)
            return (ToolCallDelta(0, arguments=text),) if text else ()
        deltas: list[ToolCallDelta] = []
        while text:
            if self._depth == 0:
                self._head, text = self._head + text, ""
                if head := _HEAD.search(self._head):
                    text, self._head = self._head[head.end() :], ""
                    deltas.append(self._begin(json.loads(head["name"]), ""))
            if text:
                end = self._end_of_value(text)
                deltas.append(ToolCallDelta(self._index, arguments=text[:end]))
                text = text[end:]
        return _merged(deltas)

    def _begin(self, name: str, arguments: str) -> ToolCallDelta:
        self._index += 1
        return ToolCallDelta(self._index, f"call_{secrets.token_hex(12)}", name, arguments)

    def _end_of_value(self, text: str) -> int:
        """Return where the JSON object that `text` begins or goes on with ends; its length when it does not."""
        for position, char in enumerate(text):
            if self._in_string:
                if self._escaped or char == "\\":
                    self._escaped = not self._escaped
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return position + 1
        return len(text)


def _merged(deltas: list[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """Join each call's beginning with the first piece of its arguments."""
    merged: list[ToolCallDelta] = []
    for delta in deltas:
        if merged and merged[-1].index == delta.index:
            last = merged.pop()
            delta = ToolCallDelta(delta.index, last.id, last.name, last.arguments + delta.arguments)
        merged.append(delta)
    return tuple(merged)
