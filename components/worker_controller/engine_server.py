"""An engine's first process: vLLM's own OpenAI server, on the engine's port, whose core computes on ranks of the pool.

Imports vLLM. Run by the controller as ``python -m components.worker_controller.engine_process``, with an `EngineJob` in the
environment, forked from the warm server, where importing this module has built vLLM's argument parser already.
"""

import asyncio
import errno
import logging
import os
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, cast

import msgspec
import uvloop
from vllm.entrypoints.openai import api_server as vllm_server
from vllm.utils.argparse_utils import FlexibleArgumentParser

from components.worker_controller.core_first import core_first
from components.worker_controller.engine_args import command_line
from components.worker_controller.frames import HEAD_BYTES, head, length_in
from components.worker_controller.messages import (
    JOB_VARIABLE,
    MAX_MESSAGE_BYTES,
    Doing,
    Done,
    EngineJob,
    Failed,
    Hello,
    Leaving,
    Message,
    Running,
    Sleep,
    WakeUp,
    decode,
    encode,
    phase_since,
)
from components.worker_controller.remote_executor import RemoteExecutor
from components.worker_controller.report import one_line

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
except ModuleNotFoundError:  # before 0.3x
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args

_NEVER_AGAIN_S = 1e9
_WITHOUT_WEIGHTS = 2

log = logging.getLogger(__name__)


class _Parser(FlexibleArgumentParser):  # type: ignore[misc] # vLLM is untyped here
    """vLLM's parser; a mistake is an exception instead of the process's end."""

    def error(self, message: str) -> Any:
        raise ValueError(message)


_parser = make_arg_parser(_Parser())


class EngineServer:
    """Starts and serves one engine, and tells the controller how it goes."""

    def __init__(self, job: EngineJob) -> None:
        self._job = job
        self._writer: asyncio.StreamWriter | None = None
        self._level = 0

    async def run(self) -> int:
        """Serve until told to end; returns the exit code."""
        reader, self._writer = await asyncio.open_unix_connection(self._job.controller)
        self._tell(Hello(self._job.key, "server", os.getpid()))
        self._tell(phase_since(self._job.engine, "fork", self._job.asked_s))
        try:
            await self._serve(reader)
        except OSError as error:
            self._tell(Failed(one_line(error), port_taken=error.errno == errno.EADDRINUSE))
        except Exception as error:
            log.error("the engine cannot serve", exc_info=True)
            self._tell(Failed(one_line(error)))
        else:
            return 0
        await self._writer.drain()
        return 1

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        began = time.monotonic()
        self._tell(Doing("reading its configuration"))
        args = parse(self._job)
        address, sock = vllm_server.setup_server(args, reuse_port=False)
        self._tell(phase_since(self._job.engine, "arguments", began))
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            with core_first():
                client = await stack.enter_async_context(vllm_server.build_async_engine_client(args))
            self._tell(phase_since(self._job.engine, "engine", began))
            self._tell(Doing("starting its API server"))
            async with asyncio.TaskGroup() as tasks:
                heeding = tasks.create_task(self._heed(reader, client))
                ended = await vllm_server.build_and_serve(
                    client, address, sock, args, callback_notify=self._announcer(), timeout_notify=_NEVER_AGAIN_S
                )
                heeding.cancel()
            if not client.errored:
                self._tell(Leaving())
        await ended
        sock.close()

    def _announcer(self) -> Callable[[], Awaitable[None]]:
        """Return what uvicorn is to call once it listens; it calls it again after `timeout_notify` seconds."""
        began = time.monotonic()

        async def announce() -> None:
            self._tell(phase_since(self._job.engine, "api", began))
            self._tell(Running())

        return announce

    async def _heed(self, reader: asyncio.StreamReader, client: Any) -> None:
        """Do what the controller asks for, until it is gone."""
        while True:
            order = decode(await _read(reader))
            if not isinstance(order, Sleep | WakeUp):
                continue
            error = ""
            try:
                await (self._sleep(client, order.level) if isinstance(order, Sleep) else self._wake_up(client))
            except Exception as failure:  # noqa: BLE001 an engine that cannot sleep goes on serving, and says so
                error = one_line(failure)
            self._tell(Done(order.number, error))

    async def _sleep(self, client: Any, level: int) -> None:
        await client.sleep(level)
        self._level = level

    async def _wake_up(self, client: Any) -> None:
        """Wake as vLLM wants it: after level 2 the weights are read again, before there is KV that they could have made."""
        if self._level == _WITHOUT_WEIGHTS:
            await client.wake_up(tags=["weights"])
            await client.collective_rpc("reload_weights")
            await client.wake_up(tags=["kv_cache"])
        else:
            await client.wake_up()
        self._level = 0

    def _tell(self, message: Message) -> None:
        if self._writer is not None:
            data = encode(message)
            self._writer.write(head(len(data)) + data)


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return the next frame; ends this process when the controller is gone."""
    length = length_in(await reader.readexactly(HEAD_BYTES))
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return await reader.readexactly(length)


def parse(job: EngineJob) -> Namespace:
    """Return what ``vllm serve`` would have read from a command line that asks for `job`.

    Raises:
        ValueError: an argument is wrong.
    """
    args = _parser.parse_args(["--host", job.host, "--port", str(job.port), *command_line(job.args)])
    validate_parsed_serve_args(args)
    args.distributed_executor_backend = RemoteExecutor
    return cast("Namespace", args)


def main() -> int:
    """Run the engine of the job in the environment; returns the exit code."""
    job = msgspec.json.decode(os.environ[JOB_VARIABLE], type=EngineJob)
    return cast("int", uvloop.run(EngineServer(job).run()))
