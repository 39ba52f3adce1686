"""A private NATS server for one test, on a free port."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from components.bus.server import NatsServerPlan
from components.graph.schema import Nats


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
