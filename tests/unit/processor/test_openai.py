"""Every field a client may send is honoured, or refused with a 400 that names it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.model.tokenizer import Tokenizer
from components.processor.openai import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, parse, prompts
from components.processor.plan import Plan, plan_chat, plan_completion
from components.processor.sampling import Limits
from components.wire.errors import (
    ContextLengthExceededError,
    ErrorCode,
    InvalidRequestError,
    ModelNotFoundError,
    PenstockError,
)
from components.wire.messages import Sampling, StructuredOutputs

USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}}


def limits(tokenizer: Tokenizer) -> Limits:
    """Return the limits of the tests."""
    return Limits(tokenizer.vocab_size, 8, 5)


def chat(tokenizer: Tokenizer, **fields: Any) -> Plan:
    """Return the plan of a chat with `fields`."""
    body = {"model": "demo", "messages": [USER]} | fields
    return plan_chat(json.dumps(body).encode(), "demo", tokenizer, limits(tokenizer))


def completion(tokenizer: Tokenizer, **fields: Any) -> Plan:
    """Return the plan of a completion with `fields`."""
    body = {"model": "demo", "prompt": "hello"} | fields
    return plan_completion(json.dumps(body).encode(), "demo", tokenizer, limits(tokenizer))


def sampling(plan: Plan) -> Sampling:
    """Return the settings of the plan's first sequence, in a context of 2048 tokens."""
    return plan.sampling(plan.prompts[0], 0, 2048)


HONOURED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0}, {"temperature": 0.0}),
    ({"temperature": None}, {"temperature": 1.0}),
    ({"top_p": 0.5}, {"top_p": 0.5}),
    ({"top_k": 7}, {"top_k": 7}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"min_p": 0.25}, {"min_p": 0.25}),
    ({"presence_penalty": -2}, {"presence_penalty": -2.0}),
    ({"frequency_penalty": 2}, {"frequency_penalty": 2.0}),
    ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    ({"seed": -(2**63)}, {"seed": -(2**63)}),
    ({"stop": "x"}, {"stop": ("x",)}),
    ({"stop": ["x", "yz"]}, {"stop": ("x", "yz")}),
    ({"stop_token_ids": [3, 4]}, {"stop_token_ids": (3, 4)}),
    ({"include_stop_str_in_output": True}, {"include_stop_str_in_output": True}),
    ({"ignore_eos": True}, {"ignore_eos": True}),
    ({"min_tokens": 3}, {"min_tokens": 3}),
    ({"max_tokens": 9}, {"max_tokens": 9}),
    ({"logit_bias": {"5": -100, "6": 1.5}}, {"logit_bias": {5: -100.0, 6: 1.5}}),
    ({"allowed_token_ids": [1, 2]}, {"allowed_token_ids": (1, 2)}),
    ({"bad_words": ["damn"]}, {"bad_words": ("damn",)}),
    ({"skip_special_tokens": False}, {"skip_special_tokens": False}),
    ({"spaces_between_special_tokens": False}, {"spaces_between_special_tokens": False}),
    ({"response_format": {"type": "text"}}, {"structured_outputs": None}),
    ({"response_format": {"type": "json_object"}}, {"structured_outputs": StructuredOutputs(json_object=True)}),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True},
            }
        },
        {"structured_outputs": StructuredOutputs(json_schema='{"type": "object"}')},
    ),
    ({"structured_outputs": {"choice": ["a", "b"]}}, {"structured_outputs": StructuredOutputs(choice=("a", "b"))}),
    ({"structured_outputs": {"regex": "a+"}}, {"structured_outputs": StructuredOutputs(regex="a+")}),
    (
        {"structured_outputs": {"json": '{"type":"object"}'}},
        {"structured_outputs": StructuredOutputs(json_schema='{"type": "object"}')},
    ),
    ({"user": "me"}, {}),
]


@pytest.mark.parametrize(("fields", "expected"), HONOURED, ids=[json.dumps(fields)[:50] for fields, _ in HONOURED])
def test_a_field_reaches_the_engine(tokenizer: Tokenizer, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each sampling field of chats and completions becomes the engine's setting."""
    for plan in (chat(tokenizer, **fields), completion(tokenizer, **fields)):
        settings = sampling(plan)
        assert {name: getattr(settings, name) for name in expected} == expected


REFUSED_BY_BOTH: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"n": 16384}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 20, "max_tokens": 10}, "min_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a"] * 65}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [10**6]}, "stop_token_ids"),
    ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1000000": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema.schema"),
    ({"response_format": "json"}, "response_format"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"json": "nonsense"}}, "structured_outputs.json"),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"add_special_tokens": 1}, "add_special_tokens"),
    ({"return_token_ids": "x"}, "return_token_ids"),
    ({"user": 5}, "user"),
    ({"guided_json": {}}, "guided_json"),
    ({"guided_choice": ["a"]}, "guided_choice"),
    ({"kv_transfer_params": {}}, "kv_transfer_params"),
    ({"priority": 1}, "priority"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"truncate_prompt_tokens": 1}, "truncate_prompt_tokens"),
    ({"vllm_xargs": {}}, "vllm_xargs"),
    ({"request_id": "x"}, "request_id"),
    ({"nonsense": 1}, "nonsense"),
]

REFUSED_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages[0].mood"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"tools": []}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"function": {"name": "no spaces"}}]}, "tools[0].function.name"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ({"tools": [{"function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"function": {"name": "other"}}}, "tool_choice.function.name"),
    ({"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tools": "x"}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"deep": {}}}, "chat_template_kwargs[...]"),
    ({"documents": []}, "documents"),
    ({"modalities": ["audio"]}, "modalities[0]"),
    ({"audio": {}}, "audio"),
    ({"prediction": {}}, "prediction"),
    ({"functions": []}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"verbosity": "low"}, "verbosity"),
    ({"prompt": "x"}, "prompt"),
]

REFUSED_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**6]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": ["a"] * 9}, "prompt"),
    ({"prompt": ["a"] * 3, "n": 3}, "prompt"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": True, "logprobs": 1}, "echo"),
    ({"messages": [USER]}, "messages"),
    ({"prompt_embeds": "x"}, "prompt_embeds"),
]


def refusal(make: Any, tokenizer: Tokenizer, fields: dict[str, Any]) -> PenstockError:
    """Return the error that a body with `fields` gets."""
    with pytest.raises(PenstockError) as caught:
        sampling(make(tokenizer, **fields))
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param"), REFUSED_BY_BOTH, ids=[json.dumps(fields)[:50] for fields, _ in REFUSED_BY_BOTH]
)
def test_both_refuse(tokenizer: Tokenizer, fields: dict[str, Any], param: str) -> None:
    """Chats and completions refuse the same."""
    for make in (chat, completion):
        error = refusal(make, tokenizer, fields)
        assert (error.code, error.param) == (ErrorCode.INVALID_REQUEST, param), error
        assert param.split(".")[0].split("[")[0] in error.message


@pytest.mark.parametrize(("fields", "param"), REFUSED_CHAT, ids=[json.dumps(fields)[:50] for fields, _ in REFUSED_CHAT])
def test_chats_refuse(tokenizer: Tokenizer, fields: dict[str, Any], param: str) -> None:
    """What only chats have."""
    error = refusal(chat, tokenizer, fields)
    assert (error.code, error.param) == (ErrorCode.INVALID_REQUEST, param), error


@pytest.mark.parametrize(
    ("fields", "param"), REFUSED_COMPLETION, ids=[json.dumps(fields)[:50] for fields, _ in REFUSED_COMPLETION]
)
def test_completions_refuse(tokenizer: Tokenizer, fields: dict[str, Any], param: str) -> None:
    """What only completions have."""
    error = refusal(completion, tokenizer, fields)
    assert (error.code, error.param) == (ErrorCode.INVALID_REQUEST, param), error


ACCEPTED_WITHOUT_EFFECT: list[dict[str, Any]] = [
    {"metadata": {"a": "b"}, "safety_identifier": "x", "prompt_cache_key": "k", "store": False},
    {"modalities": ["text"], "service_tier": "auto", "audio": None, "prediction": None, "functions": None},
    {"tools": None, "tool_choice": "none", "parallel_tool_calls": True, "response_format": None},
    {"stream": False, "stream_options": None, "n": None, "stop": None, "logit_bias": None, "logprobs": False},
]


@pytest.mark.parametrize("fields", ACCEPTED_WITHOUT_EFFECT)
def test_neutral_values_change_nothing(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """What clients send by habit gives the same plan as leaving it out."""
    assert chat(tokenizer, **fields) == chat(tokenizer)


def test_too_many_prompts_are_refused_before_any_is_tokenized(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting them costs nothing; tokenizing a million of them does."""
    monkeypatch.setattr(Tokenizer, "encode", lambda *_, **__: pytest.fail("tokenized"))
    for fields in ({"prompt": ["x"] * 9}, {"prompt": ["x"] * 5, "n": 2}):
        with pytest.raises(InvalidRequestError, match="at most 8 choices") as caught:
            completion(tokenizer, **fields)
        assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("make", "body", "param"),
    [
        (plan_chat, {"messages": [{"role": "user", "content": "a" * 100_000}]}, "messages"),
        (plan_completion, {"prompt": ["a", "a" * 100_000]}, "prompt"),
        (plan_completion, {"prompt": [5] * 101, "echo": True}, "prompt"),
    ],
)
def test_what_cannot_fit_is_refused_before_it_is_tokenized(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, make: Any, body: dict[str, Any], param: str
) -> None:
    """No text of more characters than the context's tokens can have is worth the seconds its tokenizing takes."""
    narrow = msgspec.structs.replace(limits(tokenizer), context_tokens=100)
    for name in ("encode", "decode"):
        monkeypatch.setattr(Tokenizer, name, lambda _, text, **__: [5] if text == "a" else pytest.fail("tokenized"))
    with pytest.raises(ContextLengthExceededError) as caught:
        make(json.dumps(body).encode(), "demo", tokenizer, narrow)
    assert caught.value.param == param
    assert "100 tokens" in caught.value.message


def test_what_may_fit_is_tokenized(tokenizer: Tokenizer) -> None:
    """The longest text that is let through: the longest token as often as the context holds it."""
    narrow = msgspec.structs.replace(limits(tokenizer), context_tokens=100)
    text = "a" * (100 * tokenizer.longest_token_chars)
    plan = plan_completion(json.dumps({"prompt": text, "add_special_tokens": False}).encode(), "demo", tokenizer, narrow)
    assert len(plan.prompts[0].token_ids) > 100


def test_another_model_is_not_found(tokenizer: Tokenizer) -> None:
    """404, naming the field; no model means ours."""
    error = refusal(chat, tokenizer, {"model": "gpt-4o"})
    assert isinstance(error, ModelNotFoundError)
    assert error.param == "model"
    assert chat(tokenizer, model=None) == chat(tokenizer)


def test_the_context_bounds_prompt_and_output(tokenizer: Tokenizer) -> None:
    """The default is what the context leaves; more is a 400 with both numbers."""
    plan = completion(tokenizer, prompt=[1] * 90)
    assert plan.sampling(plan.prompts[0], 0, 106).max_tokens == 16
    with pytest.raises(ContextLengthExceededError, match=r"100 tokens; the request takes 90 for the prompt and 16"):
        plan.sampling(plan.prompts[0], 0, 100)
    with pytest.raises(ContextLengthExceededError, match=r"90 tokens; the request takes 90 for the prompt"):
        plan.sampling(plan.prompts[0], 0, 90)
    talk = chat(tokenizer)
    assert sampling(talk).max_tokens == 2048 - len(talk.prompts[0].token_ids)


def test_choices_get_seeds_of_their_own(tokenizer: Tokenizer) -> None:
    """Choice i of a seeded request is seeded with seed + i, within 64 bits."""
    plan = chat(tokenizer, seed=2**63 - 1, n=2)
    seeds = [plan.sampling(plan.prompts[0], choice, 2048).seed for choice in range(2)]
    assert seeds == [2**63 - 1, -(2**63)]


def test_messages_reach_the_template(tokenizer: Tokenizer) -> None:
    """Every role, text parts joined by newlines, tool calls and results."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    said = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "audio": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    text = tokenizer.decode(chat(tokenizer, messages=said).prompts[0].token_ids, skip_special_tokens=False)
    assert "system\nbe kind" in text
    assert "user\na\nb" in text
    assert '"name": "weather", "arguments": {"city": "Rome"}' in text
    assert "tool\nsunny" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_the_last_message_can_be_continued(tokenizer: Tokenizer) -> None:
    """`continue_final_message` leaves it open; `echo` repeats it in the answer."""
    said = [USER, {"role": "assistant", "content": "Once upon"}]
    plan = chat(tokenizer, messages=said, continue_final_message=True, echo=True)
    assert tokenizer.decode(plan.prompts[0].token_ids, skip_special_tokens=False).endswith("assistant\nOnce upon")
    assert plan.prompts[0].echo == "Once upon"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_of_every_shape(value: Any, expected: Any) -> None:
    """A string, strings, token ids, lists of them."""
    assert prompts(value) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"messages":[{"role":"user","content":"x"}],"temperature":Infinity}',
        b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 400 + b"}",
        b'{"messages":' + b"[" * 100_000,
        b'{"messages":[{"role":"user","content":"x"}],"tools":[{"function":{"name":"f","parameters":{"a":'
        + b'{"a":' * 200
        + b"1"
        + b"}" * 200
        + b"}}}]}",
        b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_bodies_that_are_no_request(tokenizer: Tokenizer, body: bytes) -> None:
    """Broken JSON, broken text, numbers out of the world, depth: always the client's error."""
    for plan in (plan_chat, plan_completion):
        with pytest.raises(InvalidRequestError):
            plan(body, "demo", tokenizer, limits(tokenizer))


def test_errors_do_not_repeat_what_was_sent(tokenizer: Tokenizer) -> None:
    """Neither a bad value nor prompt content appears in an error text."""
    secret = "the combination is 1234"
    for fields in ({"messages": [{"role": secret, "content": "x"}]}, {"tool_choice": secret}, {"temperature": secret}):
        assert secret not in refusal(chat, tokenizer, fields).message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
CHAT_FIELDS = [name for name in ChatRequest.__struct_fields__ if name != "model"]


@given(st.dictionaries(st.sampled_from(CHAT_FIELDS) | st.text(max_size=6), JSON, max_size=4))
def test_any_value_in_any_field_is_answered(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """Whatever stands in a field, the outcome is a plan or an error for the client, never an accident."""
    body = msgspec.json.encode({"messages": [USER]} | fields)
    for plan in (plan_chat, plan_completion):
        try:
            outcome: object = sampling(plan(body, "demo", tokenizer, limits(tokenizer)))
        except PenstockError as error:
            outcome = error
        assert isinstance(outcome, Sampling | InvalidRequestError)


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(data: bytes) -> None:
    """Garbage is refused as the client's error by every endpoint."""
    for kind in (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        try:
            outcome: object = parse(data, kind)
        except InvalidRequestError as error:
            outcome = error
        assert isinstance(outcome, kind | InvalidRequestError)
