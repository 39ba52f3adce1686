"""The container's first process: engine and worker together, from start to whatever end."""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.edge import free_port
from tests.support.jobs import JobQueue, WorkerProcess, eventually, job_queue
from tests.support.nats import nats_server

ENGINE = f"{sys.executable} -m tests.support.engine_program"


async def test_engine_and_worker_serve_and_end_together(tmp_path: Path) -> None:
    """A job is done; SIGTERM ends with 0; nothing is left."""
    async with _container(tmp_path) as (queue, container):
        assert (await queue.finished(await queue.submit(max_tokens=2)))["status"] == "completed"
        children = _children(container)
        container.signal(signal.SIGTERM)
        assert await container.exit_code() == 0
        assert not any(child.is_running() for child in children)


async def test_a_dead_engine_ends_the_container_at_once(tmp_path: Path) -> None:
    """With a code that is not 0, after a last heartbeat that says why; its job goes to another."""
    async with _container(tmp_path) as (queue, container):
        job_id = await queue.submit(max_tokens=500)
        await eventually(lambda: _is_running(queue, job_id))
        begin_s = time.monotonic()
        _child(container, "engine_program").kill()
        assert await container.exit_code() == 1
        assert time.monotonic() - begin_s < 8
        [shown] = (await queue.ask("GET", "/api/workers"))["workers"]
        assert (shown["status"], shown["error_message"]) == ("error", "the engine ended with exit code 137")
        assert (await queue.ask("GET", f"/jobs/{job_id}"))["status"] == "pending"


async def test_a_dead_worker_s_exit_code_is_the_container_s(tmp_path: Path) -> None:
    """And the engine does not outlive it."""
    async with _container(tmp_path) as (_, container):
        engine = _child(container, "engine_program")
        _child(container, "components.jobs.worker").kill()
        assert await container.exit_code() == 128 + signal.SIGKILL
        assert not engine.is_running()


async def test_an_engine_that_cannot_start_ends_the_container(tmp_path: Path) -> None:
    """The heartbeat says so; the queue never hears of a worker."""
    async with nats_server(tmp_path) as nats, job_queue(nats) as queue:
        container = _container_process(tmp_path, queue, VLLM_COMMAND="/no/such/program")
        await container.run("entrypoint")
        assert await container.exit_code() == 1
        [shown] = (await queue.ask("GET", "/api/workers"))["workers"]
        assert (shown["status"], shown["connected"]) == ("error", False)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare for a PID namespace")
async def test_signals_reach_it_as_process_1(tmp_path: Path) -> None:
    """Where a process that handles no signals ignores them."""
    probe = await asyncio.create_subprocess_exec("unshare", "--pid", "--fork", "true", stderr=asyncio.subprocess.DEVNULL)
    if await probe.wait():
        pytest.skip("PID namespaces are not allowed here")
    async with _container(tmp_path, "unshare", "--pid", "--fork", "--kill-child") as (queue, container):
        assert (await queue.finished(await queue.submit(max_tokens=2)))["status"] == "completed"
        first = _child(container, "components.jobs.entrypoint")
        first.send_signal(signal.SIGTERM)
        assert await container.exit_code() == 0


@asynccontextmanager
async def _container(folder: Path, *prefix: str) -> AsyncIterator[tuple[JobQueue, WorkerProcess]]:
    """Run a queue and the entrypoint, and wait until its worker has registered."""
    async with nats_server(folder) as nats, job_queue(nats) as queue:
        container = _container_process(folder, queue, VLLM_COMMAND=ENGINE)
        await container.run("entrypoint", *prefix)
        try:
            await queue.until(lambda health: health["workers"] == 1, wait_s=30)
            yield queue, container
        finally:
            children = _children(container)
            await container.end()
            for child in children:
                if child.is_running():
                    child.kill()


def _container_process(folder: Path, queue: JobQueue, **variables: str) -> WorkerProcess:
    urls = {"CASOLA_WS_URL": queue.ws_url, "CASOLA_API_URL": queue.url}
    return WorkerProcess(folder, "one", VLLM_PORT=str(free_port()), **urls, **variables)


def _children(container: WorkerProcess) -> list[psutil.Process]:
    assert container.process is not None
    try:
        return psutil.Process(container.process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _child(container: WorkerProcess, module: str) -> psutil.Process:
    return next(child for child in _children(container) if child.cmdline()[-1:] and module in " ".join(child.cmdline()))


async def _is_running(queue: JobQueue, job_id: str) -> bool:
    await asyncio.sleep(0.1)
    return str((await queue.ask("GET", f"/jobs/{job_id}"))["status"]) == "running"
