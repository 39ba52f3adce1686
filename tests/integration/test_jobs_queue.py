"""The job queue, spoken to by hand: frames, leases, fences, references, held calls, and all that is wrong."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.support.jobs import MESSAGES, JobQueue, RawWorker, eventually, job_queue
from tests.support.nats import RestartableNats, nats_server

RESULT = {
    "status": "success",
    "job_type": "chat_completion",
    "processed_at": "2026-11-21T12:00:00.000Z",
    "completion": {
        "id": "c",
        "model": "served",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    },
}


async def test_a_job_is_pushed_and_its_result_returned(tmp_path: Path) -> None:
    """Submission, assignment, progress, result, acknowledgement; the job shows each state."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        worker = await RawWorker.register(queue)
        job_id = await queue.submit("Hello!", temperature=0)
        job = await worker.job()
        assert (job["job_id"], job["mode"], job["config_id"]) == (job_id, "persisted", "default")
        assert job["payload"] == {"messages": MESSAGES, "temperature": 0}
        await worker.about("job_progress", job, progress=0.5, status_message="5 tokens")
        await eventually(lambda: _is(queue, job_id, status="running", progress=0.5, detail="5 tokens", worker_id="w"))
        await worker.about("job_result", job, result=RESULT)
        assert await worker.next() == {"type": "job_ack", "job_id": job_id, "fence_token": job["fence_token"]}
        done = await queue.finished(job_id)
        assert (done["status"], done["result"], done["error"], done["attempts"]) == ("completed", RESULT, None, 1)
        assert done["payload"] == {"messages": MESSAGES, "temperature": 0}
        assert done["created_at"].endswith("Z")
        await worker.about("job_result", job, result=RESULT)
        assert (await worker.next())["type"] == "job_ack"  # sent again: known
        await queue.until(lambda health: health["unfinished"] == 0)
        await worker.close()


async def test_an_error_fails_the_job(tmp_path: Path) -> None:
    """With the worker's words; it is not tried again."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        worker = await RawWorker.register(queue)
        job_id = await queue.submit()
        await worker.about("job_error", await worker.job(), error="messages: no good")
        job = await queue.finished(job_id)
        assert (job["status"], job["error"], job["result"]) == ("failed", "messages: no good", None)
        await worker.close()


async def test_capacity_pause_and_drain_are_respected(tmp_path: Path) -> None:
    """A freed slot takes the next job at once; a paused or draining worker gets none, and keeps what it has."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        worker = await RawWorker.register(queue, capacity=2)
        for number in range(4):
            await queue.submit(str(number))
        first, second = await worker.job(), await worker.job()
        assert await worker.silent()
        await worker.send("pause")
        await worker.about("job_result", first, result=RESULT)
        assert (await worker.next())["type"] == "job_ack"
        assert await worker.silent()
        await worker.send("resume")
        third = await worker.job()
        await worker.send("drain")
        await worker.about("job_result", second, result=RESULT)
        await worker.about("job_result", third, result=RESULT)
        assert [(await worker.next())["type"] for _ in range(2)] == ["job_ack", "job_ack"]
        assert await worker.silent()
        other = await RawWorker.register(queue, "other")
        assert (await other.job())["payload"]["messages"][0]["content"] == "3"
        await other.close()
        await worker.close()


async def test_a_lost_connection_gives_the_job_to_another_worker(tmp_path: Path) -> None:
    """At once, with one attempt more and another fence token."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        one, other = await RawWorker.register(queue, "one"), None
        job_id = await queue.submit()
        before = await one.job()
        other = await RawWorker.register(queue, "other")
        await one.close()
        after = await other.job()
        assert after["job_id"] == job_id
        assert after["fence_token"] != before["fence_token"]
        await other.about("job_result", after, result=RESULT)
        assert (await queue.finished(job_id))["attempts"] == 2
        await other.close()


async def test_a_silent_worker_loses_its_job_and_its_late_result(tmp_path: Path) -> None:
    """It is told that it lost the job, gets no other until it speaks, and its stale fence token is refused."""
    async with nats_server(tmp_path) as nats, job_queue(nats, lease_s=1.5) as queue:
        one = await RawWorker.register(queue, "one")
        job_id = await queue.submit()
        before = await one.job()
        other = await RawWorker.register(queue, "other")
        assert await one.next() == {"type": "job_revoked", "job_id": job_id, "reason": "its lease has ended"}
        after = await other.job(wait_s=2.5)
        await one.about("job_result", before, result={"late": True})
        refusal, revoked = await one.next(), await one.next()
        assert (refusal["type"], revoked["type"]) == ("error", "job_revoked")
        assert "stale fence token" in refusal["message"]
        await other.about("job_result", after, result=RESULT)
        job = await queue.finished(job_id)
        assert (job["result"], job["worker_id"], job["attempts"]) == (RESULT, "other", 2)
        await one.about("job_result", before, result={"late": True})
        assert "stale" in (await one.next())["message"]
        assert (await queue.finished(job_id))["result"] == RESULT
        for worker in (one, other):
            await worker.close()


async def test_a_renewed_lease_does_not_end(tmp_path: Path) -> None:
    """For several times its length, in the queue's books as in the store's."""
    async with nats_server(tmp_path) as nats, job_queue(nats, lease_s=1) as queue:
        one, other = await RawWorker.register(queue, "one"), await RawWorker.register(queue, "other")
        job_id = await queue.submit()
        holder, job = await _first_job(one, other)
        for _ in range(8):
            await asyncio.sleep(0.5)
            await holder.about("job_progress", job)
        await holder.about("job_result", job, result=RESULT)
        assert (await queue.finished(job_id))["attempts"] == 1
        for worker in (one, other):
            await worker.close()


async def test_too_many_attempts_fail_the_job_and_keep_it(tmp_path: Path) -> None:
    """Its dead letter says why; put back, it is done like any other."""
    async with nats_server(tmp_path) as nats, job_queue(nats, max_attempts=2) as queue:
        worker = await RawWorker.register(queue)
        job_id = await queue.submit()
        for _ in range(2):
            await worker.about("job_release", await worker.job(), reason="no")
        job = await queue.finished(job_id)
        assert (job["status"], job["attempts"]) == ("failed", 2)
        assert job["error"] == "taken 2 times and never finished"
        [letter] = (await queue.ask("GET", "/dead"))["dead"]
        assert letter["id"] == job_id
        assert (await queue.ask("POST", f"/dead/{job_id}/redrive", {}))["status"] in {"pending", "running"}
        await worker.about("job_result", await worker.job(), result=RESULT)
        assert (await queue.finished(job_id))["status"] == "completed"
        await queue.ask("DELETE", f"/dead/{job_id}", status=404)
        await worker.close()


async def test_jobs_go_to_workers_of_their_config(tmp_path: Path) -> None:
    """One without a config goes to anybody."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        worker = await RawWorker.register(queue, config_id="small", capacity=5)
        large = await queue.submit(config_id="large")
        small, any_id = await queue.submit(config_id="small"), await queue.submit()
        assert {(await worker.job())["job_id"] for _ in range(2)} == {small, any_id}
        assert await worker.silent()
        other = await RawWorker.register(queue, "other", config_id="large")
        assert (await other.job())["job_id"] == large
        for each in (worker, other):
            await each.close()


async def test_long_payloads_and_results_travel_by_reference(tmp_path: Path) -> None:
    """The worker fetches one and uploads the other; the submitter sees neither."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        worker = await RawWorker.register(queue)
        text = "x" * 3_000_000
        job_id = await queue.submit(text)
        job = await worker.job()
        assert "payload" not in job
        async with queue.http.get(job["payload_url"]) as response:
            assert (await response.json())["messages"][0]["content"] == text
        result = {**RESULT, "long": text}
        await worker.about("job_result_ref", job)
        assert "has not been uploaded" in (await worker.next())["message"]
        async with queue.http.put(
            job["result_upload_url"].replace("fence_token=", "fence_token=0"), json=result
        ) as response:
            assert response.status == 409
        async with queue.http.put(job["result_upload_url"], data=b"no JSON") as response:
            assert response.status == 400
        async with queue.http.put(job["result_upload_url"], json=result) as response:
            assert response.status == 204
        await worker.about("job_result_ref", job)
        assert await worker.next() == {"type": "job_result_ref", "job_id": job_id, "fence_token": job["fence_token"]}
        done = await queue.finished(job_id)
        assert done["result"] == result
        assert done["payload"]["messages"][0]["content"] == text
        await worker.close()


async def test_a_restarted_queue_knows_its_jobs_and_its_workers_tokens(tmp_path: Path) -> None:
    """Pending jobs are there; a running one stays with its worker; what was done meanwhile is taken."""
    async with nats_server(tmp_path) as nats:
        async with job_queue(nats) as queue:
            port = int(queue.url.rpartition(":")[2])
            worker = await RawWorker.register(queue, capacity=2)
            ids = [await queue.submit(str(number)) for number in range(3)]
            first, second = await worker.job(), await worker.job()
        async with job_queue(nats, port=port) as queue:
            running = [{"job_id": first["job_id"], "fence_token": first["fence_token"]}]
            back = await RawWorker.register(queue, capacity=2, running=running)
            await back.about("job_result", second, result=RESULT)
            frames = [await back.next(), await back.next()]
            assert {frame["type"] for frame in frames} == {"job", "job_ack"}
            [third] = [frame for frame in frames if frame["type"] == "job"]
            assert third["job_id"] == ids[2]
            await back.about("job_result", first, result=RESULT)
            await back.about("job_result", third, result=RESULT)
            done = [await queue.finished(job_id) for job_id in ids]
            assert [job["status"] for job in done] == ["completed"] * 3
            await queue.until(lambda health: health["unfinished"] == 0)
            await back.close()
        await worker.close()


async def test_a_killed_nats_server_loses_no_job(tmp_path: Path) -> None:
    """A result that comes while it is away is recorded when it is back; submissions get 503 meanwhile."""
    async with RestartableNats(tmp_path) as nats, job_queue(nats.settings, lease_s=60) as queue:
        worker = await RawWorker.register(queue, capacity=2)
        one, other = await queue.submit("1"), await queue.submit("2")
        jobs = [await worker.job(), await worker.job()]
        await nats.kill()
        await worker.about("job_result", jobs[0], result=RESULT)
        await queue.ask("POST", "/jobs", {"payload": {"messages": MESSAGES}}, status=503)
        await nats.start()
        assert (await worker.next(30))["type"] == "job_ack"
        await worker.about("job_progress", jobs[1])
        await worker.about("job_result", jobs[1], result=RESULT)
        for job_id in (one, other):
            assert (await queue.finished(job_id))["status"] == "completed"
        await worker.close()


async def test_what_is_no_frame_is_answered_and_the_connection_lives_on(tmp_path: Path) -> None:
    """Whatever a worker sends; the queue goes on for all."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        worker = await RawWorker.connect(queue)

        async def refused(text: str | bytes, reason: str) -> None:
            await (worker.socket.send_bytes(text) if isinstance(text, bytes) else worker.socket.send_str(text))
            frame = await worker.next()
            assert frame["type"] == "error"
            assert reason in frame["message"]

        await refused('{"type": "drain"}', "first frame must be register")
        await refused("no JSON", "not JSON")
        await refused("[1]", "not a frame")
        await refused('{"type": "unknown"}', "unknown")
        await refused('{"type": "register", "worker_id": "", "config_id": "c", "capacity": 1}', "worker_id")
        await refused('{"type": "register", "worker_id": "w", "config_id": "c", "capacity": 0}', "capacity")
        await refused(b"bytes", "JSON text")
        await refused("x" * 2_000_000, "2000000 characters")
        await worker.send("register", worker_id="w", config_id="default", capacity=1)
        assert (await worker.next())["type"] == "registered"
        await refused('{"type": "register", "worker_id": "w", "config_id": "c", "capacity": 1}', "already registered")
        for fence in ("1-1-forged", "x", 7):
            await refused(json.dumps({"type": "job_error", "job_id": "j", "fence_token": fence, "error": ""}), "fence token")
            assert (await worker.next())["type"] == "job_revoked"
        job_id = await queue.submit()
        job = await worker.job()
        other = await RawWorker.register(queue, "thief")
        await other.about("job_result", job, result={"stolen": True})
        assert (await other.next())["type"] == "error"
        await worker.about("job_result", job, result=RESULT)
        assert (await queue.finished(job_id))["result"] == RESULT
        for each in (worker, other):
            await each.close()


async def test_a_worker_that_connects_twice_lives_once(tmp_path: Path) -> None:
    """The older connection is told and closed; its job goes to the newer one."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        older = await RawWorker.register(queue)
        job_id = await queue.submit()
        await older.job()
        newer = await RawWorker.register(queue)
        assert "another connection" in (await older.next())["message"]
        assert (await older.socket.receive(10)).type is aiohttp.WSMsgType.CLOSE
        assert (await newer.job())["job_id"] == job_id
        for each in (older, newer):
            await each.close()


async def test_a_worker_that_leaves_while_it_registers_is_forgotten(tmp_path: Path) -> None:
    """In whatever instant; no job waits for it."""
    async with nats_server(tmp_path) as nats, job_queue(nats, max_attempts=100) as queue:
        job_id = await queue.submit()
        for number in range(12):
            worker = await RawWorker.connect(queue)
            running = [{"job_id": job_id, "fence_token": "1-1-x"}]
            await worker.send("register", worker_id=f"w{number}", config_id=f"c{number}", capacity=1, running=running)
            await asyncio.sleep(0.001 * number)
            await worker.close()
        await queue.until(lambda health: health["workers"] == 0)
        worker = await RawWorker.register(queue)
        assert (await worker.job(wait_s=30))["job_id"] == job_id
        await worker.close()


async def test_keys_open_two_doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitters' and workers'; a wrong token is refused at the handshake."""
    monkeypatch.setenv("PENSTOCK_API_KEY", "submit")
    monkeypatch.setenv("PENSTOCK_WORKER_KEY", "work")
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        for token in (None, "wrong", "submit"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                await RawWorker.connect(queue, token)
            assert refusal.value.status == 401
        await (await RawWorker.connect(queue, "work")).close()
        body = {"payload": {"messages": MESSAGES}}
        for key in ("wrong", "work"):
            await queue.ask("POST", "/jobs", body, status=401, Authorization=f"Bearer {key}")
        job = await queue.ask("POST", "/jobs", body, status=201, Authorization="Bearer submit")
        await queue.ask("GET", f"/jobs/{job['id']}", status=401)
        await queue.ask("GET", "/health", status=200)
        beat = {"instance_id": "w", "queue_id": "q", "status": "running"}
        await queue.ask("POST", "/api/heartbeats", beat, status=401, Authorization="Bearer submit")
        await queue.ask("POST", "/api/heartbeats", beat, status=200, Authorization="Bearer work")
        shown = await queue.ask("GET", "/api/workers", Authorization="Bearer submit")
        assert [(each["worker_id"], each["status"], each["connected"]) for each in shown["workers"]] == [
            ("w", "running", False)
        ]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"no JSON", 400, "not valid JSON"),
        (b"[]", 400, "the body"),
        (b"{}", 400, "payload"),
        (b'{"payload": "text"}', 400, "payload: must be an object"),
        (b'{"payload": {}, "mode": "eternal"}', 400, "mode"),
        (b'{"payload": {}, "id": "a/b"}', 400, "id"),
        (b'{"payload": {}, "priority": 1}', 400, "priority"),
        (b'{"payload": {"x": "' + b"y" * 1_100_000 + b'"}}', 413, "bytes"),
        (b'{"payload": {}, "mode": "transient"}', 503, "no worker"),
        (b'{"payload": {}, "id": "twice"}', 409, "submitted before"),
    ],
)
async def test_bad_submissions_are_refused(tmp_path: Path, body: bytes, status: int, reason: str) -> None:
    """With a status and a sentence."""
    async with nats_server(tmp_path) as nats, job_queue(nats, max_body_bytes=1_000_000) as queue:
        await queue.submit(id="twice")
        async with queue.http.post(f"{queue.url}/jobs", data=body) as response:
            assert response.status == status
            assert reason in (await response.json())["error"]["message"]
        await queue.ask("GET", "/jobs/none", status=404)
        await queue.ask("GET", "/jobs?status=odd", status=400)


async def test_a_full_queue_refuses_more(tmp_path: Path) -> None:
    """429, with when to try again; what is in it stays."""
    async with nats_server(tmp_path) as nats, job_queue(nats, max_jobs=2) as queue:
        for _ in range(2):
            await queue.submit()
        await queue.ask("POST", "/jobs", {"payload": {"messages": MESSAGES}}, status=429)
        assert len((await queue.ask("GET", "/jobs?status=pending"))["jobs"]) == 2


async def test_a_held_call_waits_for_its_job(tmp_path: Path) -> None:
    """The official client gets a chat completion; a worker's error is 502, no worker 503, no answer in time 504."""
    async with nats_server(tmp_path) as nats, job_queue(nats, hold_timeout_s=1, lease_s=30) as queue:
        client = openai.AsyncOpenAI(base_url=f"{queue.url}/v1", api_key="none", max_retries=0)

        async def call() -> Any:
            return await client.chat.completions.create(model="default", messages=[{"role": "user", "content": "Hello!"}])

        with pytest.raises(openai.InternalServerError) as error:
            await call()
        assert error.value.status_code == 503
        worker = await RawWorker.register(queue)
        calling = asyncio.create_task(call())
        job = await worker.job()
        assert job["mode"] == "transient"
        await worker.about("job_result", job, result=RESULT)
        assert (await calling).choices[0].message.content == "Hi."
        assert (await worker.next())["type"] == "job_ack"
        calling = asyncio.create_task(call())
        await worker.about("job_error", await worker.job(), error="cannot")
        with pytest.raises(openai.InternalServerError, match="cannot") as error:
            await calling
        assert error.value.status_code == 502
        assert (await worker.next())["type"] == "job_ack"
        calling = asyncio.create_task(call())
        slow = await worker.job()
        with pytest.raises(openai.InternalServerError) as error:
            await calling
        assert error.value.status_code == 504
        assert (await worker.next(2)) == {
            "type": "job_revoked",
            "job_id": slow["job_id"],
            "reason": "nobody waits for it any more",
        }
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.chat.completions.create(model="x", messages=[{"role": "user", "content": "a"}], temperature=9)
        await client.close()
        await worker.close()


async def test_a_held_call_streams(tmp_path: Path) -> None:
    """Chunks come through as they are made; a worker that sends none is no mistake."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        worker = await RawWorker.register(queue)
        body = {"messages": MESSAGES, "stream": True}

        async def lines() -> list[str]:
            async with queue.http.post(f"{queue.url}/v1/chat/completions", json=body) as response:
                return [line.decode().strip() async for line in response.content if line.strip()]

        streaming = asyncio.create_task(lines())
        job = await worker.job()
        assert job["stream"]
        chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
        await worker.about("job_chunk", job, chunk=chunk)
        await worker.about("job_chunk", job, chunk={"id": "c", "choices": [], "usage": {"total_tokens": 3}})
        await worker.about("job_result", job, result=RESULT)
        assert [json.loads(line[6:]) if line[6] == "{" else line for line in await streaming] == [chunk, "data: [DONE]"]
        assert (await worker.next())["type"] == "job_ack"
        streaming = asyncio.create_task(lines())
        await worker.about("job_result", await worker.job(), result=RESULT)
        first, last = await streaming
        assert json.loads(first[6:])["choices"][0]["delta"]["content"] == "Hi."
        assert last == "data: [DONE]"
        await worker.close()


async def test_a_transient_job_fails_to_its_caller(tmp_path: Path) -> None:
    """After too many workers were lost; until then another one gets it."""
    async with nats_server(tmp_path) as nats, job_queue(nats, max_attempts=2) as queue:
        worker = await RawWorker.register(queue)
        calling = asyncio.create_task(queue.ask("POST", "/v1/chat/completions", {"messages": MESSAGES}, status=502))
        for _ in range(2):
            await worker.job()
            await worker.close()
            if not calling.done():
                worker = await RawWorker.register(queue)
        assert "after 2 attempts" in (await calling)["error"]["message"]
        job_id = await queue.submit(mode="transient")
        await worker.about("job_result", await worker.job(), result=RESULT)
        assert (await queue.finished(job_id))["result"] == RESULT
        await worker.close()


async def test_many_jobs_at_once(tmp_path: Path) -> None:
    """A batch is taken as a whole, each job answered for itself; their states come in one answer."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        jobs = [{"id": f"job-{number}", "payload": {"messages": MESSAGES}} for number in range(50)]
        answers = (await queue.ask("POST", "/jobs/batch", {"jobs": [*jobs, {"payload": 1}, jobs[0]]}))["jobs"]
        assert [answer.get("status") for answer in answers] == ["pending"] * 50 + [None, None]
        assert [answer["error"]["code"] for answer in answers[50:]] == ["invalid_request", "conflict"]
        statuses = (await queue.ask("POST", "/jobs/status", {"ids": ["job-0", "job-49", "none"]}))["jobs"]
        assert statuses == {"job-0": "pending", "job-49": "pending", "none": None}


async def _is(queue: JobQueue, job_id: str, **fields: Any) -> bool:
    job = await queue.ask("GET", f"/jobs/{job_id}")
    return fields.items() <= job.items()


async def _first_job(*workers: RawWorker) -> tuple[RawWorker, Any]:
    """Return the worker that gets the next job, and the job."""
    receiving = {asyncio.create_task(worker.job()): worker for worker in workers}
    done, pending = await asyncio.wait(receiving, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    [task] = done
    return receiving[task], task.result()
