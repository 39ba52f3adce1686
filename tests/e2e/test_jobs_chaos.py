"""Thousands of jobs while workers are killed and frozen, and the queue and NATS are killed: each is done exactly once."""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from components.launch.child import start_fresh
from tests.support.edge import free_port
from tests.support.jobs import ScriptedEngine, WorkerProcess
from tests.support.nats import RestartableNats

JOBS = 5000
WORKERS = 4
CAPACITY = 16
FROZEN_S = 4.0
LEASE_S = 3


class Submitter:
    """Knows nothing but HTTP: submits, asks, and remembers the first result it saw of each job."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http
        self.first: dict[str, Any] = {}
        self.refused = 0

    async def ask(self, path: str, body: Any = None) -> Any:
        """Return an answer, however often it takes."""
        while True:
            try:
                method = "GET" if body is None else "POST"
                async with self._http.request(method, self._url + path, json=body) as response:
                    if response.status < 300:
                        return await response.json()
                    assert response.status in {429, 503}, await response.text()
            except (aiohttp.ClientError, TimeoutError):
                pass
            self.refused += 1
            await asyncio.sleep(0.2)

    async def submit(self, ids: list[str]) -> None:
        """Submit a job of each id, until all are taken."""
        for start in range(0, len(ids), 250):
            batch = ids[start : start + 250]
            while batch:
                jobs = [
                    {"id": name, "payload": {"messages": [{"role": "user", "content": name}], "max_tokens": 4}}
                    for name in batch
                ]
                answers = (await self.ask("/jobs/batch", {"jobs": jobs}))["jobs"]
                codes = {name: answer.get("error", {}).get("code") for name, answer in zip(batch, answers, strict=True)}
                assert set(codes.values()) <= {None, "conflict", "no_worker"}, codes
                batch = [name for name, code in codes.items() if code == "no_worker"]

    async def collect(self, ids: list[str]) -> None:
        """Ask until all are finished, and remember each job as it was seen first when it was."""
        todo = list(ids)
        while todo:
            statuses: dict[str, str | None] = {}
            for start in range(0, len(todo), 500):
                statuses |= (await self.ask("/jobs/status", {"ids": todo[start : start + 500]}))["jobs"]
            assert None not in statuses.values(), "a job was lost"
            ended = [name for name, status in statuses.items() if status in {"completed", "failed"}]
            for name in ended:
                self.first[name] = await self.ask(f"/jobs/{name}")
            todo = [name for name in todo if name not in self.first]
            await asyncio.sleep(0.2)


@pytest.mark.timeout(600)
async def test_each_job_is_done_exactly_once(tmp_path: Path) -> None:
    """A kill -9 or a SIGSTOP of a worker every second, one kill of the queue, one of NATS; the tally is printed."""
    ids = [f"job-{number}" for number in range(JOBS)]
    port, begin_s = free_port(), time.monotonic()
    faults: Counter[str] = Counter()
    async with (
        RestartableNats(tmp_path) as nats,
        ScriptedEngine(token_s=0.05) as engine,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http,
    ):
        queue = await _start_queue(tmp_path, nats.settings.url, port)
        url = f"http://127.0.0.1:{port}"
        submitter = Submitter(url, http)
        await submitter.ask("/health")
        variables = {
            "CASOLA_MAX_JOBS": str(CAPACITY),
            "CASOLA_LEASE_SECONDS": str(LEASE_S),
            "CASOLA_PAUSE_ABOVE_WAITING": "1000",
        }
        workers = [
            await WorkerProcess.start(tmp_path, f"w{number}", f"ws://127.0.0.1:{port}", engine, **variables)
            for number in range(WORKERS)
        ]
        thaws: set[asyncio.Task[None]] = set()

        async def harm_workers() -> None:
            rng = random.Random(7)
            while True:
                await asyncio.sleep(1.0)
                worker = rng.choice(workers)
                if rng.random() < 0.5:
                    faults["killed workers"] += 1
                    await worker.end()
                    await worker.run()
                else:
                    faults["frozen workers"] += 1
                    worker.signal(signal.SIGSTOP)
                    task = asyncio.create_task(_thaw(worker))
                    thaws.add(task)
                    task.add_done_callback(thaws.discard)

        async def harm_servers() -> None:
            nonlocal queue
            await _until(lambda: len(submitter.first) > JOBS // 4)
            faults["killed queues"] += 1
            queue.kill()
            await queue.wait()
            queue = await _start_queue(tmp_path, nats.settings.url, port)
            await _until(lambda: len(submitter.first) > JOBS // 2)
            faults["killed NATS servers"] += 1
            await nats.kill()
            await asyncio.sleep(1.0)
            await nats.start()

        try:
            async with asyncio.TaskGroup() as tasks:
                harming = tasks.create_task(harm_workers())
                tasks.create_task(harm_servers())
                tasks.create_task(submitter.submit(ids))
                await _settled(submitter, ids[-1])
                await submitter.collect(ids)
                harming.cancel()
            again = {name: await submitter.ask(f"/jobs/{name}") for name in ids}
            async with asyncio.timeout(60):
                while (health := await submitter.ask("/health"))["unfinished"]:
                    await asyncio.sleep(0.2)
        finally:
            for worker in workers:
                await worker.end()
            if queue.returncode is None:
                queue.terminate()
                await queue.wait()
    runs = Counter(request["messages"][0]["content"] for request in engine.requests)
    statuses = Counter(job["status"] for job in again.values())
    tally = {
        "jobs": JOBS,
        **statuses,
        "changed after they were finished": sum(again[name] != submitter.first[name] for name in ids),
        "dead letters": health["dead"],
        "inferences begun": sum(runs.values()),
        "jobs begun more than once": sum(count > 1 for count in runs.values()),
        "most attempts": max(job["attempts"] for job in again.values()),
        "requests the submitter repeated": submitter.refused,
        **faults,
        "seconds": round(time.monotonic() - begin_s, 1),
    }
    sys.stdout.write("\n" + "\n".join(f"{count:>8}  {what}" for what, count in tally.items()) + "\n")
    assert [job["error"] for job in again.values() if job["error"]] == []
    assert statuses == {"completed": JOBS}
    assert again == submitter.first
    assert set(runs) == set(ids)
    assert health["dead"] == 0
    assert min(faults.values()) >= 1


async def _start_queue(folder: Path, nats_url: str, port: int) -> asyncio.subprocess.Process:
    graph = folder / "queue.yaml"
    jobs = f"{{http_port: {port}, workers: 0, lease_s: {LEASE_S}, max_attempts: 50}}"
    graph.write_text(f"name: chaos\nmodel: none\nnats: {nats_url}\ncomponents: {{jobs: {jobs}}}\n")
    argv = [sys.executable, "-m", "components.jobs", "--graph", str(graph), "--name", "jobs-0"]
    child = await start_fresh(argv, os.environ, folder / "queue.log")
    assert isinstance(child, asyncio.subprocess.Process)
    return child


async def _thaw(worker: WorkerProcess) -> None:
    await asyncio.sleep(FROZEN_S)
    worker.signal(signal.SIGCONT)


async def _settled(submitter: Submitter, last: str) -> None:
    """Wait until the last job is known to the queue."""
    while (await submitter.ask("/jobs/status", {"ids": [last]}))["jobs"][last] is None:
        await asyncio.sleep(0.1)


async def _until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.05)
