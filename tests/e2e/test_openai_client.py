"""The unmodified `openai` client against launched graphs: every field of the API that changes an answer changes it."""

import asyncio
import json

import openai
import pytest
from openai import AsyncOpenAI

from tests.support.launched import Launched

STORY = [{"role": "user", "content": "Tell me a story."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(graph: Launched) -> openai.OpenAI:
    """A client of the launched graph."""
    return graph.client()


@pytest.fixture
def simulated(graph: Launched) -> bool:
    """Whether the graph's engines only pretend to compute: they can't be constrained."""
    return "sim" in graph.output.split(" is ready")[0].rsplit("\n", 1)[-1]


def test_choices_differ_and_repeat_with_a_seed(client: openai.OpenAI) -> None:
    """`n` gives so many answers; the same seed gives the same ones again."""
    ask = {"model": "demo", "messages": STORY, "max_tokens": 12, "n": 3, "temperature": 1.0, "seed": 7}
    first, again = (client.chat.completions.create(**ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]
    assert first.usage
    assert first.usage.completion_tokens == 36


def test_greedy_answers_agree_streamed_and_not(client: openai.OpenAI) -> None:
    """A stream's pieces are the whole answer, whichever worker served it."""
    ask = {"model": "demo", "messages": STORY, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask, stream=True)]
    assert "".join(pieces) == whole
    assert len(pieces) > 4


def test_a_stop_string_ends_the_answer_and_is_left_out(client: openai.OpenAI) -> None:
    """What the greedy answer would say next is cut at the stop string."""
    ask = {"model": "demo", "messages": STORY, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**ask).choices[0].message.content or ""
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = client.chat.completions.create(**ask, stop=[stop, "never said"]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == whole[: whole.index(stop)]


def test_log_probabilities(client: openai.OpenAI) -> None:
    """One entry a token, the most likely first, bytes that spell the answer."""
    answer = client.chat.completions.create(
        model="demo", messages=STORY, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    ).choices[0]
    assert answer.logprobs
    assert answer.logprobs.content
    assert len(answer.logprobs.content) == 8
    for entry in answer.logprobs.content:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert entry.logprob == pytest.approx(values[0])
        assert entry.logprob <= 0


def test_a_bias_forces_a_token(client: openai.OpenAI, graph: Launched) -> None:
    """With +100 on one token nothing else is said."""
    tokens = client.post(f"{graph.url}/tokenize", cast_to=object, body={"prompt": "the"})
    token = tokens["tokens"][-1]  # type: ignore[index]
    answer = client.completions.create(
        model="demo", prompt="Once", max_tokens=5, temperature=0, logit_bias={str(token): 100}, logprobs=0
    )
    assert answer.choices[0].logprobs
    assert len(set(answer.choices[0].logprobs.tokens or [])) == 1


def test_completions_with_several_prompts_and_echo(client: openai.OpenAI) -> None:
    """Each prompt gets its choices, in order; `echo` puts the prompt in front."""
    answer = client.completions.create(model="demo", prompt=["One", "Two"], max_tokens=4, n=2, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[:3] for choice in answer.choices] == ["One", "One", "Two", "Two"]


def test_both_names_of_the_output_limit(client: openai.OpenAI) -> None:
    """`max_completion_tokens` means what `max_tokens` means."""
    for limit in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model="demo", messages=STORY, extra_body={"ignore_eos": True, limit: 6, "min_tokens": 6}
        )
        assert answer.usage
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (6, "length")


def test_json_by_schema(client: openai.OpenAI, simulated: bool) -> None:
    """The answer is JSON of the given schema; an engine that can't do that says so."""
    schema = {"name": "answer", "schema": WEATHER["function"]["parameters"], "strict": True}  # type: ignore[index]
    ask = {"model": "demo", "messages": STORY, "max_tokens": 60, "temperature": 0}
    form = {"type": "json_schema", "json_schema": schema}
    if simulated:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**ask, response_format=form)
        return
    answer = client.chat.completions.create(**ask, response_format=form)
    assert json.loads(answer.choices[0].message.content or "")["city"] in {"Oslo", "Rome"}


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"]
)
def test_a_forced_tool_call(client: openai.OpenAI, simulated: bool, choice: object) -> None:
    """The answer calls the tool with arguments of its schema, whole and streamed; a random model may call it again."""
    ask = {"model": "demo", "messages": STORY, "max_tokens": 80, "temperature": 0, "tools": [WEATHER], "tool_choice": choice}
    if simulated:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**ask)
        return
    call, *_ = client.chat.completions.create(**ask).choices[0].message.tool_calls or []
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in {"Oslo", "Rome"}
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**ask, stream=True) if chunk.choices]
    first = [piece for delta in deltas for piece in delta.tool_calls or [] if piece.index == 0]
    pieces = [piece.function for piece in first if piece.function]
    assert next(piece.name for piece in pieces if piece.name) == "weather"
    assert json.loads("".join(piece.arguments or "" for piece in pieces)) == json.loads(call.function.arguments)


async def test_the_asynchronous_client_streams_many_at_once(graph: Launched) -> None:
    """Sixteen streams of one async client, each complete."""

    async def one(client: AsyncOpenAI) -> int:
        stream = await client.chat.completions.create(
            model="demo", messages=STORY, max_tokens=16, stream=True, extra_body={"ignore_eos": True},
            stream_options={"include_usage": True},
        )  # fmt: skip
        usage = [chunk.usage async for chunk in stream][-1]
        return usage.completion_tokens if usage else 0

    async with AsyncOpenAI(base_url=f"{graph.url}/v1", api_key="none") as client:
        assert await asyncio.gather(*(one(client) for _ in range(16))) == [16] * 16


def test_what_is_wrong_is_said_with_its_field(client: openai.OpenAI) -> None:
    """Errors are OpenAI's: class by status, `param` names the field."""
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=STORY)
    for field, value in {"n": 129, "temperature": 9, "kv_transfer_params": {}, "priority": 1, "chat_template": "x"}.items():
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model="demo", messages=STORY, extra_body={field: value})
        assert error.value.param == field
