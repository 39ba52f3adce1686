"""The whole way: HTTP, processor, router, simulated engines with real caches and events; and the router's death."""

import asyncio
import os
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from components.bus.server import NatsServerPlan
from components.graph.schema import Nats
from components.wire.errors import ErrorCode, ErrorReply
from components.wire.messages import GenerateRequest
from components.wire.routing import RouteEvent, RouteNotice, RouteNotices
from tests.support.decode_process import component_process
from tests.support.edge import Edge, edge, free_port, scripted
from tests.support.nats import nats_server
from tests.support.routing import Routing, routing
from tests.support.scripted_worker import ScriptedWorker

WORDS = "the river runs past seven old mills and under two stone bridges before it reaches the sea at last "


async def ask(server: Edge, prompt: str, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, str]:
    """Ask for a few tokens, and return penstock's response headers; ``cached`` is what the engine reused."""
    body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True} | fields
    async with server.http.post(server.url + "/v1/completions", json=body, headers=headers) as response:
        answer = await response.json()
        assert response.status == 200, answer
        headers_of = {name.lower(): value for name, value in response.headers.items()}
        found = {name[11:]: value for name, value in headers_of.items() if name.startswith("x-penstock-")}
        details = answer["usage"].get("prompt_tokens_details") or {"cached_tokens": 0}
        return found | {"cached": str(details["cached_tokens"])}


def worker(
    nats: Nats, folder: Path, name: str, speed: float = 50
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run a simulated worker that tells routers of its KV."""
    engine = f"{{kind: sim, speed: {speed}, max_model_len: 16384}}"
    return component_process(nats, folder, name, f"{{processor: {{}}, router: {{}}, decode: {{engine: {engine}}}}}")


def router_process(
    nats: Nats, folder: Path, name: str = "router-0"
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run a router as a process of its own."""
    router = f"{{http_port: {free_port()}}}"
    return component_process(nats, folder, name, f"{{processor: {{}}, router: {router}, decode: {{engine: {{kind: sim}}}}}}")


@asynccontextmanager
async def workers(
    nats: Nats, folder: Path, count: int, speed: float = 50
) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Run so many simulated workers."""
    async with AsyncExitStack() as stack:
        running = [worker(nats, folder, f"decode-{number}", speed) for number in range(count)]
        yield [await stack.enter_async_context(each) for each in running]


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A NATS server of the test's own."""
    async with nats_server(tmp_path / "nats") as settings:
        yield settings


async def routed(server: Edge, by: str = "kv") -> None:
    """Wait until requests are routed so."""
    async with asyncio.timeout(10):
        while (await ask(server, secrets.token_hex(8)))["policy"] != by:
            await asyncio.sleep(0.05)


async def exact(router: Routing, count: int) -> None:
    """Wait until the router knows all of what so many workers hold."""
    await router.trusts(**{f"decode_{number}": "exact" for number in range(count)})


async def test_requests_of_one_prefix_go_to_its_worker_and_others_spread(tmp_path: Path, nats: Nats) -> None:
    """And what the router predicts is what the engine then reuses."""
    async with workers(nats, tmp_path, 3), routing(nats) as router, edge(nats, router={}) as server:
        await exact(router, 3)
        await server.ready(3)
        went: Counter[str] = Counter()
        for number in range(24):
            prompt = f"{number} " + WORDS * 8
            first = await ask(server, prompt)
            await asyncio.sleep(0.1)
            went[first["worker"]] += 1
            assert (first["policy"], first["overlap-blocks"], float(first["cost-ms"]) > 0) == ("kv", "0", True)
            for turn in range(2):
                again = await ask(server, f"{prompt} and turn {turn}")
                assert again["worker"] == first["worker"]
                assert int(again["overlap-blocks"]) >= 4
                assert int(again["cached"]) == int(again["overlap-blocks"]) * 32
                await asyncio.sleep(0.05)
        assert len(went) == 3, went
        assert max(went.values()) <= 16, went
        async with asyncio.timeout(5):
            while (await router.get("/index/stats"))["requests"]:
                await asyncio.sleep(0.02)
        assert router.metric("penstock_router_predicted_cached_tokens_total") == router.metric(
            "penstock_router_actual_cached_tokens_total"
        )


async def test_many_at_once_leave_nothing_on_the_books(tmp_path: Path, nats: Nats) -> None:
    """Streams, choices, several prompts, clients that leave, requests that are refused: every booking ends."""
    async with workers(nats, tmp_path, 2, speed=5), routing(nats) as router, edge(nats, router={}) as server:
        await exact(router, 2)
        await server.ready(2)

        async def leave(number: int) -> None:
            body = {"prompt": f"{number} {WORDS}", "max_tokens": 2000, "ignore_eos": True, "stream": True}
            async with server.http.post(server.url + "/v1/completions", json=body) as response:
                await response.content.readany()

        async def impatient(number: int) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await ask(server, f"{number} {WORDS}", max_tokens=2000)

        several = {"prompt": ["one", "two", "three"], "max_tokens": 4, "n": 3}
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(leave(number))
                tasks.create_task(impatient(number))
                tasks.create_task(ask(server, f"{number} {WORDS}"))
                tasks.create_task(ask(server, f"{number} {WORDS}", n=4))
                tasks.create_task(server.post("/v1/completions", several))
                tasks.create_task(server.post("/v1/completions", {"prompt": WORDS * 5000, "max_tokens": 4}))
        await server.idle()
        async with asyncio.timeout(5):
            while (await router.get("/index/stats"))["requests"]:
                await asyncio.sleep(0.02)
        for each in (await router.get("/workers"))["workers"]:
            assert each["load"]["queued_tokens"] == 0


async def test_several_prompts_are_routed_each(tmp_path: Path, nats: Nats) -> None:
    """The headers tell of each; choices of one prompt stay together."""
    async with workers(nats, tmp_path, 2), routing(nats) as router, edge(nats, router={}) as server:
        await exact(router, 2)
        await server.ready(2)
        body = {"prompt": ["a " + WORDS * 4, "b " + WORDS * 4], "max_tokens": 4, "n": 2}
        async with server.http.post(server.url + "/v1/completions", json=body) as response:
            assert response.headers["x-penstock-policy"] == "kv,kv"
            assert response.headers["x-penstock-overlap-blocks"] == "0,0"
            assert set(response.headers["x-penstock-worker"].split(",")) == {"decode-0", "decode-1"}


async def test_without_a_router_requests_go_on(tmp_path: Path, nats: Nats) -> None:
    """Never refused for that; they say so, and the router is used as soon as it is there."""
    async with workers(nats, tmp_path, 2), edge(nats, router={}) as server:
        await server.ready(2)
        answers = [await ask(server, f"{number}") for number in range(6)]
        assert {answer["policy"] for answer in answers} == {"fallback"}
        assert {answer["worker"] for answer in answers} == {"decode-0", "decode-1"}
        assert "overlap-blocks" not in answers[0]
        assert await server.metric("penstock_router_away") == 1
        async with routing(nats):
            await routed(server)
            assert await server.metric("penstock_router_away") == 0


async def test_a_router_killed_under_load_costs_no_request(tmp_path: Path, nats: Nats) -> None:
    """Not one fails; routing is back soon after the router."""
    async with workers(nats, tmp_path, 2), edge(nats, router={}) as server:
        await server.ready(2)
        async with router_process(nats, tmp_path) as first:
            await routed(server)
            stop = asyncio.Event()
            policies: Counter[str] = Counter()

            async def load(client: int) -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    policies[(await ask(server, f"{client} {number} {WORDS}"))["policy"]] += 1

            async with asyncio.TaskGroup() as tasks:
                for client in range(8):
                    tasks.create_task(load(client))
                await asyncio.sleep(1)
                before = policies["fallback"]
                first.kill()
                await first.wait()
                await asyncio.sleep(1)
                assert policies["fallback"] > before
                async with router_process(nats, tmp_path):
                    await routed(server)
                    stop.set()
        assert policies["kv"] > 0


async def test_a_frozen_router_holds_up_only_who_was_asking(tmp_path: Path, nats: Nats) -> None:
    """SIGSTOP: after one timeout nobody waits for it; it is used again when it goes on."""
    async with workers(nats, tmp_path, 2), edge(nats, router={"timeout_s": 0.3}) as server:
        await server.ready(2)
        async with router_process(nats, tmp_path) as process:
            await routed(server)
            process.send_signal(signal.SIGSTOP)
            loop = asyncio.get_running_loop()
            took = []
            for number in range(30):
                start_s = loop.time()
                assert (await ask(server, f"{number}"))["policy"] == "fallback"
                took.append(loop.time() - start_s)
            assert sum(each > 0.25 for each in took) <= 1 + sum(took)
            process.send_signal(signal.SIGCONT)
            await routed(server)


async def test_nats_restarted(tmp_path: Path) -> None:
    """Events, statuses and notices are lost; requests fail for no other reason than NATS, and the index is exact again."""
    plan = NatsServerPlan(tmp_path / "nats", name="test")
    plan.write()

    async def start() -> asyncio.subprocess.Process:
        with (tmp_path / "nats" / "log").open("ab") as log:
            environment = {**os.environ, **plan.environment}
            return await asyncio.create_subprocess_exec(*plan.argv, env=environment, stdout=log, stderr=log)

    os.environ.update(plan.environment)
    process = await start()
    try:
        nats = await plan.settings(process.pid)
        async with workers(nats, tmp_path, 2), routing(nats) as router, edge(nats, router={}) as server:
            await exact(router, 2)
            await server.ready(2)
            prompt = "held " + WORDS * 8
            before = await ask(server, prompt)
            process.kill()
            await process.wait()
            await asyncio.sleep(0.5)
            plan.write()
            process = await start()
            await plan.settings(process.pid)
            await routed(server)
            await exact(router, 2)
            after = await ask(server, prompt)
            assert after["worker"] == before["worker"]
            assert int(after["overlap-blocks"]) >= 4
            assert int(after["cached"]) == int(after["overlap-blocks"]) * 32
    finally:
        process.terminate()
        await process.wait()
        del os.environ["PENSTOCK_NATS_TOKEN"]


async def test_a_frozen_worker_is_passed_over(tmp_path: Path, nats: Nats) -> None:
    """It holds the prefix and says nothing any more: the client gets its answer, later ones go elsewhere at once."""
    async with (
        workers(nats, tmp_path, 2) as processes,
        routing(nats) as router,
        edge(nats, router={}, first_token_timeout_s=1.0) as server,
    ):
        await exact(router, 2)
        await server.ready(2)
        prompt = "held " + WORDS * 8
        first = await ask(server, prompt)
        frozen = processes[int(first["worker"][-1])]
        frozen.send_signal(signal.SIGSTOP)
        other = await ask(server, prompt)
        assert other["worker"] != first["worker"]
        await asyncio.sleep(4)
        assert (await ask(server, prompt))["worker"] == other["worker"]
        assert [each["name"] for each in (await router.get("/workers"))["workers"]] == [other["worker"]]
        frozen.send_signal(signal.SIGCONT)
        await exact(router, 2)


async def test_a_worker_that_comes_back_empty_is_known_to_be_empty(tmp_path: Path, nats: Nats) -> None:
    """Killed and started again under its name: nothing of its old cache is believed."""
    async with worker(nats, tmp_path, "decode-0"), routing(nats) as router, edge(nats, router={}) as server:
        await server.ready(1)
        prompt = "held " + WORDS * 8
        async with worker(nats, tmp_path, "decode-1") as process:
            await exact(router, 2)
            await server.ready(2)
            while (first := await ask(server, prompt))["worker"] != "decode-1":
                prompt = f"again {prompt}"
            assert first["overlap-blocks"] == "0"
            process.kill()
            await process.wait()
        old = (await router.get("/workers/decode-1"))["incarnation"]
        async with worker(nats, tmp_path, "decode-1"):
            async with asyncio.timeout(10):
                while old in {each["incarnation"] for each in (await router.get("/workers"))["workers"]}:
                    await asyncio.sleep(0.05)
            await exact(router, 2)
            await server.ready(2)
            assert (await router.get("/workers/decode-1"))["blocks"] == 0
            answer = await ask(server, prompt)
            assert int(answer["cached"]) == int(answer["overlap-blocks"]) * 32


async def test_a_choice_that_moves_adds_no_route(nats: Nats) -> None:
    """Headers have an entry a prompt, whatever becomes of its choices; they name who has them in the end."""
    lost: list[str] = []

    async def lose_the_first(worker: ScriptedWorker, request: GenerateRequest) -> None:
        if lost:
            await worker.say(request, [(65, "A"), (66, "B")])
        else:
            lost.append(worker.name)
            await worker.send(request, error=ErrorReply(ErrorCode.WORKER_LOST, "it drains"))

    async with (
        routing(nats) as router,
        edge(nats, router={}) as server,
        scripted(server, a=lose_the_first, b=lose_the_first),
    ):
        async with asyncio.timeout(5):
            while len((await router.get("/workers"))["workers"]) < 2:
                await asyncio.sleep(0.02)
        headers = await ask(server, WORDS, n=2)
        assert headers["policy"] == "kv"
        assert headers["overlap-blocks"] == "0"
        assert set(headers["worker"].split(",")) == {"a", "b"}


async def test_a_replay_excludes_the_worker_that_failed(nats: Nats) -> None:
    """And its booking ends; the answer comes from the other one."""

    async def die(worker: ScriptedWorker, request: Any) -> None:
        await worker.bus.publish(worker.subjects.status(worker.name), worker_status(worker, "stopped"))

    async def serve(worker: ScriptedWorker, request: Any) -> None:
        await worker.say(request, [(65, "A"), (66, "B")])

    def worker_status(worker: ScriptedWorker, state: str) -> Any:
        from components.wire.process import ProcessState, ProcessStatus

        return ProcessStatus(worker.name, "decode", worker.incarnation, 1, "test", ProcessState(state))

    async with routing(nats) as router, edge(nats, router={}) as server:
        notices: list[RouteNotice] = []

        async def hear(told: RouteNotices) -> None:
            notices.extend(told.notices)

        await router.bus.subscribe(router.subjects.route_notices(), RouteNotices, hear)
        async with scripted(server, bad=die) as (bad,):
            async with asyncio.timeout(5):
                while [each["name"] for each in (await router.get("/workers"))["workers"]] != ["bad"]:
                    await asyncio.sleep(0.02)
            asking = asyncio.ensure_future(ask(server, WORDS))
            async with asyncio.timeout(5):
                while not bad.requests:
                    await asyncio.sleep(0.01)
            async with scripted(server, good=serve) as (good,):
                await asking
                assert len(good.requests) == 1
        await asyncio.sleep(0.2)
        begun = {notice.request_id for notice in notices if notice.event is RouteEvent.FIRST_TOKEN}
        ended = Counter(notice.request_id for notice in notices if notice.event is RouteEvent.FINISHED)
        assert begun <= set(ended)
        assert set(ended.values()) == {1}
        assert (await router.get("/index/stats"))["requests"] == 0


async def test_explaining_a_text_reads_it_as_a_request_is_read(tmp_path: Path, nats: Nats) -> None:
    """Text and messages become the same blocks there; the salt counts; a bad conversation is a 400 with its field."""
    async with workers(nats, tmp_path, 2), routing(nats) as router, edge(nats, router={}) as server:
        await exact(router, 2)
        await server.ready(2)
        prompt, messages = WORDS * 8, [{"role": "user", "content": WORDS * 6}]
        went = await ask(server, prompt)
        status, _ = await server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4, "cache_salt": "s"})
        assert status == 200
        await asyncio.sleep(0.3)
        by_text = await router.post("/explain", {"prompt": prompt})
        assert by_text["choice"]["worker"] == went["worker"]
        assert by_text["choice"]["overlap_blocks"] >= 4
        salted = await router.post("/explain", {"messages": messages, "cache_salt": "s"})
        assert salted["choice"]["overlap_blocks"] >= 4
        plain = await router.post("/explain", {"messages": messages})
        assert plain["prompt_tokens"] == salted["prompt_tokens"]
        assert plain["choice"]["overlap_blocks"] == 0
        bad = await router.post("/explain", {"messages": [{"role": "alien", "content": "x"}]}, 400)
        assert bad["error"]["param"] == "messages[0].role"


async def test_sessions_come_by_header(tmp_path: Path, nats: Nats) -> None:
    """`x-penstock-session` keeps a session on its worker; one that is too long is refused."""
    async with workers(nats, tmp_path, 3), routing(nats, session_ttl_s=60) as router, edge(nats, router={}) as server:
        await exact(router, 3)
        await server.ready(3)
        went = {(await ask(server, f"{i} short", {"x-penstock-session": "alice"}))["worker"] for i in range(8)}
        assert len(went) == 1
        headers = {"x-penstock-session": "x" * 257}
        async with server.http.post(server.url + "/v1/completions", json={"prompt": "a"}, headers=headers) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "x-penstock-session"


async def test_a_graph_without_a_router_is_as_it_was(tmp_path: Path, nats: Nats) -> None:
    """No headers, no metrics, no questions."""
    async with workers(nats, tmp_path, 1), routing(nats) as router, edge(nats) as server:
        await server.ready(1)
        answer = await ask(server, WORDS)
        assert set(answer) == {"worker", "cached"}
        assert await server.metric("penstock_routes_total") == 0
        assert (await router.get("/decisions"))["decisions"] == []
