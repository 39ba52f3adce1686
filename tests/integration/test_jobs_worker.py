"""The job worker as its container runs it: a process, an environment, signals; a real queue and a scripted engine."""

import asyncio
import json
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.edge import free_port
from tests.support.jobs import JobQueue, RawWorker, ScriptedEngine, WorkerProcess, eventually, job_queue
from tests.support.nats import nats_server

PROCESSED_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def test_a_missing_variable_is_named(tmp_path: Path) -> None:
    """Exit code 2, before anything is contacted."""
    for missing in ("CASOLA_WS_URL", "CASOLA_CONFIG_ID", "VLLM_MODEL"):
        worker = WorkerProcess(tmp_path, missing, CASOLA_WS_URL="ws://127.0.0.1:1")
        del worker.environment[missing]
        for module in ("worker", "entrypoint"):
            await worker.run(module)
            assert await worker.exit_code() == 2
            assert missing in worker.log.read_text()


async def test_a_job_runs_with_the_documented_defaults_and_result(tmp_path: Path) -> None:
    """Explicit zeros are honoured; `default` is the served model; the envelope of the document is understood."""
    async with _worker(tmp_path) as (queue, engine, _):
        job_id = await queue.submit("Hello!", max_tokens=3)
        job = await queue.finished(job_id)
        assert job["error"] is None
        result = job["result"]
        assert PROCESSED_AT.fullmatch(result.pop("processed_at"))
        message = {"role": "assistant", "content": "w0 w1 w2 "}
        assert result == {
            "status": "success",
            "job_type": "chat_completion",
            "completion": {
                "id": "c",
                "model": "served",
                "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
            },
        }
        sent = engine.requests[0]
        assert (sent["model"], sent["temperature"], sent["top_p"], sent["max_tokens"]) == ("served", 0.7, 1.0, 3)
        zeros = {"temperature": 0, "top_p": 0, "frequency_penalty": 0, "presence_penalty": 0}
        inner = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "model": "other", **zeros}
        body = {"payload": {"id": "job-123", "job_type": "llm_inference", "payload": inner}}
        job = await queue.finished((await queue.ask("POST", "/jobs", body))["id"])
        assert job["result"]["job_type"] == "llm_inference"
        assert zeros.items() <= engine.requests[1].items()
        assert engine.requests[1]["model"] == "other"


async def test_bad_payloads_are_errors_and_the_worker_lives_on(tmp_path: Path) -> None:
    """Whatever is submitted; what the engine refuses is its error."""
    async with _worker(tmp_path) as (queue, engine, _):
        bad: list[tuple[Any, str]] = [
            ({}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": "Hi"}, "messages"),
            ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": "a"}], "temperature": 2.1}, "temperature"),
            ({"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, "max_tokens"),
            ({"messages": [{"role": "user", "content": "a"}], "stop": [1]}, "stop"),
            ({"messages": [{"role": "user", "content": "a"}], "kv_transfer_params": {}}, "kv_transfer_params"),
            ({"messages": [{"role": "user", "content": "a"}], "job_type": "poem"}, "job_type"),
        ]
        for payload, reason in bad:
            job = await queue.finished((await queue.ask("POST", "/jobs", {"payload": payload}))["id"])
            assert job["status"] == "failed"
            assert job["error"].startswith(reason)
        assert engine.requests == []
        engine.status = 400
        assert "the engine answers 400" in (await queue.finished(await queue.submit()))["error"]
        engine.status = 200
        assert (await queue.finished(await queue.submit(max_tokens=1)))["status"] == "completed"


async def test_an_idle_worker_starts_a_job_at_once(tmp_path: Path) -> None:
    """Pushed: of some submissions the median starts within 100 ms, on any machine."""
    async with _worker(tmp_path) as (queue, engine, _):
        await queue.finished(await queue.submit(max_tokens=1))
        taken = []
        for _ in range(15):
            begin_s = time.monotonic()
            await queue.finished(await queue.submit(max_tokens=1))
            taken.append(engine.started_s[-1] - begin_s)
        assert sorted(taken)[7] < 0.1


async def test_a_long_job_is_renewed_and_reports_its_tokens(tmp_path: Path) -> None:
    """Through three times its lease, without a second attempt; renewals stop with it."""
    async with _worker(tmp_path, lease_s=1.0) as (queue, engine, _):
        engine.token_s = 0.1
        job_id = await queue.submit(max_tokens=32)
        await eventually(lambda: _detail(queue, job_id))
        job = await queue.finished(job_id)
        assert (job["status"], job["attempts"]) == ("completed", 1)
        assert len(engine.requests) == 1


async def test_a_killed_worker_s_job_is_done_by_another(tmp_path: Path) -> None:
    """Within the lease and a second."""
    async with _worker(tmp_path, lease_s=3.0) as (queue, engine, worker):
        engine.token_s = 0.05
        job_id = await queue.submit(max_tokens=30)
        await eventually(lambda: len(engine.requests) == 1)
        other = await WorkerProcess.start(tmp_path, "other", queue, engine)
        await queue.until(lambda health: health["workers"] == 2)
        killed_s = time.monotonic()
        worker.signal(signal.SIGKILL)
        await eventually(lambda: len(engine.requests) == 2)
        assert engine.started_s[1] - killed_s < 4.0
        job = await queue.finished(job_id)
        assert (job["status"], job["attempts"], job["worker_id"]) == ("completed", 2, "other")
        await other.end()


async def test_a_frozen_worker_s_late_result_is_refused(tmp_path: Path) -> None:
    """Another worker does the job; when it thaws it is told, stops the inference, and works on."""
    async with _worker(tmp_path, lease_s=1.5) as (queue, engine, worker):
        engine.token_s = 0.05
        job_id = await queue.submit(max_tokens=20)
        await eventually(lambda: len(engine.requests) == 1)
        worker.signal(signal.SIGSTOP)
        other = await WorkerProcess.start(tmp_path, "other", queue, engine)
        job = await queue.finished(job_id)
        assert (job["attempts"], job["worker_id"]) == (2, "other")
        worker.signal(signal.SIGCONT)
        await eventually(lambda: "revoked" in worker.log.read_text())
        assert (await queue.finished(job_id))["result"] == job["result"]
        other.signal(signal.SIGTERM)
        assert await other.exit_code() == 0
        assert (await queue.finished(await queue.submit(max_tokens=1)))["worker_id"] == "one"


async def test_sigterm_ends_an_idle_worker_at_once(tmp_path: Path) -> None:
    """Exit code 0 in less than two seconds."""
    async with _worker(tmp_path) as (_, _, worker):
        begin_s = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code() == 0
        assert time.monotonic() - begin_s < 2


async def test_sigterm_lets_a_short_job_finish_and_gives_a_long_one_back(tmp_path: Path) -> None:
    """The short one is delivered; the long one goes to another worker when the grace is over, not when its lease is."""
    async with _worker(tmp_path, CASOLA_SHUTDOWN_GRACE_PERIOD="2", CASOLA_MAX_JOBS="2") as (queue, engine, worker):
        engine.token_s = 0.1
        short, long = await queue.submit(max_tokens=10), await queue.submit(max_tokens=100)
        await eventually(lambda: len(engine.requests) == 2)
        begin_s = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code() == 0
        assert 1.5 < time.monotonic() - begin_s < 8
        assert (await queue.finished(short))["status"] == "completed"
        await eventually(lambda: engine.aborted == 1)
        assert (await queue.ask("GET", f"/jobs/{long}"))["status"] == "pending"
        other = await RawWorker.register(queue, "other")
        assert (await other.job())["job_id"] == long
        await other.close()


async def test_pause_follows_the_engine_s_waiting_requests(tmp_path: Path) -> None:
    """A busy engine gets no more jobs until it has caught up."""
    async with _worker(tmp_path, CASOLA_PAUSE_ABOVE_WAITING="5") as (queue, engine, _):
        engine.waiting = 6
        await eventually(lambda: _paused(queue, is_so=True))
        job_id = await queue.submit(max_tokens=1)
        await asyncio.sleep(0.3)
        assert (await queue.ask("GET", f"/jobs/{job_id}"))["status"] == "pending"
        engine.waiting = 0
        assert (await queue.finished(job_id))["status"] == "completed"


async def test_a_job_survives_its_engine(tmp_path: Path) -> None:
    """An engine that fails gives the job back; once it is well again the job is done."""
    async with _worker(tmp_path) as (queue, engine, _):
        engine.status, engine.healthy = 503, False
        job_id = await queue.submit(max_tokens=1)
        await eventually(lambda: _paused(queue, is_so=True))
        engine.status, engine.healthy = 200, True
        job = await queue.finished(job_id)
        assert (job["status"], job["attempts"]) == ("completed", 2)


async def test_a_busy_engine_costs_no_attempt(tmp_path: Path) -> None:
    """It is asked again until it takes the job."""
    async with _worker(tmp_path) as (queue, engine, _):
        engine.status = 429
        job_id = await queue.submit(max_tokens=1)
        await eventually(lambda: len(engine.requests) >= 2)
        engine.status = 200
        job = await queue.finished(job_id)
        assert (job["status"], job["attempts"]) == ("completed", 1)


async def test_a_restarted_queue_gets_the_results_made_meanwhile(tmp_path: Path) -> None:
    """The worker comes back by itself; each job is done once, also the one that runs through the restart."""
    port = free_port()
    async with nats_server(tmp_path) as nats, ScriptedEngine(token_s=0.1) as engine:
        async with job_queue(nats, port=port) as queue:
            worker = await WorkerProcess.start(tmp_path, "one", queue, engine, CASOLA_MAX_JOBS="2")
            short, long = await queue.submit(max_tokens=20), await queue.submit(max_tokens=80)
            await eventually(lambda: len(engine.requests) == 2)
        await eventually(lambda: bool(list((tmp_path / "state").rglob("*.outcome"))))
        async with job_queue(nats, port=port) as queue:
            for job_id in (short, long):
                job = await queue.finished(job_id)
                assert (job["status"], job["attempts"]) == ("completed", 1)
            assert len(engine.requests) == 2
            await eventually(lambda: not list((tmp_path / "state").rglob("*.outcome")))
            await worker.end()


async def test_an_undelivered_result_outlives_its_worker(tmp_path: Path) -> None:
    """It lies on disk, and the next process of the same name delivers it."""
    port = free_port()
    async with nats_server(tmp_path) as nats, ScriptedEngine(token_s=0.1) as engine:
        async with job_queue(nats, port=port) as queue:
            worker = await WorkerProcess.start(tmp_path, "one", queue, engine)
            job_id = await queue.submit(max_tokens=10)
            await eventually(lambda: len(engine.requests) == 1)
        await eventually(lambda: bool(list((tmp_path / "state").rglob("*.outcome"))))
        await worker.end()
        async with job_queue(nats, port=port) as queue:
            await worker.run()
            assert (await queue.finished(job_id))["status"] == "completed"
            assert len(engine.requests) == 1
            await worker.end()


async def test_long_payloads_and_results_are_fetched_and_uploaded(tmp_path: Path) -> None:
    """The worker follows the queue's links; links of strangers to private addresses it does not."""
    async with _worker(tmp_path) as (queue, engine, _):
        text = "x" * 400_000
        job = await queue.finished(await queue.submit(text, max_tokens=60_000))
        assert job["status"] == "completed"
        assert engine.requests[0]["messages"][0]["content"] == text
        assert len(job["result"]["completion"]["choices"][0]["message"]["content"]) > 300_000


async def test_a_queue_of_others(tmp_path: Path) -> None:
    """One that acknowledges nothing and sends hostile links; the worker registers, answers, and delivers after a break."""
    heard: asyncio.Queue[Any] = asyncio.Queue()
    connections: list[web.WebSocketResponse] = []

    async def ws(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        connections.append(socket)
        async for message in socket:
            heard.put_nowait(json.loads(message.data))
        return socket

    async def next_frame(kind: str) -> Any:
        async with asyncio.timeout(20):
            while (frame := await heard.get())["type"] != kind:
                pass
            return frame

    app = web.Application()
    app.add_routes([web.get("/ws", ws)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with ScriptedEngine(token_s=0.05) as engine:
        worker = await WorkerProcess.start(tmp_path, "one", f"ws://127.0.0.1:{port}", engine)
        first = await next_frame("register")
        assert {"worker_id": "one", "config_id": "default", "type": "register"}.items() <= first.items()
        hostile = [f"http://127.0.0.1:{engine.port}/v1/models", "http://169.254.169.254/x", "file:///etc/passwd", "http://["]
        for number, url in enumerate(hostile):
            frame = {
                "type": "job",
                "job_id": f"h{number}",
                "mode": "persisted",
                "config_id": "default",
                "fence_token": number,
            }
            await connections[0].send_json(frame | {"payload_url": url})
            error = await next_frame("job_error")
            assert (error["job_id"], error["fence_token"]) == (f"h{number}", number)
        await connections[0].send_str("no JSON")
        await connections[0].send_json({"type": "odd"})
        payload = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 10}
        job = {
            "type": "job",
            "job_id": "j",
            "mode": "transient",
            "config_id": "default",
            "payload": payload,
            "fence_token": 7,
        }
        await connections[0].send_json(job)
        await eventually(lambda: len(engine.requests) == 1)
        await connections[0].close()
        await next_frame("register")
        assert (await next_frame("job_result"))["fence_token"] == 7
        await worker.end()
    await runner.cleanup()


async def test_heartbeats_tell_the_worker_s_life_and_secrets_stay_secret(tmp_path: Path) -> None:
    """starting, running, stopping; with the token, which no log holds; an API that fails costs no job."""
    beats: list[Any] = []

    async def beat(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer very-secret"
        beats.append(await request.json())
        return web.Response(status=500 if len(beats) == 2 else 200)

    app = web.Application()
    app.add_routes([web.post("/api/heartbeats", beat)])
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    variables = {"CASOLA_API_URL": f"http://127.0.0.1:{port}", "CASOLA_API_TOKEN": "very-secret"}
    async with _worker(tmp_path, CASOLA_HEARTBEAT_INTERVAL="0.2", CASOLA_QUEUE_ID="q", **variables) as (queue, _, worker):
        await eventually(lambda: len(beats) > 3)
        assert (await queue.finished(await queue.submit(max_tokens=1)))["status"] == "completed"
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code() == 0
    statuses = [each["status"] for each in beats]
    assert (statuses[0], set(statuses[1:-1]), statuses[-1]) == ("starting", {"running"}, "stopping")
    assert {(each["instance_id"], each["queue_id"]) for each in beats} == {("one", "q")}
    assert "very-secret" not in worker.log.read_text()
    await runner.cleanup()


async def test_an_engine_that_is_not_ready_in_time_ends_the_worker(tmp_path: Path) -> None:
    """The queue never hears of it; the reason names the setting."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue, ScriptedEngine(healthy=False) as engine:
        worker = await WorkerProcess.start(
            tmp_path, "one", queue, engine, VLLM_STARTUP_TIMEOUT="1", CASOLA_API_URL=queue.url
        )
        assert await worker.exit_code() == 1
        assert "VLLM_STARTUP_TIMEOUT" in worker.log.read_text()
        [shown] = (await queue.ask("GET", "/api/workers"))["workers"]
        assert (shown["status"], shown["connected"]) == ("error", False)


async def test_a_wrong_token_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be refused for ever; the reason names the variable."""
    monkeypatch.setenv("PENSTOCK_WORKER_KEY", "right")
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue, ScriptedEngine() as engine:
        worker = await WorkerProcess.start(tmp_path, "one", queue, engine, CASOLA_API_TOKEN="wrong")
        assert await worker.exit_code() == 1
        assert "CASOLA_API_TOKEN" in worker.log.read_text()


async def test_a_held_call_streams_through_a_real_worker(tmp_path: Path) -> None:
    """Chunks arrive while the engine is still at work."""
    async with _worker(tmp_path) as (queue, engine, _):
        engine.token_s = 0.05
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 20, "stream": True}
        async with queue.http.post(f"{queue.url}/v1/chat/completions", json=body) as response:
            lines = [(line.decode(), engine.finished) async for line in response.content if line.strip()]
        assert lines[0][1] == 0
        assert len(lines) == 21
        assert lines[-1][0].strip() == "data: [DONE]"


@asynccontextmanager
async def _worker(
    folder: Path, lease_s: float = 30.0, **variables: str
) -> AsyncIterator[tuple[JobQueue, ScriptedEngine, WorkerProcess]]:
    """Run a queue, an engine, and one worker that has registered."""
    async with nats_server(folder) as nats, job_queue(nats, lease_s=lease_s) as queue, ScriptedEngine() as engine:
        worker = await WorkerProcess.start(folder, "one", queue, engine, **variables)
        try:
            await queue.until(lambda health: health["workers"] == 1, wait_s=30)
            yield queue, engine, worker
        finally:
            await worker.end()


async def _paused(queue: JobQueue, *, is_so: bool) -> bool:
    return [each["paused"] for each in (await queue.ask("GET", "/api/workers"))["workers"]] == [is_so]


async def _detail(queue: JobQueue, job_id: str) -> bool:
    return "tokens" in ((await queue.ask("GET", f"/jobs/{job_id}"))["detail"] or "")
