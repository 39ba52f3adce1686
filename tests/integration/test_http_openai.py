"""The `openai` client, unmodified, against a processor and two decode workers with simulated engines."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from tests.support.decode_process import decode_process
from tests.support.edge import Edge, edge
from tests.support.nats import nats_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = [{"role": "user", "content": "Tell me about the river."}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """One graph for all tests of this file."""
    folder = tmp_path_factory.mktemp("graph")
    async with (
        nats_server(folder) as nats,
        decode_process(nats, folder, "decode-0"),
        decode_process(nats, folder, "decode-1"),
        edge(nats) as running,
    ):
        await running.ready(2)
        yield running


@pytest.fixture
def client(server: Edge) -> openai.AsyncOpenAI:
    """The asynchronous client."""
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)


async def test_chat(client: openai.AsyncOpenAI) -> None:
    """One choice, usage, a reason to end."""
    answer = await client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=12)  # type: ignore[arg-type]
    assert len(answer.choices) == 1
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


async def test_a_streamed_chat_says_the_same(client: openai.AsyncOpenAI) -> None:
    """Greedy: the pieces of the stream are the whole answer; usage comes last."""
    whole = await client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=12, temperature=0)  # type: ignore[arg-type]
    stream = await client.chat.completions.create(
        model="demo",
        messages=MESSAGES,  # type: ignore[arg-type]
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


async def test_the_synchronous_client(server: Edge) -> None:
    """Chat and stream, from a thread."""

    def talk() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
            whole = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=6, temperature=0)  # type: ignore[arg-type]
            stream = client.chat.completions.create(
                model="demo",
                messages=MESSAGES,  # type: ignore[arg-type]
                max_completion_tokens=6,
                temperature=0,
                stream=True,
            )
            return whole.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)

    whole, streamed = await asyncio.to_thread(talk)
    assert whole == streamed


async def test_several_choices(client: openai.AsyncOpenAI) -> None:
    """`n` choices with their numbers; the prompt counts once."""
    answer = await client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=4, n=3, seed=1)  # type: ignore[arg-type]
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    stream = await client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=4, n=3, stream=True)  # type: ignore[arg-type]
    ends = [c.choices[0].index async for c in stream if c.choices[0].finish_reason]
    assert sorted(ends) == [0, 1, 2]


async def test_stop(client: openai.AsyncOpenAI) -> None:
    """A stop string ends the answer before itself."""
    first = await client.completions.create(model="demo", prompt="The river", max_tokens=20, temperature=0)
    text = first.choices[0].text
    stop = text[len(text) // 2 :][:3]
    answer = await client.completions.create(model="demo", prompt="The river", max_tokens=20, temperature=0, stop=[stop])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    """One entry a token, with as many alternatives as asked for, in both formats."""
    chat = await client.chat.completions.create(
        model="demo",
        messages=MESSAGES,  # type: ignore[arg-type]
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [3] * 5
    assert "".join(entry.token for entry in logprobs.content) == chat.choices[0].message.content
    text = await client.completions.create(model="demo", prompt="a", max_tokens=5, logprobs=2)
    legacy = text.choices[0].logprobs
    assert legacy is not None
    assert legacy.tokens is not None
    assert len(legacy.tokens) == 5


async def test_completions(client: openai.AsyncOpenAI) -> None:
    """Several prompts, token ids, echo, stream."""
    many = await client.completions.create(model="demo", prompt=["one", "two"], n=2, max_tokens=3)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    echoed = await client.completions.create(model="demo", prompt="one two", max_tokens=3, echo=True)
    assert echoed.choices[0].text.startswith("one two")
    ids = await client.completions.create(model="demo", prompt=[[5, 6], [7]], max_tokens=3)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 3
    stream = await client.completions.create(model="demo", prompt="one", stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert sum(1 for chunk in chunks if chunk.choices) <= 16


async def test_models(client: openai.AsyncOpenAI) -> None:
    """The list and the one."""
    assert [model.id async for model in client.models.list()] == ["demo"]
    assert (await client.models.retrieve("demo")).id == "demo"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other/model")


async def test_extras_of_vllm(client: openai.AsyncOpenAI) -> None:
    """Through `extra_body`: honoured."""
    answer = await client.chat.completions.create(
        model="demo",
        messages=MESSAGES,  # type: ignore[arg-type]
        max_tokens=8,
        extra_body={"ignore_eos": True, "min_tokens": 8, "top_k": 5, "return_token_ids": True},
    )
    assert len(answer.choices[0].token_ids) == 8  # type: ignore[attr-defined]
    assert answer.prompt_token_ids  # type: ignore[attr-defined]


async def test_errors_are_the_clients_classes(client: openai.AsyncOpenAI) -> None:
    """400 with `param`, 404 for a model."""
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=3)  # type: ignore[arg-type]
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        await client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=100_000)  # type: ignore[arg-type]
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="other", messages=MESSAGES)  # type: ignore[arg-type]
    assert unknown.value.code == "model_not_found"


async def test_the_load_is_spread(server: Edge) -> None:
    """Concurrent requests go to both workers, and the header names which."""

    async def worker() -> str:
        async with server.http.post(server.url + "/v1/completions", json={"prompt": "a", "max_tokens": 30}) as response:
            assert response.status == 200
            return response.headers["x-penstock-worker"]

    names = await asyncio.gather(*(worker() for _ in range(20)))
    assert names.count("decode-0") == names.count("decode-1") == 10
    await server.idle()


async def test_metrics_of_the_whole_graph(server: Edge) -> None:
    """One page: the processor's own and every worker's."""
    async with server.http.get(server.url + "/metrics") as response:
        page = await response.text()
    assert 'penstock_workers_ready{process="processor-0"} 2.0' in page
    for worker in ("decode-0", "decode-1"):
        assert f'process="{worker}"' in page
