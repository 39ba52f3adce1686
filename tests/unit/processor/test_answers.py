"""Answers byte for byte: what OpenAI's clients read."""

import json
from typing import Any

import pytest

from components.processor.chat_answer import ChatAnswer
from components.processor.completion_answer import CompletionAnswer
from components.processor.generation import Piece
from components.processor.plan import Plan
from components.processor.render import Prompt
from components.processor.responses import error_event
from components.processor.sequence import Sequence
from components.processor.tools import Tooling
from components.wire.errors import InvalidApiKeyError, InvalidRequestError, NoWorkerError, OverloadedError
from components.wire.http_errors import error_body
from components.wire.messages import (
    FinishReason,
    OutputParsing,
    PositionLogprobs,
    Sampling,
    StructuredOutputs,
    TokenDelta,
    TokenLogprob,
    ToolCallDelta,
)

LOGPROBS = [
    PositionLogprobs(TokenLogprob(7, "hé", -0.5), (TokenLogprob(7, "hé", -0.5), TokenLogprob(8, "x", float("-inf"))))
]


def plan(**fields: Any) -> Plan:
    """Return a plan with one prompt of three tokens."""
    base: dict[str, Any] = {
        "model": "demo",
        "prompts": [Prompt([1, 2, 3])],
        "n": 1,
        "max_tokens": None,
        "settings": Sampling(10),
        "tools": Tooling(),
        "prompt_param": "messages",
        "stream": True,
        "usage": False,
        "usage_everywhere": False,
        "token_ids": False,
        "cache_salt": None,
    }
    return Plan(**base | fields)


def sequences(made: Plan) -> list[Sequence]:
    """Return empty sequences for a plan."""
    return [Sequence(index, made.prompts[index // made.n], made.settings) for index in range(made.n * len(made.prompts))]


def take(sequence: Sequence, **fields: Any) -> Piece:
    """Return the piece that a worker's delta makes."""
    return Piece(sequence, sequence.take(TokenDelta("r", len(sequence.token_ids), **fields), tokens_seen=True))


def events(data: bytes) -> list[Any]:
    """Return the events in `data`, decoded."""
    assert data.endswith(b"\n\n")
    texts = [part.removeprefix(b"data: ") for part in data.split(b"\n\n")[:-1]]
    return [text.decode() if text == b"[DONE]" else json.loads(text) for text in texts]


def test_a_chat_stream() -> None:
    """Role first, then content, then the finish reason, then ``[DONE]``."""
    made = plan()
    (sequence,) = sequences(made)
    answer = ChatAnswer(made, "1", 99)
    head = '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":99,"model":"demo","choices":[{"index":0,"delta":'
    assert answer.opening([sequence]).decode() == (
        f'data: {head}{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]}}\n\n'
    )
    pieces = [
        take(sequence, token_ids=[5], text="hel"),
        take(sequence, token_ids=[6], text="lo", finish_reason=FinishReason.STOP, stop_reason="x"),
    ]
    assert answer.chunks(pieces).decode() == (
        f'data: {head}{{"content":"hel"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
        f'data: {head}{{"content":"lo"}},"logprobs":null,"finish_reason":"stop","stop_reason":"x"}}]}}\n\n'
    )
    assert answer.closing([sequence]) == b"data: [DONE]\n\n"


def test_a_chat_streams_usage() -> None:
    """Null in every chunk but the last, which has no choices; or, when asked for, in every chunk."""
    made = plan(usage=True)
    (sequence,) = sequences(made)
    answer = ChatAnswer(made, "1", 99)
    piece = take(sequence, token_ids=[5, 6], text="hi", finish_reason=FinishReason.LENGTH, cached_tokens=2)
    (chunk,) = events(answer.chunks([piece]))
    assert chunk["usage"] is None
    last, done = events(answer.closing([sequence]))
    assert (last["choices"], done) == ([], "[DONE]")
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    everywhere = ChatAnswer(plan(usage=True, usage_everywhere=True), "1", 99)
    (chunk,) = events(everywhere.chunks([piece]))
    assert chunk["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_whole_chat() -> None:
    """Message, log probabilities, token ids, usage; a prompt counts once for all its choices."""
    made = plan(stream=False, n=2, token_ids=True, settings=Sampling(10, logprobs=2))
    both = sequences(made)
    for sequence in both:
        take(sequence, token_ids=[7], text="hé", logprobs=LOGPROBS, finish_reason=FinishReason.STOP, cached_tokens=1)
    answer = json.loads(ChatAnswer(made, "1", 99).whole(both))
    assert (answer["object"], answer["prompt_token_ids"]) == ("chat.completion", [1, 2, 3])
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    chosen = {"token": "hé", "logprob": -0.5, "bytes": [104, 195, 169]}
    least = {"token": "x", "logprob": -9999.0, "bytes": [120]}
    assert answer["choices"][1] == {
        "index": 1,
        "message": {"role": "assistant", "content": "hé", "refusal": None},
        "logprobs": {"content": [chosen | {"top_logprobs": [chosen, least]}], "refusal": None},
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": [7],
    }


@pytest.mark.parametrize(("named", "reason"), [(None, "tool_calls"), ("f", "stop")])
def test_forced_calls_stream(named: str | None, reason: str) -> None:
    """Name and id once, arguments in pieces, no content; a named call ends with `stop`, a chosen one with `tool_calls`."""
    made = plan(tools=Tooling(StructuredOutputs(json_object=True), named))
    (sequence,) = sequences(made)
    answer = ChatAnswer(made, "1", 99)
    texts = ['{"a"', ":1}", ""] if named else ['[{"name":"f", "par', 'ameters": {"a"', ":1}}]"]
    pieces = [take(sequence, token_ids=[1], text=text) for text in texts]
    pieces.append(take(sequence, token_ids=[2], finish_reason=FinishReason.STOP))
    chunks = [event["choices"][0] for event in events(answer.chunks(pieces))]
    calls = [chunk["delta"]["tool_calls"][0] for chunk in chunks[:-1]]
    assert (calls[0]["function"]["name"], calls[0]["type"], calls[0]["index"]) == ("f", "function", 0)
    assert calls[0]["id"].startswith("call_")
    assert all("name" not in call["function"] and "id" not in call for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a":1}'
    assert (chunks[-1]["delta"], chunks[-1]["finish_reason"]) == ({}, reason)


def test_forced_calls_whole() -> None:
    """Calls instead of content."""
    made = plan(stream=False, tools=Tooling(StructuredOutputs(json_object=True)))
    (sequence,) = sequences(made)
    take(sequence, token_ids=[1], text='[{"name": "f", "parameters": {}}]', finish_reason=FinishReason.STOP)
    (choice,) = json.loads(ChatAnswer(made, "1", 99).whole([sequence]))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert call == {"function": {"arguments": "{}", "name": "f"}, "id": call["id"], "type": "function"}


def test_calls_from_the_workers_parser() -> None:
    """Text and calls side by side; without parallel calls only the first one is shown."""
    made = plan(stream=False, tools=Tooling(parsing=OutputParsing("[]"), parallel=False))
    (sequence,) = sequences(made)
    calls = (ToolCallDelta(0, "call_1", "f"), ToolCallDelta(0, arguments="{}"), ToolCallDelta(1, "call_2", "g", "{}"))
    take(sequence, token_ids=[1], text="Let me see.", tool_calls=calls, finish_reason=FinishReason.STOP)
    (choice,) = json.loads(ChatAnswer(made, "1", 99).whole([sequence]))["choices"]
    assert choice["message"]["content"] == "Let me see."
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [{"arguments": "{}", "name": "f"}]
    assert choice["finish_reason"] == "tool_calls"


def test_text_and_calls_in_one_piece() -> None:
    """None is lost; of a forced call, the raw text is never shown."""
    made = plan(tools=Tooling(parsing=OutputParsing("[]")))
    (sequence,) = sequences(made)
    piece = take(sequence, token_ids=[1], text="Sure.", tool_calls=(ToolCallDelta(0, "call_1", "f", "{}"),))
    (chunk,) = events(ChatAnswer(made, "1", 99).chunks([piece]))
    assert chunk["choices"][0]["delta"]["content"] == "Sure."
    assert chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "f"
    forced = plan(tools=Tooling(StructuredOutputs(json_object=True), parsing=OutputParsing()))
    (sequence,) = sequences(forced)
    (chunk,) = events(ChatAnswer(forced, "1", 99).chunks([take(sequence, token_ids=[1], reasoning="So", text='[{"na')]))
    assert chunk["choices"][0]["delta"] == {"reasoning": "So"}


def test_reasoning_stands_beside_the_answer() -> None:
    """In a field of its own, as vLLM's server has it; while there is no answer yet, its content is missing or null."""
    made = plan(tools=Tooling(parsing=OutputParsing()))
    (sequence,) = sequences(made)
    answer = ChatAnswer(made, "1", 99)
    pieces = [take(sequence, token_ids=[1], reasoning="Well"), take(sequence, token_ids=[2], reasoning=", ", text="Yes")]
    (choice,) = json.loads(ChatAnswer(made, "1", 99).whole([sequence]))["choices"]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("Well, ", "Yes")
    pieces.append(take(sequence, token_ids=[3], text=".", finish_reason=FinishReason.STOP))
    deltas = [event["choices"][0]["delta"] for event in events(answer.chunks(pieces))]
    assert deltas == [{"reasoning": "Well"}, {"content": "Yes", "reasoning": ", "}, {"content": "."}]
    (thinking,) = sequences(made)
    take(thinking, token_ids=[1], reasoning="Well", finish_reason=FinishReason.LENGTH)
    (choice,) = json.loads(answer.whole([thinking]))["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None, "reasoning": "Well"}


def test_a_completion_stream() -> None:
    """The echoed prompt goes before the first text; log probabilities count characters from the start of the output."""
    made = plan(prompts=[Prompt([1], "p")], settings=Sampling(10, logprobs=1), token_ids=True)
    (sequence,) = sequences(made)
    answer = CompletionAnswer(made, "1", 99)
    pieces = [
        take(sequence, token_ids=[7], text="hé", logprobs=LOGPROBS),
        take(sequence, token_ids=[7], text="hé", logprobs=LOGPROBS, finish_reason=FinishReason.LENGTH),
    ]
    first, second = [event["choices"][0] for event in events(answer.chunks(pieces))]
    assert answer.opening([sequence]) == b""
    assert first == {
        "index": 0,
        "text": "phé",
        "logprobs": {
            "text_offset": [0],
            "token_logprobs": [-0.5],
            "tokens": ["hé"],
            "top_logprobs": [{"hé": -0.5, "x": -9999.0}],
        },
        "finish_reason": None,
        "stop_reason": None,
        "prompt_token_ids": [1],
        "token_ids": [7],
    }
    assert (second["text"], second["logprobs"]["text_offset"], second["finish_reason"]) == ("hé", [2], "length")


def test_a_whole_completion_of_two_prompts() -> None:
    """Choices are numbered through; each prompt counts."""
    made = plan(stream=False, prompts=[Prompt([1]), Prompt([1, 2])], n=2)
    made_sequences = sequences(made)
    for sequence in made_sequences:
        take(sequence, token_ids=[7], text=str(sequence.index), finish_reason=FinishReason.STOP)
    answer = json.loads(CompletionAnswer(made, "1", 99).whole(made_sequences))
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert (answer["id"], answer["object"]) == ("cmpl-1", "text_completion")


def test_errors_in_openais_shape() -> None:
    """Message, type, param, code; in a stream as an ``error`` event."""
    error = InvalidRequestError("n: must be at least 1", param="n")
    body = {"message": "n: must be at least 1", "type": "invalid_request_error", "param": "n", "code": "invalid_request"}
    assert json.loads(error_body(error)) == {"error": body}
    assert error_event(error) == b"event: error\ndata: " + error_body(error) + b"\n\n"
    kinds = [
        json.loads(error_body(kind("x")))["error"]["type"] for kind in (NoWorkerError, OverloadedError, InvalidApiKeyError)
    ]
    assert kinds == ["server_error", "rate_limit_error", "authentication_error"]
