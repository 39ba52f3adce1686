"""The job queue: how fast jobs are taken in durably, how soon an idle worker starts one, how many a second four workers do.

python -m benchmarks.jobs [--jobs 5000] [--workers 4] [--json FILE]

The engine is a stub that answers at once, so that what is measured is the queue and its workers. All parts are real
processes on this machine: nats-server (file storage), the queue, the workers; the stub and the submitter live in this one.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from benchmarks.report import machine, show, spread, write_json
from components.bus.server import NatsServerPlan

PAYLOAD = {"messages": [{"role": "user", "content": "What is a penstock? " * 10}], "max_tokens": 4}
CONCURRENCY = 64
BATCH = 250


class Stub:
    """An OpenAI endpoint that answers at once, and notes when each request came."""

    def __init__(self) -> None:
        self.started: list[float] = []
        choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
        last = {"index": 0, "delta": {"content": "word"}, "finish_reason": "length"}
        usage = {"prompt_tokens": 40, "completion_tokens": 4, "total_tokens": 44}
        chunks = [[choice], [choice], [choice], [last], []]
        lines = [{"id": "c", "model": "stub", "choices": choices, "usage": None if choices else usage} for choices in chunks]
        self._body = b"".join(b"data: " + json.dumps(line).encode() + b"\n\n" for line in lines) + b"data: [DONE]\n\n"

    async def chat(self, request: web.Request) -> web.Response:
        """Answer."""
        self.started.append(time.perf_counter())
        await request.read()
        return web.Response(body=self._body, content_type="text/event-stream")

    async def models(self, _: web.Request) -> web.Response:
        """Answer."""
        return web.json_response({"data": [{"id": "stub"}]})

    async def health(self, _: web.Request) -> web.Response:
        """Answer."""
        return web.Response()


@asynccontextmanager
async def running(workers: int, capacity: int) -> AsyncIterator[tuple[str, Stub, aiohttp.ClientSession]]:
    """Run all parts with so many workers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = NatsServerPlan(folder / "nats", "bench")
        plan.write()
        os.environ.update(plan.environment)
        log = folder / "log"
        nats = start(plan.argv, os.environ, log)
        settings = await plan.settings(nats.pid)
        stub = Stub()
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", stub.chat), web.get("/v1/models", stub.models)])
        app.add_routes([web.get("/health", stub.health)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        engine_port = runner.addresses[0][1]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        graph = folder / "queue.yaml"
        graph.write_text(
            f"name: bench\nmodel: none\nnats: {settings.url}\ncomponents: {{jobs: {{http_port: {port}, workers: 0}}}}\n"
        )
        argv = [sys.executable, "-m", "components.jobs", "--graph", str(graph), "--name", "jobs-0"]
        processes = [nats, start(argv, os.environ, log)]
        for number in range(workers):
            environment = {
                **os.environ,
                "CASOLA_WS_URL": f"ws://127.0.0.1:{port}",
                "CASOLA_CONFIG_ID": "default",
                "CASOLA_INSTANCE_ID": f"w{number}",
                "CASOLA_MAX_JOBS": str(capacity),
                "CASOLA_STATE_DIR": str(folder / "state"),
                "VLLM_MODEL": "stub",
                "VLLM_PORT": str(engine_port),
            }
            argv = [sys.executable, "-m", "components.jobs.worker"]
            processes.append(start(argv, environment, log))
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as http:
            try:
                await until(http, lambda health: health["workers"] == workers)
                yield f"http://127.0.0.1:{port}", stub, http
            finally:
                for process in processes[::-1]:
                    process.kill()
                    process.wait()
                await runner.cleanup()


def start(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program that ends with this one, however this one ends."""
    with log.open("ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *argv], env=environment, stdout=output, stderr=output
        )


async def until(http: aiohttp.ClientSession, condition: Any) -> Any:
    """Return what ``/health`` says once it fulfils `condition`."""
    async with asyncio.timeout(300):
        while True:
            try:
                async with http.get("/health") as response:
                    if condition(health := await response.json()):
                        return health
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def submit(http: aiohttp.ClientSession) -> None:
    """Submit one job."""
    async with http.post("/jobs", json={"payload": PAYLOAD}) as response:
        assert response.status == 201, await response.text()
        await response.read()


async def take_in(http: aiohttp.ClientSession, jobs: int, *, batched: bool) -> float:
    """Submit `jobs` jobs, and return how many a second were taken."""
    todo = jobs // BATCH if batched else jobs
    body = json.dumps({"jobs": [{"payload": PAYLOAD}] * BATCH}).encode()

    async def one_after_the_other() -> None:
        nonlocal todo
        while todo > 0:
            todo -= 1
            if batched:
                async with http.post("/jobs/batch", data=body) as response:
                    answers = (await response.json())["jobs"]
                    assert all("id" in answer for answer in answers)
            else:
                await submit(http)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4 if batched else CONCURRENCY):
            tasks.create_task(one_after_the_other())
    return jobs / (time.perf_counter() - began)


async def start_times(http: aiohttp.ClientSession, stub: Stub, jobs: int) -> list[float]:
    """Submit jobs one by one to an idle worker, and return the milliseconds until each one's inference began."""
    taken = []
    for _ in range(jobs):
        seen, began = len(stub.started), time.perf_counter()
        await submit(http)
        while len(stub.started) == seen:  # noqa: ASYNC110 the stub has no time for more
            await asyncio.sleep(0.0005)
        taken.append((stub.started[-1] - began) * 1000)
        await asyncio.sleep(0.02)
    return taken


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    found: dict[str, Any] = {"single": [], "batched": [], "start_ms": [], "through": []}
    for _ in range(arguments.rounds):
        async with running(0, 1) as (_, _, http):
            found["single"].append(await take_in(http, arguments.jobs, batched=False))
            found["batched"].append(await take_in(http, arguments.jobs, batched=True))
        async with running(1, 1) as (_, stub, http):
            await start_times(http, stub, 20)
            found["start_ms"] += await start_times(http, stub, 300)
        async with running(arguments.workers, 16) as (_, stub, http):
            await take_in(http, 500, batched=True)
            await until(http, lambda health: health["unfinished"] == 0)
            began, done = time.perf_counter(), len(stub.started)
            await take_in(http, arguments.jobs, batched=True)
            await until(http, lambda health: health["unfinished"] == 0)
            found["through"].append((len(stub.started) - done) / (time.perf_counter() - began))
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = uvloop.run(measure(arguments))
    starts = sorted(found["start_ms"])
    quantiles = {f"p{q}": starts[min(len(starts) - 1, len(starts) * q // 100)] for q in (50, 90, 99)}
    rows = [
        ["accepted durably, one a request, 64 at a time, jobs/s", spread(found["single"], 0)],
        ["accepted durably, batches of 250, jobs/s", spread(found["batched"], 0)],
        ["idle worker: submission until inference begins, ms", ", ".join(f"{k} {v:.1f}" for k, v in quantiles.items())],
        [f"submitted, done and recorded by {arguments.workers} workers, jobs/s", spread(found["through"], 0)],
    ]
    show(f"job queue, {machine()['cores']} cores", ["what", "median (min to max, rounds)"], rows)
    write_json(arguments.json, {**found, "quantiles_ms": quantiles})


if __name__ == "__main__":
    main()
