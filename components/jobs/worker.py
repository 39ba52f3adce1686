"""A job worker: ``python -m components.jobs.worker``, configured by the environment (docs/jobs.md).

It waits for its engine, connects to the queue, and works until it is told to stop; then it drains.
"""

import asyncio
import logging
import signal
import sys

import uvloop

from components.bus.process import unless
from components.jobs.engine_client import Engine
from components.jobs.fetch import Fetcher
from components.jobs.heartbeats import Heartbeats
from components.jobs.link import RefusedError
from components.jobs.runner import JobWorker
from components.jobs.undelivered import Undelivered
from components.jobs.worker_settings import WorkerSettings, WorkerSettingsError, worker_settings
from components.telemetry.logs import setup_logging

log = logging.getLogger(__name__)

_POLL_S = 0.25


class WorkerFailedError(Exception):
    """The worker cannot go on; the text says why in one line."""


class _Finished(Exception):  # noqa: N818 no error: it ends the TaskGroup
    """The worker has drained."""


def main() -> int:
    """Run the worker that the environment describes, and return its exit code."""
    try:
        settings = worker_settings()
    except WorkerSettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    setup_logging(settings.worker_id, "info", "text")
    try:
        uvloop.run(_main(settings))
    except WorkerFailedError as error:
        log.error("%s", error)  # noqa: TRY400 the text says it all
        return 1
    return 0


async def _main(settings: WorkerSettings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    await work(settings, stopping)


async def work(settings: WorkerSettings, stopping: asyncio.Event, working: asyncio.Event | None = None) -> None:
    """Work until `stopping` is set, and drain.

    Args:
        settings: who and where.
        stopping: ends it.
        working: set once the engine is ready and the queue is looked for.

    Raises:
        WorkerFailedError: the engine does not become ready, or the queue refuses the token.
    """
    heartbeats = Heartbeats(settings)
    undelivered = Undelivered(settings.state_dir / _safe(settings.worker_id))
    try:
        undelivered.open()
    except OSError as error:
        raise WorkerFailedError(f"CASOLA_STATE_DIR: {error}") from error
    async with Engine(settings) as engine, Fetcher(settings.queue_url, settings.api_token) as fetcher:
        await heartbeats.send("starting")
        await unless(stopping, _until_ready(engine, settings, heartbeats))
        if not stopping.is_set():
            if working is not None:
                working.set()
            await _serve(settings, stopping, engine, fetcher, undelivered, heartbeats)
        await heartbeats.send("stopping")


async def _serve(
    settings: WorkerSettings,
    stopping: asyncio.Event,
    engine: Engine,
    fetcher: Fetcher,
    undelivered: Undelivered,
    heartbeats: Heartbeats,
) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            worker = JobWorker(settings, engine, fetcher, undelivered, tasks)
            for background in (heartbeats.run(), worker.watch_engine(), worker.link.run()):
                tasks.create_task(background)
            await _until_stopped(stopping, worker)
    except* _Finished:
        log.info("drained")
    except* RefusedError as group:
        await heartbeats.send("error", str(group.exceptions[0]))
        raise WorkerFailedError(str(group.exceptions[0])) from None


async def _until_stopped(stopping: asyncio.Event, worker: JobWorker) -> None:
    """Wait, and drain.

    Raises:
        _Finished: always, in the end.
    """
    await stopping.wait()
    await worker.drain()
    raise _Finished


async def _until_ready(engine: Engine, settings: WorkerSettings, heartbeats: Heartbeats) -> None:
    """Wait for the engine; nobody hears of this worker before.

    Raises:
        WorkerFailedError: it takes too long.
    """
    try:
        async with asyncio.timeout(settings.startup_timeout_s):
            while not await engine.ready():  # noqa: ASYNC110 nobody tells us
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        reason = f"VLLM_STARTUP_TIMEOUT: no engine at {settings.engine_url} after {settings.startup_timeout_s:g} s"
        await heartbeats.send("error", reason)
        raise WorkerFailedError(reason) from None


def _safe(name: str) -> str:
    """Return `name` as a file name."""
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name).lstrip(".")[:100] or "worker"


if __name__ == "__main__":
    sys.exit(main())
