"""The HTTP surface beside generation: tools, ids, keys, limits, TLS, tokenizing, errors of every kind."""

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from components.graph.schema import Nats
from components.model.folder import model_folder
from components.wire.errors import ErrorCode, ErrorReply
from components.wire.messages import FinishReason, GenerateRequest
from tests.support.edge import edge, scripted
from tests.support.nats import nats_server
from tests.support.scripted_worker import Script, ScriptedWorker

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 64}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A private NATS server."""
    async with nats_server(tmp_path) as settings:
        yield settings


def saying(*texts: str) -> Script:
    """Return a script that says `texts`, a token each."""

    async def script(worker: ScriptedWorker, request: GenerateRequest) -> None:
        for number, text in enumerate(texts):
            end = FinishReason.STOP if number == len(texts) - 1 else None
            await worker.send(request, offset=number, token_ids=[5], text=text, finish_reason=end)

    return script


async def test_required_tools_through_the_client(nats: Nats) -> None:
    """The worker gets a schema, the client gets calls: whole and streamed."""
    script = saying('[{"name": "wea', 'ther", "parameters": {"city"', ': "Rome"}}]')
    async with edge(nats) as server, scripted(server, a=script) as (worker,):
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
        answer = await client.chat.completions.create(  # type: ignore[call-overload]
            model="demo", messages=CHAT["messages"], tools=TOOLS, tool_choice="required"
        )
        (call,) = answer.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
        assert answer.choices[0].finish_reason == "tool_calls"
        constraint = worker.requests[0].sampling.structured_outputs
        assert constraint is not None
        assert json.loads(constraint.json_schema or "")["type"] == "array"
        async with client.chat.completions.stream(
            model="demo", messages=CHAT["messages"], tools=TOOLS, tool_choice="required"
        ) as stream:
            final = await stream.get_final_completion()
        (call,) = final.choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Rome"}


async def test_auto_tools_need_a_parser(nats: Nats) -> None:
    """Without one a 400; with one the request carries the tools."""
    async with edge(nats) as server, scripted(server, a=saying("I call nothing.")) as (worker,):
        status, answer = await server.post("/v1/chat/completions", CHAT | {"tools": TOOLS})
        assert (status, answer["error"]["param"]) == (400, "tool_choice")
        worker.tool_parser = True
        await worker.tell()
        await asyncio.sleep(0.1)
        status, answer = await server.post("/v1/chat/completions", CHAT | {"tools": TOOLS})
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "I call nothing.")
        parsing = worker.requests[0].parsing
        assert parsing is not None
        assert json.loads(parsing.tools) == TOOLS


async def test_the_models_own_sampling_reaches_the_worker(nats: Nats, tmp_path: Path) -> None:
    """What its generation_config.json recommends, where the request says nothing."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder("demo"), folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "max_new_tokens": 9}')
    async with edge(nats, model=str(folder)) as server, scripted(server, a=saying("x")) as (worker,):
        body = {"messages": [{"role": "user", "content": "x"}]}
        assert (await server.post("/v1/chat/completions", body))[0] == 200
        assert (await server.post("/v1/chat/completions", body | {"temperature": 1, "max_tokens": 5}))[0] == 200
        settings = [request.sampling for request in worker.requests]
    assert [(each.temperature, each.top_k, each.max_tokens) for each in settings] == [(0.6, 20, 9), (1.0, 20, 5)]


async def test_choices_go_to_one_worker_with_seeds_of_their_own(nats: Nats) -> None:
    """One prompt, n requests."""
    async with edge(nats) as server, scripted(server, a=saying("x"), b=saying("x")) as workers:
        assert (await server.post("/v1/chat/completions", CHAT | {"n": 4, "seed": 7}))[0] == 200
        (requests,) = [worker.requests for worker in workers if worker.requests]
        assert sorted(request.sampling.seed or 0 for request in requests) == [7, 8, 9, 10]
        assert len({request.request_id for request in requests}) == 4


async def test_request_ids_are_echoed_and_made_safe(nats: Nats) -> None:
    """In answers, streams and errors; ours when the client has none."""
    async with edge(nats) as server, scripted(server, a=saying("x")):
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/chat/completions", CHAT | {"stream": True}),
            ("/nowhere", {}),
        ):
            headers = {"x-request-id": "a-1<script>/../" + "z" * 200}
            async with server.http.post(server.url + path, json=body, headers=headers) as response:
                assert response.headers["x-request-id"] == ("a-1script.." + "z" * 200)[:128]
            async with server.http.post(server.url + path, json=body) as response:
                assert len(response.headers["x-request-id"]) == 32


async def test_api_keys(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """401 without one, everywhere but /health and /ready; each key has a cache salt of its own."""
    monkeypatch.setenv("PENSTOCK_API_KEY", "one,two")
    async with edge(nats, isolate_api_keys=True) as server, scripted(server, a=saying("x")) as (worker,):
        for path in ("/v1/models", "/metrics", "/nowhere"):
            async with server.http.get(server.url + path) as response:
                assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert (await response.json())["error"]["code"] == "invalid_api_key"
        for path in ("/health", "/ready"):
            assert (await server.http.get(server.url + path)).status == 200
        for key in ("one", "two", "one"):
            headers = {"Authorization": f"Bearer {key}"}
            async with server.http.post(server.url + "/v1/chat/completions", json=CHAT, headers=headers) as response:
                assert response.status == 200
        salts = [request.cache_salt for request in worker.requests]
        assert salts[0] == salts[2] != salts[1]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 and its key, as files."""
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(argv, check=True, capture_output=True)
    return cert, key


async def test_tls(nats: Nats, certificate: tuple[str, str]) -> None:
    """HTTPS with the given certificate."""
    cert, key = certificate
    async with edge(nats, tls_cert_file=cert, tls_key_file=key) as server:
        context = ssl.create_default_context(cafile=cert)
        async with server.http.get(server.url + "/health", ssl=context) as response:
            assert response.status == 200


async def test_errors_of_http_have_openais_shape(nats: Nats) -> None:
    """Unknown path, wrong method, body too long, body that is not what its headers say."""
    async with edge(nats, max_body_bytes=1000) as server:
        cases: list[tuple[str, str, dict[str, Any], int, str]] = [
            ("GET", "/nowhere", {}, 404, "not_found"),
            ("GET", "/v1/chat/completions", {}, 405, "method_not_allowed"),
            ("POST", "/v1/chat/completions", {"data": b"x" * 1001}, 413, "body_too_large"),
            ("POST", "/v1/completions", {"data": b"x", "headers": {"Content-Encoding": "gzip"}}, 400, "invalid_request"),
            ("POST", "/v1/completions", {"data": b""}, 400, "invalid_request"),
            ("GET", "/v1/models/other", {}, 404, "model_not_found"),
        ]
        for method, path, arguments, status, code in cases:
            async with server.http.request(method, server.url + path, **arguments) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (status, code), path
                assert set(error) == {"message", "type", "param", "code"}


async def test_tokenize_and_detokenize(nats: Nats) -> None:
    """The shapes are vLLM's; what one makes the other undoes."""
    async with edge(nats) as server, scripted(server, a=saying("x")):
        status, answer = await server.post(
            "/tokenize", {"prompt": "the river", "add_special_tokens": False, "return_token_strs": True}
        )
        assert status == 200
        assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 2048)
        assert "".join(answer["token_strs"]) == "the river"
        assert await server.post("/detokenize", {"tokens": answer["tokens"]}) == (200, {"prompt": "the river"})
        status, answer = await server.post("/tokenize", {"messages": CHAT["messages"]})
        assert (await server.post("/detokenize", {"tokens": answer["tokens"]}))[1]["prompt"].endswith("assistant\n")
        for path, body in (
            ("/tokenize", {}),
            ("/tokenize", {"prompt": "a", "messages": CHAT["messages"]}),
            ("/detokenize", {"tokens": [10**6]}),
        ):
            assert (await server.post(path, body))[0] == 400


async def test_health_answers_while_a_huge_prompt_is_read(nats: Nats) -> None:
    """Megabytes that may fit the context are tokenized in a thread."""
    async with edge(nats) as server, scripted(server, a=saying("x")) as (worker,):
        worker.max_model_len = 10_000_000
        await worker.tell()
        body = {"messages": [{"role": "user", "content": "the river runs by the mill " * 150_000}]}
        huge = asyncio.ensure_future(server.post("/v1/chat/completions", body))
        answered = 0
        while not huge.done():
            assert (await server.http.get(server.url + "/health")).status == 200
            answered += 1
        status, answer = await huge
        assert (status, answer["usage"]["prompt_tokens"] > 150_000) == (200, True)
        assert answered > 10


@pytest.mark.parametrize(("workers", "kb"), [(0, 1000), (1, 7800)])
async def test_nobody_waits_for_huge_bodies_to_be_tokenized(nats: Nats, workers: int, kb: int) -> None:
    """Neither for reading them, nor for the texts of their tokens, nor for writing the answer; without workers, too."""
    async with edge(nats) as server, scripted(server, **{"a": saying("x")} if workers else {}):
        bodies = [
            ("/tokenize", {"prompt": "the mill " * 111 * kb, "return_token_strs": True}),
            ("/tokenize", {"messages": [{"role": "user", "content": "a b" * 333 * kb}], "return_token_strs": True}),
            ("/detokenize", {"tokens": [300] * 200 * kb}),
        ]
        for path, body in bodies:
            huge = asyncio.ensure_future(server.post(path, body))
            longest_s = 0.0
            while not huge.done():
                began_s = asyncio.get_running_loop().time()
                assert (await server.http.get(server.url + "/health")).status == 200
                longest_s = max(longest_s, asyncio.get_running_loop().time() - began_s)
            assert (await huge)[0] == 400
            assert longest_s < 2.0
        whole = {"prompt": "the mill " * 300, "return_token_strs": True, "add_special_tokens": False}
        status, answer = await server.post("/tokenize", whole)
        assert (status, "".join(answer["token_strs"])) == (200, whole["prompt"])


async def test_an_error_in_mid_stream_reaches_the_client(nats: Nats) -> None:
    """The openai client raises it, after the chunks that came."""

    async def fail(worker: ScriptedWorker, request: GenerateRequest) -> None:
        await worker.send(request, offset=0, token_ids=[5], text="so")
        await worker.send(request, offset=1, error=ErrorReply(ErrorCode.INTERNAL, "the engine broke"))

    async with edge(nats) as server, scripted(server, a=fail):
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
        stream = await client.chat.completions.create(model="demo", messages=CHAT["messages"], stream=True)
        chunks = aiter(stream)
        assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["", "so"]
        with pytest.raises(openai.APIError, match="the engine broke"):
            await anext(chunks)
        await server.idle()


async def test_garbage_over_http_is_the_clients_error(nats: Nats) -> None:
    """Whatever stands in the body or in the first line: a 4xx, and the server goes on."""
    bodies = [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b"[" * 500_000,
        b"\x00" * 5000,
    ]
    async with edge(nats) as server, scripted(server, a=saying("x")):
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
            for body in bodies:
                async with server.http.post(server.url + path, data=body) as response:
                    assert response.status == 400, (path, body[:20])
        for line in (
            b"\x16\x03\x01 hello\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST / HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(line)
            assert (await reader.read(13)).startswith(b"HTTP/1.") is True
            writer.close()
        assert (await server.post("/v1/chat/completions", CHAT))[0] == 200


async def test_replicas_share_a_port(nats: Nats) -> None:
    """Two processors listen on one; the kernel spreads connections, and both answer."""
    async with (
        edge(nats, replicas=2) as one,
        edge(nats, replicas=2, name="processor-1", port=one.port) as two,
        scripted(one, a=saying("x")),
    ):
        await two.ready(1)
        for _ in range(40):
            async with (
                aiohttp.ClientSession() as client,
                client.post(one.url + "/v1/chat/completions", json=CHAT) as response,
            ):
                assert response.status == 200
        name = "penstock_request_duration_seconds_count"
        counts = [await server.metric(name) for server in (one, two)]
        assert sum(counts) == 40
        assert min(counts) > 0


async def test_a_port_that_is_taken_is_one_clear_line(nats: Nats) -> None:
    """The second processor ends with the address."""
    async with edge(nats) as server:
        with pytest.raises(ExceptionGroup) as caught:
            async with edge(nats, name="processor-1", port=server.port):
                pytest.fail("it listens on a taken port")
        assert f"127.0.0.1:{server.port}" in str(caught.value.exceptions[0])
