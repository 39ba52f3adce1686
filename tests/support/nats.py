"""A private NATS server for one test, on a free port; one that can be killed and started again at the same place."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from components.bus.server import NatsServerPlan
from components.graph.schema import Nats
from components.launch.child import start_fresh


@asynccontextmanager
async def nats_server(folder: Path, max_payload_bytes: int | None = None) -> AsyncIterator[Nats]:
    """Run a server in `folder`; its token is put into this process's environment for the duration.

    `max_payload_bytes` is the longest message it takes; None leaves what the plan says.
    """
    plan = NatsServerPlan(folder, name="test")
    plan.write()
    if max_payload_bytes is not None:
        config = folder / "nats.conf"
        config.write_text(re.sub(r"max_payload: \d+", f"max_payload: {max_payload_bytes}", config.read_text()))
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *plan.argv, env={**os.environ, **plan.environment}, stdout=log, stderr=log
        )
    before = os.environ.get("PENSTOCK_NATS_TOKEN")
    os.environ.update(plan.environment)
    try:
        yield await plan.settings(process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        if before is None:
            del os.environ["PENSTOCK_NATS_TOKEN"]
        else:
            os.environ["PENSTOCK_NATS_TOKEN"] = before


class RestartableNats:
    """A server that a test kills and starts again; what JetStream stored survives."""

    def __init__(self, folder: Path) -> None:
        self._plan = NatsServerPlan(folder, name="test")
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._before = os.environ.get("PENSTOCK_NATS_TOKEN")
        os.environ.update(self._plan.environment)
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        if self._before is None:
            del os.environ["PENSTOCK_NATS_TOKEN"]
        else:
            os.environ["PENSTOCK_NATS_TOKEN"] = self._before

    async def start(self) -> None:
        """Start it; the port stays the same from the first time on."""
        self._plan.write()
        child = await start_fresh(self._plan.argv, os.environ, self._folder / "log")
        assert isinstance(child, asyncio.subprocess.Process)
        self._process = child
        self.settings = await self._plan.settings(self._process.pid)

    async def kill(self) -> None:
        """End it without a word (SIGKILL)."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
