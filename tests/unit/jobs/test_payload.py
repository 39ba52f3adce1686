"""What a payload may say, and the document's defaults and result."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.jobs.assemble import Assembly
from components.jobs.payload import PayloadError, read_payload, result_of

MESSAGES = [{"role": "user", "content": "Hi"}]


def test_the_document_s_example() -> None:
    """With its envelope; every field arrives."""
    payload = {
        "messages": MESSAGES,
        "model": "default",
        "temperature": 0.7,
        "max_tokens": 512,
        "top_p": 1.0,
        "stop": ["\n\n"],
    }
    job = read_payload(json.dumps({"id": "job-123", "job_type": "chat_completion", "payload": payload}).encode())
    assert (job.job_type, job.model) == ("chat_completion", None)
    assert job.request == {
        "messages": MESSAGES,
        "temperature": 0.7,
        "max_tokens": 512,
        "top_p": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "stop": ["\n\n"],
    }


def test_defaults_fill_what_is_missing_and_zeros_stay() -> None:
    """Null counts as missing."""
    given_zeros = {"temperature": 0, "top_p": 0.0, "frequency_penalty": 0, "presence_penalty": 0, "max_tokens": None}
    job = read_payload(json.dumps({"messages": MESSAGES, "task": "llm_inference", "model": "m", **given_zeros}).encode())
    assert (job.job_type, job.model) == ("llm_inference", "m")
    assert job.request["temperature"] == 0
    assert job.request["top_p"] == 0
    assert job.request["max_tokens"] == 512
    assert "max_tokens" not in read_payload(json.dumps({"messages": MESSAGES, "max_completion_tokens": 5}).encode()).request


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"messages": None}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": 1, "content": "a"}]}, "messages[0]"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 1000}, "n"),
        ({"stop": {"a": 1}}, "stop"),
        ({"model": ""}, "model"),
        ({"job_type": "x"}, "job_type"),
        ({"priority": 1}, "priority"),
        ({"chat_template": "x"}, "chat_template"),
    ],
)
def test_mistakes_name_their_field(fields: dict[str, Any], at_fault: str) -> None:
    """And no engine hears of them."""
    with pytest.raises(PayloadError) as error:
        read_payload(json.dumps({"messages": MESSAGES, **fields}).encode())
    assert str(error.value).startswith(f"{at_fault}:")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_anything_is_read_or_refused(value: object) -> None:
    """No payload is a surprise."""
    for data in (json.dumps(value), json.dumps({"messages": value}), json.dumps({"payload": value})):
        try:
            read_payload(data.encode())
        except PayloadError:
            continue


def test_the_result_s_shape() -> None:
    """As the document has it; the time in UTC, with Z."""
    at = datetime(2024, 1, 29, 12, 0, tzinfo=UTC)
    result = json.loads(result_of("chat_completion", {"id": "c"}, at))
    assert result == {
        "status": "success",
        "job_type": "chat_completion",
        "processed_at": "2024-01-29T12:00:00.000Z",
        "completion": {"id": "c"},
    }


def test_chunks_become_one_completion() -> None:
    """Texts, tool calls, several choices, logprobs, usage."""
    assembly = Assembly()
    call = {"index": 0, "id": "t", "function": {"name": "f", "arguments": "{"}}
    for choices in (
        [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
        [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [1]}}],
        [{"index": 1, "delta": {"tool_calls": [call]}}],
        [
            {
                "index": 1,
                "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
                "finish_reason": "tool_calls",
            }
        ],
    ):
        assembly.add({"id": "c", "model": "m", "choices": choices})
    assert not assembly.complete
    assembly.add({"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}]})
    assembly.add({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5, "details": {}}})
    assert assembly.complete
    assert assembly.tokens == 4
    completion = assembly.completion()
    assert completion["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    first, second = completion["choices"]
    assert (first["message"]["content"], first["finish_reason"], first["logprobs"]) == ("ab", "stop", {"content": [1]})
    tool_call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert second["message"]["tool_calls"] == [tool_call]
