"""Forced tool calls: the schema that constrains the text, and the text cut into calls again."""

import itertools
import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from components.processor.openai import ChatRequest, parse
from components.processor.tools import ForcedCalls, Tooling, tooling
from components.wire.messages import ToolCallDelta

CALLS = [
    {"name": "weather", "parameters": {"city": 'Ro"me}]\\', "days": [1, {"a": {}}]}},
    {"name": "time", "parameters": {}},
]


def use(reasoning: bool = False, **fields: object) -> Tooling:
    """Return what a chat with `fields` and two tools asks for, of a model that reasons or not."""
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "$defs": {"City": {}}}}},
        {"type": "function", "function": {"name": "time"}},
    ]
    body = {"messages": [{"role": "user", "content": "x"}], "tools": tools} | fields
    return tooling(parse(msgspec.json.encode(body), ChatRequest), reasoning)


def test_required_constrains_to_a_list_of_calls() -> None:
    """Any of the tools, at least one; shared definitions move to the top."""
    constraint = use(tool_choice="required").constraint
    assert constraint is not None
    assert json.loads(constraint.json_schema or "") == {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "anyOf": [
                {
                    "properties": {"name": {"type": "string", "enum": ["weather"]}, "parameters": {"type": "object"}},
                    "required": ["name", "parameters"],
                },
                {
                    "properties": {
                        "name": {"type": "string", "enum": ["time"]},
                        "parameters": {"type": "object", "properties": {}},
                    },
                    "required": ["name", "parameters"],
                },
            ],
        },
        "$defs": {"City": {}},
    }


def test_one_call_at_most_when_not_parallel() -> None:
    """`parallel_tool_calls: false` becomes part of the schema."""
    constraint = use(tool_choice="required", parallel_tool_calls=False).constraint
    assert json.loads((constraint and constraint.json_schema) or "")["maxItems"] == 1


def test_a_named_tool_constrains_to_its_parameters() -> None:
    """The output is the arguments."""
    named = use(tool_choice={"type": "function", "function": {"name": "time"}})
    assert named.named == "time"
    assert named.constraint is not None
    assert json.loads(named.constraint.json_schema or "") == {"type": "object", "properties": {}}


def test_auto_goes_to_the_workers_parser() -> None:
    """It is the default when there are tools; nothing is constrained."""
    auto = use()
    assert auto.constraint is None
    assert auto.parsing is not None
    assert [tool["function"]["name"] for tool in json.loads(auto.parsing.tools)] == ["weather", "time"]
    assert json.loads(auto.parsing.messages)[0]["content"] == "x"
    assert use(tool_choice="none") == Tooling()


def test_reasoning_is_taken_out_whatever_the_tools() -> None:
    """Of models that reason, every chat answer goes through the worker's parser; without `auto` it looks for no calls."""
    asked = {"chat_template_kwargs": {"enable_thinking": False}}
    none, required, auto = (use(True, tool_choice=choice, **asked).parsing for choice in ("none", "required", "auto"))
    assert none == required
    assert none is not None
    assert auto is not None
    assert (none.tools, json.loads(none.template_variables)) == ("", {"enable_thinking": False})
    assert (auto.messages, auto.template_variables) == (none.messages, none.template_variables)
    assert auto.tools


def collect(pieces: list[str], named: str | None = None) -> list[ToolCallDelta]:
    """Return whole calls made of what the pieces give."""
    cutter = ForcedCalls(named)
    calls: dict[int, ToolCallDelta] = {}
    for piece in pieces:
        for delta in cutter.feed(piece):
            known = calls.get(delta.index)
            assert (known is None) == (delta.name is not None) == (delta.id is not None)
            calls[delta.index] = (
                delta
                if known is None
                else ToolCallDelta(delta.index, known.id, known.name, known.arguments + delta.arguments)
            )
    return list(calls.values())


@given(st.lists(st.integers(0, 200), max_size=30), st.sampled_from([None, 1]))
def test_calls_are_the_same_however_the_text_is_cut(cuts: list[int], indent: int | None) -> None:
    """Braces, quotes and escapes in strings included, and any white space."""
    text = json.dumps(CALLS, indent=indent)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    calls = collect(pieces)
    assert [(call.index, call.name, json.loads(call.arguments)) for call in calls] == [
        (index, call["name"], call["parameters"]) for index, call in enumerate(CALLS)
    ]
    assert len({call.id for call in calls}) == 2


def test_a_text_cut_short_gives_what_there_is() -> None:
    """`max_tokens` may end a call in its middle."""
    (call,) = collect(['[{"name": "weather", "parameters": {"ci'])
    assert (call.name, call.arguments) == ("weather", '{"ci')


def test_a_named_call_is_its_arguments() -> None:
    """The whole text, in the pieces it comes in; empty pieces give nothing."""
    (call,) = collect(["", '{"a":', "", "1}"], "weather")
    assert (call.name, call.arguments) == ("weather", '{"a":1}')
