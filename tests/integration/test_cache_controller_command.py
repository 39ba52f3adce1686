"""`penstock cache-controller` as a process: what it says about settings that make no sense, and how it ends."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import aiohttp
import pytest

from tests.support.cache_controller import until
from tests.support.edge import free_port

COMMAND = (sys.executable, "-m", "components.launch", "cache-controller")


async def run(folder: Path, *words: str) -> tuple[int, str]:
    """Run the command to its end; return its exit code and what it wrote on standard error."""
    environment = {**os.environ, "PENSTOCK_STATE_DIR": str(folder)}
    process = await asyncio.create_subprocess_exec(*COMMAND, *words, stderr=PIPE, env=environment)
    async with asyncio.timeout(60):
        _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--set", "chunk_size=0"), 1, "chunk_size: must be at least 1"),
        (("--set", "hash_seed=x"), 1, "hash_seed: must be a whole number"),
        (("--set", "nonsense=1"), 2, "unknown field `nonsense`"),
        (("--set", "max_workers"), 2, "must be NAME=VALUE"),
        (("--set", "max_workers=many"), 2, "max_workers"),
        (("--host", "0.0.0.0"), 1, "PENSTOCK_API_KEY is not set"),
        (("--host", "203.0.113.1"), 1, "host: 203.0.113.1 is open to other machines"),
    ],
)
async def test_mistakes_are_named(tmp_path: Path, words: tuple[str, ...], code: int, text: str) -> None:
    """In one line, before anything serves."""
    ports = ("--port", str(free_port()), "--monitor-port", str(free_port()))
    found, errors = await run(tmp_path, *ports, *words)
    assert found == code, errors
    assert text in errors
    assert "Traceback" not in errors


async def test_the_documents_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """``--host localhost --port … --monitor-port …``: all four ports are bound; the document's curl is answered."""
    port, monitor = free_port(), free_port()
    more = {"reply_port": free_port(), "heartbeat_port": free_port()}
    words = ["--host", "localhost", "--port", str(port), "--monitor-port", str(monitor)]
    words += [word for name, value in more.items() for word in ("--set", f"{name}={value}")]
    environment = {**os.environ, "PENSTOCK_STATE_DIR": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(*COMMAND, *words, env=environment)
    try:
        async with aiohttp.ClientSession() as http:

            async def ready() -> bool:
                try:
                    async with http.get(f"http://localhost:{port}/ready") as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            await until(ready)
            body = '{"instance_id": "lmcache_default_instance", "worker_ids": [0]}'
            headers = {"Content-Type": "application/json"}
            async with http.post(f"http://localhost:{port}/query_worker_info", data=body, headers=headers) as answer:
                told = await answer.json()
            assert told == {"event_id": told["event_id"], "worker_infos": []}
        for each in (monitor, *more.values()):
            _, writer = await asyncio.open_connection("localhost", each)
            writer.close()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
