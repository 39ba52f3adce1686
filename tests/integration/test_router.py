"""Tests for a router on a real NATS server: where requests go, what it knows, and what happens when messages are lost."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nats as nats_py
import pytest

from components.graph.schema import Nats
from components.wire.errors import InvalidRequestError, ModelNotFoundError, NoWorkerError
from components.wire.kv import KvBatch, KvRemoved, KvStored
from components.wire.process import ProcessState, WorkerLoad
from components.wire.routing import RouteEvent, RouteNotice, RouteNotices, RouteReply, RouteRequest
from tests.support.nats import nats_server
from tests.support.raw_http import converse
from tests.support.routing import Holder, Routing, holders, routing

PROMPT = list(range(1000, 1100))


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A NATS server of the test's own."""
    async with nats_server(tmp_path / "nats") as settings:
        yield settings


@pytest.fixture
async def router(nats: Nats) -> AsyncIterator[Routing]:
    """A router with the kv policy."""
    async with routing(nats) as running:
        yield running


async def until_overlap(router: Routing, blocks: list[int], **wanted: int) -> None:
    """Wait until the router knows who holds how much of `blocks`."""
    overlaps = {worker.replace("_", "-"): count for worker, count in wanted.items()}
    async with asyncio.timeout(5):
        while not overlaps.items() <= (await router.overlaps(blocks)).items():
            await asyncio.sleep(0.01)


async def until_requests(router: Routing, count: int) -> None:
    """Wait until the router has so many requests on its books."""
    async with asyncio.timeout(5):
        while (await router.get("/index/stats"))["requests"] != count:
            await asyncio.sleep(0.01)


async def notice(router: Routing, request_id: str, event: RouteEvent, **fields: object) -> None:
    """Tell all routers of a request."""
    told = RouteNotice(request_id, event, "decode-0", **fields)  # type: ignore[arg-type]
    await router.bus.publish(router.subjects.route_notices(), RouteNotices([told]))


async def test_a_request_goes_to_the_worker_that_told_of_its_prefix(router: Routing) -> None:
    """Event in, choice out; the answer says what decided."""
    async with holders(router, "decode-0", "decode-1", "decode-2") as workers:
        await workers[1].store(PROMPT)
        await until_overlap(router, PROMPT, decode_0=0, decode_1=100, decode_2=0)
        reply = await router.ask(PROMPT)
        assert (reply.policy, reply.router, reply.candidates) == ("kv", "router-0", [])
        assert (reply.chosen.worker, reply.chosen.overlap_blocks, reply.chosen.uncached_tokens) == ("decode-1", 100, 1)
        assert reply.chosen.trust == "exact"
        await workers[1].send(KvRemoved(PROMPT[50:]))
        await until_overlap(router, PROMPT, decode_1=50)


async def test_a_busy_worker_is_passed_over(router: Routing) -> None:
    """Waiting for it costs more than computing elsewhere; when its prefills are over, it is the best again."""
    async with holders(router, "decode-0", "decode-1") as workers:
        await workers[0].store(PROMPT)
        await until_overlap(router, PROMPT, decode_0=100)
        await workers[0].store(list(range(5000, 5001)))
        for number in range(4):
            await router.ask(list(range(5000, 5001)), f"long-{number}", tokens=6000, excluded=["decode-1"])
        assert (await router.ask(PROMPT, dry_run=True)).chosen.worker == "decode-1"
        for number in range(4):
            await notice(router, f"long-{number}", RouteEvent.FINISHED)
        await until_requests(router, 0)
        assert (await router.ask(PROMPT, dry_run=True)).chosen.worker == "decode-0"


async def test_the_books_follow_the_notices(router: Routing) -> None:
    """Booked at the choice, computing until the first token, gone at the end; a dry run books nothing."""
    async with holders(router, "decode-0"):
        await router.ask(PROMPT, "r", dry_run=True)
        assert (await router.get("/index/stats"))["requests"] == 0
        await router.ask(PROMPT, "r")
        load = (await router.get("/workers/decode-0"))["load"]
        assert (load["requests"], load["queued_tokens"], load["active_tokens"]) == (1, 3201, 3201)
        await notice(router, "r", RouteEvent.FIRST_TOKEN, ttft_s=0.1, cached_tokens=64)
        await notice(router, "r", RouteEvent.FINISHED)
        await until_requests(router, 0)
        assert (await router.get("/workers/decode-0"))["load"]["queued_tokens"] == 0
        (decision,) = (await router.get("/decisions"))["decisions"]
        assert (decision["request_id"], decision["cached_tokens"], decision["ttft_ms"]) == ("r", 64, 100.0)
        assert decision["finished"]
        assert router.metric("penstock_router_decisions_total", policy="kv") == 1
        assert router.metric("penstock_router_actual_cached_tokens_total") == 64
        assert router.metric("penstock_router_predicted_cached_tokens_total") == 0
        assert router.metric("penstock_router_decision_seconds_count", phase="lookup") == 1


async def test_a_query_that_was_withdrawn_before_it_came_books_nothing(router: Routing) -> None:
    """Its asker has chosen by itself meanwhile; the next query with that id counts again."""
    async with holders(router, "decode-0"):
        await notice(router, "late", RouteEvent.FINISHED)
        await router.bus.flush()
        await asyncio.sleep(0.1)
        await router.ask(PROMPT, "late")
        assert (await router.get("/index/stats"))["requests"] == 0
        assert (await router.ask(PROMPT, dry_run=True)).chosen.overlap_blocks == 0
        await router.ask(PROMPT, "late")
        assert (await router.get("/index/stats"))["requests"] == 1


async def test_a_request_nobody_ends_is_over_at_its_deadline(router: Routing) -> None:
    """A processor may die with its notices."""
    async with holders(router, "decode-0"):
        await router.ask(PROMPT, "r", deadline_unix_s=time.time() + 0.5)
        assert (await router.get("/index/stats"))["requests"] == 1
        await until_requests(router, 0)


async def test_lost_events_are_made_good_by_a_snapshot(router: Routing) -> None:
    """A batch vanishes on the way: the next one, or the repeated number, tells; seconds later the index is exact."""
    async with holders(router, "decode-0", "decode-1") as (first, second):
        await first.store(PROMPT[:40], lose=True)
        await first.send(KvStored([1]))
        await second.store(PROMPT[:30], lose=True)
        await second.repeat()
        await until_overlap(router, PROMPT, decode_0=40, decode_1=30)
        await router.trusts(decode_0="exact", decode_1="exact")
        assert (await router.get("/index/stats"))["events"]["gaps"] == 2


async def test_a_router_that_starts_late_knows_what_the_others_know(nats: Nats, router: Routing) -> None:
    """It asks for snapshots; afterwards replicas agree on every overlap."""
    async with holders(router, "decode-0", "decode-1") as (first, second):
        await first.store(PROMPT)
        await second.store(PROMPT[:60])
        async with routing(nats, "router-1") as late:
            await late.trusts(decode_0="exact", decode_1="exact")
            chosen = await late.post("/explain", {"token_ids": [1, 2, 3]})
            assert chosen["router"] == "router-1"
            stats = [(await each.get("/index/stats"))["device"]["pairs"] for each in (router, late)]
            assert stats == [160, 160]


async def test_replicas_share_questions_and_books(nats: Nats, router: Routing) -> None:
    """Each question is answered once; each choice is on the books of both; each end too."""
    async with holders(router, "decode-0", "decode-1"), routing(nats, "router-1") as other:
        await other.trusts(decode_0="exact", decode_1="exact")
        async with asyncio.timeout(5):
            while router.member.status().state is not ProcessState.READY:
                await asyncio.sleep(0.01)
        await asyncio.sleep(1.2)  # a status of each router has been heard by the other
        replies = [await router.ask(list(range(i * 1000, i * 1000 + 10)), f"r{i}") for i in range(60)]
        assert {reply.router for reply in replies} == {"router-0", "router-1"}
        assert abs(sum(reply.chosen.worker == "decode-0" for reply in replies) - 30) <= 3
        await until_requests(router, 60)
        await until_requests(other, 60)
        for i in range(60):
            await notice(router, f"r{i}", RouteEvent.FINISHED)
        await until_requests(router, 0)
        await until_requests(other, 0)


async def test_an_end_that_overtakes_its_choice_is_kept(router: Routing) -> None:
    """Another replica's choice may come after the processor's notice that the request is over."""
    async with holders(router, "decode-0"):
        await notice(router, "fast", RouteEvent.FINISHED)
        for request_id in ("fast", "slow"):
            await notice(router, request_id, RouteEvent.CHOSEN, prompt_tokens=70, uncached_tokens=70, deadline_unix_s=4e9)
        await until_requests(router, 1)


async def test_a_worker_that_vanished_is_not_chosen_any_more(router: Routing) -> None:
    """Frozen or cut off: after three seconds of silence it is gone, and comes back as a newcomer."""
    async with holders(router, "decode-0", "decode-1") as (first, second):
        await first.store(PROMPT)
        await until_overlap(router, PROMPT, decode_0=100)
        await first.stop()
        async with asyncio.timeout(5):
            while "decode-0" in await router.overlaps(PROMPT):
                await asyncio.sleep(0.05)
        assert (await router.ask(PROMPT)).chosen.worker == "decode-1"
        await first.start()
        await router.trusts(decode_0="exact")
        await until_overlap(router, PROMPT, decode_0=100)
        assert second.name == "decode-1"


async def test_a_restarted_worker_is_known_to_hold_nothing(router: Routing) -> None:
    """Its old blocks are gone with its process, and so are the requests on it."""
    async with holders(router, "decode-0", "decode-1") as (first, _):
        await first.store(PROMPT)
        await until_overlap(router, PROMPT, decode_0=100)
        await router.ask(PROMPT, "r")
        await first.restart()
        await until_overlap(router, PROMPT, decode_0=0)
        await router.trusts(decode_0="exact")
        await until_requests(router, 0)
        await first.store(PROMPT[:3])
        await until_overlap(router, PROMPT, decode_0=3)


async def test_a_draining_worker_gets_nothing_new(router: Routing) -> None:
    """Not even what it holds."""
    async with holders(router, "decode-0", "decode-1") as (first, _):
        await first.store(PROMPT)
        await until_overlap(router, PROMPT, decode_0=100)
        first.state = ProcessState.DRAINING
        await first.tell()
        async with asyncio.timeout(5):
            while (await router.ask(PROMPT, dry_run=True)).chosen.worker == "decode-0":
                await asyncio.sleep(0.01)
        first.state = ProcessState.STOPPED
        await first.tell()
        async with asyncio.timeout(5):
            while len((await router.get("/workers"))["workers"]) > 1:
                await asyncio.sleep(0.01)


async def test_who_failed_a_request_is_not_chosen_for_it(router: Routing) -> None:
    """The processor names them; when that leaves nobody, it is told so and chooses itself."""
    async with holders(router, "decode-0", "decode-1") as (first, _):
        await first.store(PROMPT)
        await until_overlap(router, PROMPT, decode_0=100)
        assert (await router.ask(PROMPT, excluded=["decode-0"])).chosen.worker == "decode-1"
        with pytest.raises(NoWorkerError):
            await router.ask(PROMPT, excluded=["decode-0", "decode-1"])


async def test_nobody_to_choose(router: Routing) -> None:
    """Without workers the answer is an error that says so."""
    with pytest.raises(NoWorkerError):
        await router.ask(PROMPT)
    assert router.metric("penstock_router_no_worker_total") == 1
    await router.get("/ready", 503)


@pytest.mark.parametrize("policy", ["round_robin", "random", "least_loaded", "approximate"])
async def test_policies_without_events(nats: Nats, policy: str) -> None:
    """Workers that tell no events, and answer no snapshot, are chosen all the same."""
    async with routing(nats, policy=policy) as router:
        workers = [Holder(router.bus, router.subjects, f"decode-{i}", mute=True) for i in range(3)]
        for worker in workers:
            await worker.start()
        await router.trusts(decode_0="fallback", decode_1="fallback", decode_2="fallback")
        chosen = [(await router.ask([i], f"r{i}")).chosen.worker for i in range(30)]
        assert set(chosen) == {"decode-0", "decode-1", "decode-2"}
        if policy in ("round_robin", "least_loaded"):
            assert {chosen.count(worker.name) for worker in workers} == {10}
        if policy == "approximate":
            await workers[0].store([7])
            await workers[0].store([8], lose=True)
            await workers[0].repeat()
            again = await router.ask([7], "again", dry_run=True)
            assert again.chosen.worker == chosen[7]
        assert all(not worker.asked for worker in workers)
        assert (await router.get("/index/stats"))["events"]["gaps"] == 0
        for worker in workers:
            await worker.stop()


async def test_an_approximate_router_forgets_a_restarted_worker(nats: Nats) -> None:
    """Nothing of what went there is cached any more; what went elsewhere is."""
    async with routing(nats, policy="approximate") as router:
        workers = [Holder(router.bus, router.subjects, f"decode-{i}", mute=True) for i in range(2)]
        for worker in workers:
            await worker.start()
        await router.trusts(decode_0="fallback", decode_1="fallback")
        await router.ask(PROMPT, "a", excluded=["decode-1"])
        await router.ask(PROMPT, "b", excluded=["decode-0"])
        assert await router.overlaps(PROMPT) == {"decode-0": 100, "decode-1": 100}
        await workers[0].restart()
        await until_overlap(router, PROMPT, decode_0=0, decode_1=100)
        await router.post("/workers/decode-1/reset", {})
        await until_overlap(router, PROMPT, decode_0=0, decode_1=0)
        for worker in workers:
            await worker.stop()


async def test_a_session_stays_with_its_worker(nats: Nats) -> None:
    """With session affinity on, also in the answers of another replica."""
    async with (
        routing(nats, session_ttl_s=60) as router,
        routing(nats, "router-1", session_ttl_s=60) as other,
        holders(router, "decode-0", "decode-1", "decode-2"),
    ):
        await other.trusts(decode_0="exact", decode_1="exact", decode_2="exact")
        await asyncio.sleep(1.2)  # a status of each router has been heard by the other
        replies = []
        for turn in range(10):
            replies.append(await router.ask([turn], f"r{turn}", session="alice"))
            await asyncio.sleep(0.02)
        assert len({reply.chosen.worker for reply in replies}) == 1
        assert {reply.router for reply in replies} == {"router-0", "router-1"}


async def test_malformed_and_hostile_messages_are_counted_and_refused(nats: Nats, router: Routing) -> None:
    """Nothing that anybody can publish ends the router, or fills its memory."""
    client = await nats_py.connect(nats.url, token=os.environ["PENSTOCK_NATS_TOKEN"])
    subjects = router.subjects
    async with holders(router, "decode-0") as (worker,):
        await worker.store(PROMPT)
        everywhere = (
            subjects.kv_events("decode-0"),
            subjects.kv_chunks("router-0"),
            subjects.route_notices(),
            subjects.status("decode-0"),
            subjects.route(),
        )
        for subject in everywhere:
            for junk in (b"", b"\xff" * 100, b"\x80", b'{"json": 1}', os.urandom(64)):
                await client.publish(subject, junk)
        stranger = KvBatch("stranger", "x", 1, [KvStored(list(range(1000)))])
        await router.bus.publish(subjects.kv_events("stranger"), stranger)
        await notice(router, "r", RouteEvent.CHOSEN, deadline_unix_s=float("nan"), prompt_tokens=-5, blocks=[1])
        await notice(router, "unknown", RouteEvent.FIRST_TOKEN, ttft_s=float("inf"), cached_tokens=-7)
        await router.ask(PROMPT, "known")
        await notice(router, "known", RouteEvent.FIRST_TOKEN, ttft_s=-1.0, cached_tokens=-7)
        for bad in (
            RouteRequest("r", "demo", [1, 2, 3], 5, 0.0),
            RouteRequest("r", "demo", [], -1, 0.0),
        ):
            with pytest.raises(InvalidRequestError):
                await router.bus.request(subjects.route(), bad, RouteReply, 2.0)
        with pytest.raises(ModelNotFoundError):
            await router.bus.request(subjects.route(), RouteRequest("r", "other", [], 5, 0.0), RouteReply, 2.0)
        await until_overlap(router, PROMPT, decode_0=100)
        assert router.metric("penstock_router_events_undecodable_total") >= 20
        assert router.metric("penstock_router_index_blocks", tier="device") == 100
    await client.close()


async def test_nats_micro_discovers_the_router(nats: Nats, router: Routing) -> None:
    """`nats micro ls|info|stats` work, and count what was asked."""
    async with holders(router, "decode-0"):
        await router.ask(PROMPT, "r")
        client = await nats_py.connect(nats.url, token=os.environ["PENSTOCK_NATS_TOKEN"])
        ping, info, stats = [
            json.loads((await client.request(f"$SRV.{verb}.penstock-router", b"", timeout=2)).data)
            for verb in ("PING", "INFO", "STATS")
        ]
        await client.close()
        assert ping["type"] == "io.nats.micro.v1.ping_response"
        (endpoint,) = info["endpoints"]
        assert (endpoint["subject"], endpoint["queue_group"]) == (router.subjects.route(), "routers")
        assert stats["endpoints"][0]["num_requests"] == 1


async def test_queries_need_the_api_key(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys set, all but the probes answer 401 without one, in the processor's shape."""
    monkeypatch.setenv("PENSTOCK_API_KEY", "one,two")
    async with routing(nats) as router:
        for method, path in (
            ("GET", "/workers"),
            ("GET", "/metrics"),
            ("POST", "/workers/decode-0/reset"),
            ("POST", "/explain"),
        ):
            async with router.http.request(method, router.url + path) as response:
                assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
                error = (await response.json())["error"]
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert (await router.http.get(router.url + "/health")).status == 200
        assert (await router.http.get(router.url + "/workers", headers={"Authorization": "Bearer two"})).status == 200


async def test_queries_stand_behind_the_same_guards_as_the_endpoint(nats: Nats) -> None:
    """What is no HTTP, what is too long and what comes too slowly is refused, and repeats nothing that was sent."""
    async with routing(nats, http={"max_body_bytes": 1000, "client_stall_timeout_s": 0.5}) as router:
        port = int(router.url.rpartition(":")[2])
        post = b"POST /explain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        refused = await converse(port, post + b"sk-secret\r\n\r\n")
        assert refused.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
        assert b'"type":"invalid_request_error"' in refused
        assert b"sk-secret" not in refused
        assert (await converse(port, post + b"Content-Length: 1001\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        assert (await converse(port, post + b"Content-Length: 10\r\n\r\n{")).startswith(b"HTTP/1.1 408 ")
        assert await converse(port, b"GET /wor") == b""
        assert (await router.http.get(router.url + "/health")).status == 200


async def test_workers_are_listed_by_number(router: Routing) -> None:
    """decode-2 before decode-10."""
    names = ["decode-10", "decode-2", "decode-b-1", "decode-1"]
    async with holders(router, *names):
        listed = [each["name"] for each in (await router.get("/workers"))["workers"]]
        assert listed == ["decode-1", "decode-2", "decode-10", "decode-b-1"]


async def test_queries(router: Routing) -> None:
    """Every query answers; a reset asks the worker anew."""
    async with holders(router, "decode-0", "decode-1") as (first, _):
        first.load = WorkerLoad(running_requests=2, waiting_requests=1, kv_usage=0.5, prompt_tokens=1000, cached_tokens=250)
        await first.tell()
        await first.store(PROMPT)
        await until_overlap(router, PROMPT, decode_0=100)
        worker = await router.get("/workers/decode-0")
        assert (worker["trust"], worker["blocks"], worker["hit_rate"], worker["running_requests"]) == ("exact", 100, 0.25, 2)
        assert [each["name"] for each in (await router.get("/workers"))["workers"]] == ["decode-0", "decode-1"]
        asked = len(first.asked)
        reset = await router.post("/workers/decode-0/reset", None)
        assert (reset["trust"], reset["why"], reset["blocks"]) == ("fallback", "it was reset", 0)
        await router.trusts(decode_0="exact")
        await until_overlap(router, PROMPT, decode_0=100)
        assert len(first.asked) == asked + 1
        assert (await router.get("/ready")) == {"workers": 2, "nats": True}
        async with router.http.get(router.url + "/metrics") as response:
            text = await response.text()
        assert 'penstock_router_trust{process="router-0",trust="exact",worker="decode-0"} 1.0' in text
        assert 'penstock_router_index_blocks{process="router-0",tier="device"} 100.0' in text


async def test_explain_tells_what_every_worker_would_cost(router: Routing) -> None:
    """By token ids no processor is needed; the cheapest comes first, every term is there, nothing is booked."""
    async with holders(router, "decode-0", "decode-1"):
        answer = await router.post("/explain", {"token_ids": list(range(100)), "excluded": ["decode-1"]})
        assert (answer["prompt_tokens"], answer["prompt_blocks"], answer["policy"]) == (100, 3, "kv")
        assert answer["choice"] == answer["candidates"][0]
        assert set(answer["choice"]) == {
            "worker", "trust", "overlap_blocks", "expected_blocks", "fetch_blocks", "store", "uncached_tokens", "requests",
            "queued_tokens", "active_tokens", "prefill_s", "fetch_s", "queue_s", "decode_s", "memory_s", "cost_s",
        }  # fmt: skip
        assert [each["worker"] for each in answer["candidates"]] == ["decode-0"]
        nobody = await router.post("/explain", {"token_ids": [1], "excluded": ["decode-0", "decode-1"]})
        assert (nobody["choice"], nobody["candidates"]) == (None, [])
        assert (await router.get("/index/stats"))["requests"] == 0


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"\xff\xfe", 400, None),
        (b"[]", 400, None),
        (b"[" * 100_000, 400, None),
        (b"{}", 400, "prompt"),
        (b'{"prompt": "a", "token_ids": [1]}', 400, "prompt"),
        (b'{"prompt": 5}', 400, None),
        (b'{"token_ids": []}', 400, None),
        (b'{"token_ids": [-1]}', 400, None),
        (b'{"token_ids": [4294967296]}', 400, None),
        (b'{"token_ids": [1], "temperature": 1}', 400, None),
        (b'{"token_ids": [1], "model": "other"}', 404, "model"),
        (b'{"prompt": "nobody can read this"}', 503, None),
        (b" " * 9_000_000, 413, None),
    ],
)
async def test_bad_questions_get_clear_answers(router: Routing, body: bytes, status: int, param: str | None) -> None:
    """A status, a reason and, where there is one, the field; never a 500."""
    async with router.http.post(router.url + "/explain", data=body) as response:
        assert response.status == status
        error = (await response.json())["error"]
        assert error["message"]
        assert error.get("param") == param


async def test_paths_that_are_not_there(router: Routing) -> None:
    """As JSON too."""
    for path in ("/nothing", "/workers/nobody"):
        await router.get(path, 404)
    await router.get("/explain", 405)
    await router.post("/workers/nobody/reset", None, 404)
    for limit in ("0", "201", "-1", "x", "²", "9" * 5000):
        await router.get(f"/decisions?limit={limit}", 400)
