"""Real decode workers die under real streams; the client reads the answer it would have got anyway."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from components.bus.server import NatsServerPlan
from tests.support.decode_process import decode_process
from tests.support.edge import Edge, edge
from tests.support.nats import nats_server

BODY: dict[str, Any] = {
    "prompt": "The river runs",
    "max_tokens": 120,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}


class Reader:
    """Reads one stream.

    Attributes:
        text: what came so far.
        usage: the last chunk's.
        worker: the one that began it.
    """

    def __init__(self, server: Edge, body: dict[str, Any]) -> None:
        self._server = server
        self._body = body
        self.text = ""
        self.chunks = 0
        self.usage: dict[str, Any] = {}
        self.worker = ""

    async def read(self) -> None:
        """Read to the end."""
        async with self._server.http.post(self._server.url + "/v1/completions", json=self._body) as response:
            self.worker = response.headers["x-penstock-worker"]
            async for line in response.content:
                if line.startswith(b"data: {"):
                    event = msgspec.json.decode(line[6:])
                    assert "error" not in event, event
                    self.text += "".join(choice["text"] for choice in event["choices"])
                    self.chunks += 1
                    self.usage = event.get("usage") or {}

    async def until(self, chunks: int) -> None:
        """Wait until so many chunks have come."""
        async with asyncio.timeout(20):
            while self.chunks < chunks:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("more", [{}, {"stop": ["never said in this answer"]}, {"logprobs": 1, "return_token_ids": True}])
async def test_a_worker_killed_mid_stream(tmp_path: Path, more: dict[str, Any]) -> None:
    """SIGKILL: the same greedy text, the same usage, one replay, nothing left open."""
    async with (
        nats_server(tmp_path) as nats,
        decode_process(nats, tmp_path, "decode-0", speed=2) as first,
        decode_process(nats, tmp_path, "decode-1", speed=2) as second,
        edge(nats) as server,
    ):
        await server.ready(2)
        whole = Reader(server, BODY | more)
        await whole.read()
        moved = Reader(server, BODY | more)
        reading = asyncio.ensure_future(moved.read())
        await moved.until(20)
        {"decode-0": first, "decode-1": second}[moved.worker].send_signal(signal.SIGKILL)
        async with asyncio.timeout(20):
            await reading
        assert moved.text == whole.text
        assert moved.usage["completion_tokens"] == whole.usage["completion_tokens"] == 120
        assert await server.metric("penstock_replays_total") == 1
        await server.idle()


async def test_a_frozen_worker_is_left_behind(tmp_path: Path) -> None:
    """SIGSTOP: no status for 3 seconds, and the stream goes on elsewhere."""
    async with (
        nats_server(tmp_path) as nats,
        decode_process(nats, tmp_path, "decode-0", speed=2) as first,
        decode_process(nats, tmp_path, "decode-1", speed=2) as second,
        edge(nats) as server,
    ):
        await server.ready(2)
        moved = Reader(server, BODY)
        reading = asyncio.ensure_future(moved.read())
        await moved.until(20)
        frozen = {"decode-0": first, "decode-1": second}[moved.worker]
        frozen.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):
                await reading
        finally:
            frozen.send_signal(signal.SIGCONT)
        assert moved.usage["completion_tokens"] == 120
        assert await server.metric("penstock_replays_total") == 1


async def test_nats_restarts_mid_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are lost meanwhile; the numbers tell, and the client reads the same text."""
    plan = NatsServerPlan(tmp_path, name="test")
    plan.write()
    for name, value in plan.environment.items():
        monkeypatch.setenv(name, value)
    server_process = await asyncio.create_subprocess_exec(*plan.argv, env=os.environ)
    nats = await plan.settings(server_process.pid)
    async with decode_process(nats, tmp_path, "decode-0", speed=2), edge(nats) as server:
        await server.ready(1)
        whole = Reader(server, BODY)
        await whole.read()
        moved = Reader(server, BODY)
        reading = asyncio.ensure_future(moved.read())
        await moved.until(20)
        server_process.kill()
        await server_process.wait()
        plan.write()
        server_process = await asyncio.create_subprocess_exec(*plan.argv, env=os.environ)
        async with asyncio.timeout(30):
            await reading
        assert (moved.text, moved.usage["completion_tokens"]) == (whole.text, 120)
        await server.idle()
    server_process.terminate()
    await server_process.wait()
