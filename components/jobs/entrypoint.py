"""A container's first process: starts the engine and the worker, watches both, and ends with them.

``python -m components.jobs.entrypoint``, configured by the environment as the worker is. When the engine dies, one last
heartbeat is sent and the container ends at once. When the worker ends, the engine is stopped, and the exit code is the
worker's. SIGTERM and SIGINT go to the worker, which drains; process 1 gets no signal it does not ask for, so both are.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
from asyncio.subprocess import Process

from components.jobs.heartbeats import Heartbeats
from components.jobs.worker_settings import WorkerSettings, WorkerSettingsError, worker_settings
from components.telemetry.logs import setup_logging

log = logging.getLogger(__name__)

_ENGINE_GONE = 1
_WORKER_LAST_WORDS_S = 2.0
_ENGINE_STOP_S = 10.0
_DRAIN_MARGIN_S = 5.0


def main() -> int:
    """Run engine and worker to their end, and return the container's exit code."""
    try:
        settings = worker_settings()
    except WorkerSettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    setup_logging(f"{settings.worker_id}/entrypoint", "info", "text")
    return asyncio.run(_run(settings))


def engine_command(settings: WorkerSettings) -> list[str]:
    """Return how to start the engine: vLLM's server, or what VLLM_COMMAND says, with vLLM's flags."""
    command = shlex.split(os.environ.get("VLLM_COMMAND", "")) or [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    host, _, port = settings.engine_url.removeprefix("http://").rpartition(":")
    return [*command, "--host", host, "--port", port, "--model", settings.model, *settings.engine_args]


async def _run(settings: WorkerSettings) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    try:
        engine = await _start(engine_command(settings))
    except OSError as error:
        await Heartbeats(settings).send("error", f"the engine cannot be started: {error}")
        log.error("the engine cannot be started", extra={"error": str(error)})  # noqa: TRY400 the text says it all
        return _ENGINE_GONE
    worker = await _start([sys.executable, "-m", "components.jobs.worker"])
    log.info("started", extra={"engine": engine.pid, "worker": worker.pid})
    try:
        return await _watch(settings, engine, worker, stopping)
    finally:
        for process in (worker, engine):
            _kill_group(process)
        await asyncio.gather(worker.wait(), engine.wait())
        _reap_orphans()


async def _watch(settings: WorkerSettings, engine: Process, worker: Process, stopping: asyncio.Event) -> int:
    engine_ends, worker_ends = asyncio.ensure_future(engine.wait()), asyncio.ensure_future(worker.wait())
    told = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({engine_ends, worker_ends, told}, return_when=asyncio.FIRST_COMPLETED)
        if told.done() and not (engine_ends.done() or worker_ends.done()):
            log.info("stopping")
            worker.send_signal(signal.SIGTERM)
            longest_s = settings.grace_s + _DRAIN_MARGIN_S
            await asyncio.wait({engine_ends, worker_ends}, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED)
        if worker_ends.done():
            await _stop_engine(engine)
            return _exit_code(worker_ends.result())
        if not engine_ends.done():
            log.error("the worker does not stop in time")
            return _exit_code(-signal.SIGKILL)
        reason = f"the engine ended with exit code {_exit_code(engine_ends.result())}"
        log.error("%s", reason)
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(signal.SIGTERM)
        await asyncio.wait({worker_ends}, timeout=_WORKER_LAST_WORDS_S)
        await Heartbeats(settings).send("error", reason)
        return _ENGINE_GONE
    finally:
        told.cancel()


async def _start(argv: list[str]) -> Process:
    """Start a program in a process group of its own, whose end this process cannot miss."""
    return await asyncio.create_subprocess_exec(*argv, stdin=subprocess.DEVNULL, process_group=0)


async def _stop_engine(engine: Process) -> None:
    if engine.returncode is None:
        engine.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_ENGINE_STOP_S):
                await engine.wait()
        except TimeoutError:
            log.warning("the engine does not stop; killing it")


def _kill_group(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _reap_orphans() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _exit_code(returncode: int) -> int:
    """Return a shell's exit code: 128 and the signal for a process that was killed."""
    return 128 - returncode if returncode < 0 else returncode


if __name__ == "__main__":
    sys.exit(main())
