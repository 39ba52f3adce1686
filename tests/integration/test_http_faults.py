"""What a client sees when workers, tokens, NATS or the client itself fail: as little as possible."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from components.graph.schema import Nats
from components.model.folder import model_folder
from components.model.tokenizer import Tokenizer
from components.processor.chat_answer import ChatAnswer
from components.processor.generation import Piece
from components.processor.sequence import Sequence
from components.wire.errors import ContextLengthExceededError, ErrorCode, ErrorReply, NoWorkerError
from components.wire.messages import GenerateRequest
from components.wire.process import ProcessState, WorkerLoad
from tests.support.edge import Edge, edge, scripted
from tests.support.nats import nats_server
from tests.support.scripted_worker import Script, ScriptedWorker

TOKENIZER = Tokenizer(model_folder("demo"))
TEXT = "the water of the river turns the wheel of the mill"
WORDS = [(token, TOKENIZER.token_text(token)) for token in TOKENIZER.encode(TEXT, add_special_tokens=False)]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 64}


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A private NATS server."""
    async with nats_server(tmp_path) as settings:
        yield settings


async def good(worker: ScriptedWorker, request: GenerateRequest) -> None:
    """Say everything."""
    await worker.say(request, WORDS)


async def silent(worker: ScriptedWorker, request: GenerateRequest) -> None:
    """Say nothing."""


def until(words: int) -> Script:
    """Return a script that says so many words, and then nothing."""

    async def script(worker: ScriptedWorker, request: GenerateRequest) -> None:
        await worker.say(request, WORDS, words)

    return script


def text_of(events: list[Any]) -> str:
    """Return the text of a stream that ended well."""
    assert events[-1] == "[DONE]", events[-1]
    return "".join(choice["delta"].get("content", "") for event in events[:-1] for choice in event["choices"])


async def check_moved(server: Edge, lost: ScriptedWorker, told_to_stop: bool = True) -> None:
    """Stream a chat that begins at `lost`, and check that the client sees one unbroken answer."""
    events = await server.events("/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}})
    assert text_of(events) == TEXT
    assert events[-2]["usage"]["completion_tokens"] == len(WORDS)
    assert [choice["finish_reason"] for event in events[:-2] for choice in event["choices"]][-1] == "stop"
    assert await server.metric("penstock_replays_total") == 1
    await server.idle()
    if told_to_stop:
        async with asyncio.timeout(2):
            while lost.cancelled != [lost.requests[0].request_id]:
                await asyncio.sleep(0.02)


async def test_a_worker_that_vanishes_mid_stream_is_replaced(nats: Nats) -> None:
    """No status for 3 seconds: the stream goes on elsewhere, from the tokens the client has."""
    async with edge(nats) as server, scripted(server, a=until(3)) as (first,):

        async def vanish(worker: ScriptedWorker, request: GenerateRequest) -> None:
            await until(3)(worker, request)
            assert worker.telling is not None
            worker.telling.cancel()

        first.script = vanish
        second = ScriptedWorker(server.bus, server.subjects, "b", good)
        asyncio.get_running_loop().call_later(1.0, lambda: second.tasks.add(asyncio.ensure_future(second.start())))
        await check_moved(server, first)
        replay = second.requests[0]
        assert replay.replayed_tokens == 3
        assert replay.token_ids == first.requests[0].token_ids + [token for token, _ in WORDS[:3]]
        assert replay.sampling.max_tokens == 61
        await second.stop()


async def test_a_restarted_worker_has_lost_its_requests(nats: Nats) -> None:
    """A new incarnation under the old name: at once, without waiting for silence."""
    async with edge(nats) as server, scripted(server, a=until(2)) as (worker,):

        async def restart(worker: ScriptedWorker, request: GenerateRequest) -> None:
            await worker.say(request, WORDS, 2)
            worker.incarnation, worker.seqs, worker.script = "new", {}, good
            await worker.tell()

        worker.script = restart
        async with asyncio.timeout(2.5):
            await check_moved(server, worker, told_to_stop=False)
        assert worker.requests[1].replayed_tokens == 2


async def test_a_worker_that_fails_is_replaced_at_once(nats: Nats) -> None:
    """Status FAILED ends its requests' stay."""
    async with edge(nats) as server, scripted(server, a=silent) as (worker,):

        async def fail(worker: ScriptedWorker, request: GenerateRequest) -> None:
            await worker.say(request, WORDS, 2)
            worker.state = ProcessState.FAILED
            await worker.tell()

        worker.script = fail
        second = await ScriptedWorker(server.bus, server.subjects, "b", good).start()
        await server.ready(2)
        first = worker
        while not first.requests:
            await server.post("/v1/chat/completions", CHAT)
        assert text_of(await server.events("/v1/chat/completions", CHAT)) == TEXT
        await second.stop()


@pytest.mark.parametrize("code", [ErrorCode.WORKER_LOST])
async def test_a_request_given_back_goes_elsewhere(nats: Nats, code: ErrorCode) -> None:
    """A draining worker, or one whose engine died, gives its requests back."""

    async def give_back(worker: ScriptedWorker, request: GenerateRequest) -> None:
        worker.script = good
        await worker.say(request, WORDS, 4)
        await worker.send(request, offset=4, error=ErrorReply(code, "gone"))

    async with edge(nats) as server, scripted(server, a=give_back) as (worker,):
        await check_moved(server, worker, told_to_stop=False)
        assert worker.cancelled == []


async def test_a_lost_batch_is_noticed_by_the_next_offset(nats: Nats) -> None:
    """A delta that does not begin where the last one ended."""

    async def skip(worker: ScriptedWorker, request: GenerateRequest) -> None:
        worker.script = good
        await worker.say(request, WORDS, 2)
        worker.seqs[request.processor] += 1
        await worker.send(request, offset=3, token_ids=[WORDS[3][0]], text=WORDS[3][1])

    async with edge(nats) as server, scripted(server, a=skip) as (worker,):
        await check_moved(server, worker)
        assert await server.metric("penstock_token_batch_gaps") == 1


async def test_a_lost_last_batch_is_noticed_by_the_repeated_number(nats: Nats) -> None:
    """Nothing follows the lost batch but the number it had."""

    async def lose_last(worker: ScriptedWorker, request: GenerateRequest) -> None:
        worker.script = good
        await worker.say(request, WORDS, 2)
        worker.seqs[request.processor] += 1
        await worker.repeat(request.processor)

    async with edge(nats) as server, scripted(server, a=lose_last) as (worker,):
        async with asyncio.timeout(5):
            await check_moved(server, worker)


async def test_silence_before_the_first_token(nats: Nats) -> None:
    """A frozen engine still tells its status; only the deadline notices."""
    async with edge(nats, first_token_timeout_s=0.5) as server, scripted(server, a=silent) as (worker,):

        async def freeze(worker: ScriptedWorker, request: GenerateRequest) -> None:
            worker.script = good

        worker.script = freeze
        await check_moved(server, worker)


async def test_waiting_in_a_busy_worker_is_no_silence(nats: Nats) -> None:
    """Its counts of tokens go on: the request keeps its place in the queue however long that is."""

    async def queue(worker: ScriptedWorker, request: GenerateRequest) -> None:
        for tokens in range(15):
            worker.load = WorkerLoad(running_requests=1, waiting_requests=1, output_tokens=tokens)
            await worker.tell()
            await asyncio.sleep(0.1)
        await worker.say(request, WORDS)

    async with edge(nats, first_token_timeout_s=0.5) as server, scripted(server, a=queue) as (worker,):
        status, answer = await server.post("/v1/chat/completions", CHAT)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)
        assert len(worker.requests) == 1
        assert not worker.cancelled


async def _die(worker: ScriptedWorker, _: GenerateRequest) -> None:
    worker.state = ProcessState.FAILED
    await worker.tell()


async def _vanish(worker: ScriptedWorker, _: GenerateRequest) -> None:
    if worker.telling:
        worker.telling.cancel()


async def _lose_the_engine(worker: ScriptedWorker, request: GenerateRequest) -> None:
    await worker.send(request, error=ErrorReply(ErrorCode.ENGINE_DIED, "the engine died"))
    await _die(worker, request)


@pytest.mark.parametrize("choices", [1, 4])
@pytest.mark.parametrize("acknowledges", [True, False])
@pytest.mark.parametrize("death", [_die, _vanish, _lose_the_engine])
async def test_a_request_that_kills_workers_does_not_kill_them_all(
    nats: Nats, death: Script, acknowledges: bool, choices: int
) -> None:
    """Two died under it: it is given up, however many are left, however often it might move, and before any word of it."""
    names = dict.fromkeys("abcdef", death)
    async with edge(nats, max_replays=8) as server, scripted(server, **names) as workers:
        for worker in workers:
            worker.acknowledges = acknowledges
        status, answer = await server.post("/v1/chat/completions", CHAT | {"n": choices})
        assert (status, answer["error"]["code"]) == (503, "worker_lost")
        assert "two workers died" in answer["error"]["message"]
        assert sum(bool(worker.requests) for worker in workers) == 2
        await server.idle()


async def test_a_bug_in_the_worker_is_not_replayed(nats: Nats) -> None:
    """The next worker has the same bug."""

    async def fail(worker: ScriptedWorker, request: GenerateRequest) -> None:
        await worker.send(request, error=ErrorReply(ErrorCode.INTERNAL, "the worker failed to answer"))

    async with edge(nats) as server, scripted(server, a=fail, b=fail) as workers:
        status, answer = await server.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (500, "internal")
        assert sum(len(worker.requests) for worker in workers) == 1


async def test_silence_between_tokens_prefers_another_worker(nats: Nats) -> None:
    """The worker that fell silent is not asked again while there is another."""
    async with edge(nats, inactivity_timeout_s=0.5) as server, scripted(server, a=until(5), b=until(5)) as (a, b):

        async def other_is_good(worker: ScriptedWorker, request: GenerateRequest) -> None:
            await worker.say(request, WORDS, 5)
            (b if worker is a else a).script = good

        a.script = b.script = other_is_good
        events = await server.events("/v1/chat/completions", CHAT)
        assert text_of(events) == TEXT
        assert (len(a.requests), len(b.requests)) == (1, 1)


async def test_an_answer_that_is_no_stream_moves_too(nats: Nats) -> None:
    """The same, when the client waits for the whole answer."""
    async with edge(nats, inactivity_timeout_s=0.5) as server, scripted(server, a=silent) as (worker,):

        async def half(worker: ScriptedWorker, request: GenerateRequest) -> None:
            worker.script = good
            await worker.say(request, WORDS, 5)

        worker.script = half
        status, answer = await server.post("/v1/chat/completions", CHAT)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)
        assert answer["usage"]["completion_tokens"] == len(WORDS)
        assert worker.requests[1].replayed_tokens == 5


async def test_a_constrained_stream_cannot_move(nats: Nats) -> None:
    """A grammar's state cannot be rebuilt from a prompt: an error event ends the stream, and no DONE."""
    async with edge(nats, inactivity_timeout_s=0.5) as server, scripted(server, a=until(3)) as (worker,):
        body = CHAT | {"response_format": {"type": "json_object"}}
        events = await server.events("/v1/chat/completions", body)
        assert events[-1]["error"]["code"] == "worker_lost"
        assert len(worker.requests) == 1
        await server.idle()


async def test_replays_are_bounded(nats: Nats) -> None:
    """A request that loses every worker fails; before the first byte with a status."""
    async with (
        edge(nats, first_token_timeout_s=0.3, max_replays=2) as server,
        scripted(server, a=silent) as (worker,),
    ):
        status, answer = await server.post("/v1/chat/completions", CHAT | {"stream": True})
        assert (status, answer["error"]["code"]) == (503, "worker_lost")
        assert len(worker.requests) == 3
        await server.idle()


async def test_a_worker_nobody_listens_for_is_passed_over(nats: Nats) -> None:
    """Its status is fresh, but its subscription is gone."""
    async with edge(nats) as server, scripted(server, b=good) as (worker,):
        ghost = await ScriptedWorker(server.bus, server.subjects, "a", silent).start(listen=False)
        await server.ready(2)
        for _ in range(3):
            status, answer = await server.post("/v1/chat/completions", CHAT)
            assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)
        assert len(worker.requests) == 3
        await ghost.stop()


async def test_a_worker_that_refuses_is_passed_over(nats: Nats) -> None:
    """A draining worker says so; the next one is asked."""
    async with edge(nats) as server, scripted(server, a=good, b=good) as (a, b):
        a.refuse = NoWorkerError("a is draining")
        for _ in range(3):
            status, _ = await server.post("/v1/chat/completions", CHAT)
            assert status == 200
        assert len(b.requests) == 3


async def test_no_worker_is_a_503(nats: Nats) -> None:
    """With Retry-After, while /health stays 200 and /ready says 503; bad input is still a 400."""
    async with edge(nats) as server:
        async with server.http.post(server.url + "/v1/chat/completions", json=CHAT) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert (await response.json())["error"]["code"] == "no_worker"
        assert (await server.http.get(server.url + "/health")).status == 200
        assert (await server.http.get(server.url + "/ready")).status == 503
        assert (await server.post("/v1/chat/completions", {"messages": 1}))[0] == 400


async def test_a_refusal_by_the_engine_is_the_clients_error(nats: Nats) -> None:
    """Known only when the worker looks at the request: still a 400, as nothing was sent yet."""

    async def refuse(worker: ScriptedWorker, request: GenerateRequest) -> None:
        error = ContextLengthExceededError("too long", param="prompt")
        await worker.send(request, error=error.reply())

    async with edge(nats) as server, scripted(server, a=refuse):
        status, answer = await server.post("/v1/completions", {"prompt": "a", "stream": True})
        assert (status, answer["error"]["param"]) == (400, "prompt")
        await server.idle()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine(nats: Nats, stream: bool) -> None:
    """All choices are cancelled at the worker, and nothing is left here."""
    async with edge(nats) as server, scripted(server, a=until(2)) as (worker,):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(0.5)) as client:
            body = CHAT | {"stream": stream, "n": 3}
            with contextlib.suppress(TimeoutError):
                await (await client.post(server.url + "/v1/chat/completions", json=body)).read()
        async with asyncio.timeout(2):
            while sorted(worker.cancelled) != sorted(request.request_id for request in worker.requests):
                await asyncio.sleep(0.02)
        assert len(worker.cancelled) == 3
        await server.idle()


async def test_the_deadline_is_a_504(nats: Nats) -> None:
    """The whole answer's time is bounded, and what runs is stopped."""
    async with edge(nats, request_timeout_s=0.6) as server, scripted(server, a=silent) as (worker,):
        status, answer = await server.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        await server.idle()
        async with asyncio.timeout(1):
            while not worker.cancelled:
                await asyncio.sleep(0.02)


async def slow(worker: ScriptedWorker, request: GenerateRequest) -> None:
    """Say a token every 50 ms, for ever."""
    for number in range(10_000):
        await worker.send(request, offset=number, token_ids=[300], text="x", cached_tokens=None if number else 0)
        await asyncio.sleep(0.05)


async def raw_stream(port: int) -> bytes:
    """Return every byte of the connection that answers a streamed chat, until the server closes it or 3 s are over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":500}'
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    received = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(3):
            while data := await reader.read(65536):
                received += data
    writer.close()
    return received


async def test_a_deadline_in_mid_stream_is_the_last_event(nats: Nats) -> None:
    """One response on the wire: 200, tokens, an error event, and the end of the chunks."""
    async with edge(nats, request_timeout_s=0.6) as server, scripted(server, a=slow) as (worker,):
        received = await raw_stream(server.port)
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert received.count(b"HTTP/1.1") == 1
        assert b'event: error\ndata: {"error":{"message":"the answer took longer than 0.6 s"' in received
        assert b'"code":"deadline_exceeded"' in received
        assert received.endswith(b"\r\n0\r\n\r\n")
        await server.idle()
        async with asyncio.timeout(1):
            while not worker.cancelled:
                await asyncio.sleep(0.02)


async def test_a_bug_in_mid_stream_closes_the_connection(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second response in the open one, no end of chunks that would look like a whole answer; its text is not logged."""
    chunks = ChatAnswer.chunks

    def fail_later(answer: ChatAnswer, pieces: list[Piece]) -> bytes:
        if len(pieces[0].sequence.token_ids) > 3:
            raise IndexError("the prompt was: secret")
        return chunks(answer, pieces)

    monkeypatch.setattr(ChatAnswer, "chunks", fail_later)
    async with edge(nats) as server, scripted(server, a=slow):
        received = await raw_stream(server.port)
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert received.count(b"HTTP/1.1") == 1
        assert received.count(b'"content":"x"') == 3
        assert not received.endswith(b"0\r\n\r\n")
        await server.idle()


async def test_a_bug_is_logged_without_its_text(
    nats: Nats, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception's text may hold a prompt: type and places only."""

    def fail(answer: ChatAnswer, sequences: list[Sequence]) -> bytes:
        raise IndexError("the prompt was: secret")

    monkeypatch.setattr(ChatAnswer, "whole", fail)
    async with edge(nats) as server, scripted(server, a=good):
        status, answer = await server.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (500, "internal")
    (record,) = [record for record in caplog.records if record.getMessage() == "a request failed"]
    assert record.exc_info is None
    assert "IndexError at " in record.error
    assert "secret" not in caplog.text + record.error + str(answer)


async def test_a_processor_that_was_held_up_takes_nobody_for_dead(nats: Nats) -> None:
    """Longer than workers may be silent: it did not listen, so it moves nothing."""
    async with edge(nats) as server, scripted(server, a=slow) as (worker,):
        chat = asyncio.ensure_future(server.events("/v1/chat/completions", CHAT | {"max_tokens": 500}))
        while not worker.requests:
            await asyncio.sleep(0.02)
        time.sleep(3.5)  # noqa: ASYNC251  # this is the point
        await asyncio.sleep(1.0)
        assert not chat.done()
        assert await server.workers() == 1
        assert len(worker.requests) == 1
        assert worker.cancelled == []
        chat.cancel()
        await server.idle()


async def test_too_many_requests_are_a_429(nats: Nats) -> None:
    """The one too many is refused at once; the others go on."""
    async with edge(nats, max_inflight_requests=2) as server, scripted(server, a=silent) as (worker,):

        async def slow(worker: ScriptedWorker, request: GenerateRequest) -> None:
            await asyncio.sleep(0.5)
            await worker.say(request, WORDS)

        worker.script = slow
        answers = await asyncio.gather(*(server.post("/v1/chat/completions", CHAT) for _ in range(3)))
        assert sorted(status for status, _ in answers) == [200, 200, 429]
        await server.idle()


async def test_requests_are_counted_in_before_their_body_is_read(nats: Nats) -> None:
    """Bodies are not gathered for requests that will be refused anyway."""
    async with edge(nats, max_inflight_requests=1) as server, scripted(server, a=good):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n")
        async with asyncio.timeout(2):
            while not await server.metric("penstock_http_inflight_requests"):
                await asyncio.sleep(0.01)
        status, answer = await server.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (429, "overloaded")
        writer.write(b'{"prompt":"x"}')
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        await server.idle()


async def test_long_prompts_keep_nobody_waiting(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long their tokenizing takes: short prompts go by, and the deadline holds."""
    encode, free = Tokenizer.encode, threading.Event()

    def slow(tokenizer: Tokenizer, text: str, add_special_tokens: bool = True) -> list[int]:
        if len(text) > 100_000:
            free.wait(10)
        return encode(tokenizer, text, add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", slow)
    async with edge(nats, request_timeout_s=1.5) as server, scripted(server, a=good) as (worker,):
        worker.max_model_len = 1_000_000
        await worker.tell()
        large = {"prompt": "the mill " * 20_000}
        try:
            late = [asyncio.ensure_future(server.post("/v1/completions", large)) for _ in range(6)]
            await asyncio.sleep(0.3)
            async with asyncio.timeout(1):
                status, _ = await server.post("/v1/completions", {"prompt": "the mill " * 500})
            assert status == 200
            async with asyncio.timeout(3):
                answers = await asyncio.gather(*late)
        finally:
            free.set()
        assert [(status, answer["error"]["code"]) for status, answer in answers] == [(504, "deadline_exceeded")] * 6
        await server.idle()


async def test_a_prompt_that_cannot_fit_is_refused_at_once(nats: Nats) -> None:
    """Megabytes that would take seconds to tokenize, for a context of 2048 tokens."""
    async with edge(nats) as server, scripted(server, a=good) as (worker,):
        async with asyncio.timeout(2):
            status, answer = await server.post("/v1/completions", {"prompt": "a" * 4_000_000})
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "context_length_exceeded", "prompt")
        assert not worker.requests


async def test_a_client_that_reads_nothing_is_cut_off(nats: Nats) -> None:
    """Its socket is closed, and its work is stopped at the worker."""

    async def flood(worker: ScriptedWorker, request: GenerateRequest) -> None:
        for number in range(100_000):
            await worker.send(request, offset=number, token_ids=[1], text="x" * 50_000)
            await asyncio.sleep(0.001)

    async with edge(nats, client_stall_timeout_s=0.5) as server, scripted(server, a=flood) as (worker,):
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            body = b'{"messages":[{"role":"user","content":"x"}],"stream":true}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            await loop.sock_sendall(client, head.encode() + body)
            async with asyncio.timeout(10):
                while not worker.cancelled:
                    await asyncio.sleep(0.05)
        await server.idle()


async def test_tokens_for_nobody_are_stopped(nats: Nats) -> None:
    """A worker that did not hear of a cancellation hears of it again."""
    async with edge(nats) as server, scripted(server, a=silent) as (worker,):

        async def deaf(worker: ScriptedWorker, request: GenerateRequest) -> None:
            await worker.say(request, WORDS)
            stray = GenerateRequest("stray", request.processor, "demo", [1], request.sampling, 0)
            await worker.send(stray, token_ids=[1], text="x")

        worker.script = deaf
        await server.post("/v1/chat/completions", CHAT)
        async with asyncio.timeout(2):
            while worker.cancelled != ["stray"]:
                await asyncio.sleep(0.02)


async def test_stopping_lets_running_requests_finish(nats: Nats) -> None:
    """A processor told to stop refuses new connections and ends what it has."""

    async def slow(worker: ScriptedWorker, request: GenerateRequest) -> None:
        await asyncio.sleep(0.5)
        await worker.say(request, WORDS)

    async with edge(nats) as server, scripted(server, a=slow):
        answer = asyncio.ensure_future(server.post("/v1/chat/completions", CHAT))
        await asyncio.sleep(0.2)
        server.member.stopping.set()
        status, body = await answer
        assert (status, body["choices"][0]["message"]["content"]) == (200, TEXT)
