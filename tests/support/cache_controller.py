"""A cache controller inside the test's own event loop, on free ports."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from components.cache_controller.process import run
from components.graph.schema import CacheController
from tests.support.edge import free_port

EXAMPLE = Path(__file__).parents[2] / "examples" / "lmcache" / "example.yaml"


@dataclass
class Api:
    """A running controller.

    Attributes:
        settings: of it.
        http: a client.
    """

    settings: CacheController
    http: aiohttp.ClientSession

    async def post(self, path: str, status: int = 200, **body: Any) -> Any:
        """Call, and return the answer."""
        return await self.post_raw(path, body, status)

    async def post_raw(self, path: str, body: Any, status: int = 200) -> Any:
        """Call with any body."""
        async with self.http.post(f"http://127.0.0.1:{self.settings.port}{path}", json=body) as answer:
            text = await answer.text()
            assert answer.status == status, text
            return await answer.json()

    async def get(self, path: str) -> Any:
        """Return what a GET answers: JSON, or text."""
        async with self.http.get(f"http://127.0.0.1:{self.settings.port}{path}") as answer:
            assert answer.status == 200
            return await (answer.json() if answer.content_type == "application/json" else answer.text())

    async def workers(self, instance_id: str = "all", worker_ids: list[int] | None = None) -> list[dict[str, Any]]:
        """Return /query_worker_info's list."""
        body: dict[str, Any] = {"instance_id": instance_id} | ({} if worker_ids is None else {"worker_ids": worker_ids})
        answer = await self.post_raw("/query_worker_info", body)
        assert set(answer) == {"event_id", "worker_infos"}
        found: list[dict[str, Any]] = answer["worker_infos"]
        return found

    async def metric(self, name: str) -> float:
        """Return an unlabelled metric."""
        lines = (await self.get("/metrics")).splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"penstock_cache_controller_{name} ")))


@asynccontextmanager
async def controller(settings: CacheController | None = None, **changes: Any) -> AsyncIterator[Api]:
    """Run a controller; `settings` are those of a former one, for a restart."""
    if settings is None:
        ports = {name: free_port() for name in ("port", "monitor_port", "reply_port", "heartbeat_port")}
        settings = CacheController(**(ports | {"request_timeout_s": 5.0} | changes))
    ready, stopping = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(run(settings, ready, stopping))
    begun = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait([task, begun], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        async with aiohttp.ClientSession() as http:
            yield Api(settings, http)
    finally:
        begun.cancel()
        stopping.set()
        async with asyncio.timeout(10):
            await asyncio.wait([task])
    await task


def worker_settings(settings: CacheController, instance: str, **changes: Any) -> dict[str, Any]:
    """Return the shipped example's LMCache settings, for this controller and for tests that do not want to wait."""
    shipped: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    quick = {
        "full_sync_startup_delay_s": 0.0,
        "full_sync_status_poll_interval_s": 0.1,
        "worker_socket_recv_timeout_ms": 2000,
    }
    return (
        shipped
        | {
            "lmcache_instance_id": instance,
            "controller_pull_url": f"127.0.0.1:{settings.monitor_port}",
            "controller_reply_url": f"127.0.0.1:{settings.reply_port}",
            "lmcache_worker_ports": [free_port()],
            "lmcache_worker_heartbeat_delay_time": 0,
            "lmcache_worker_heartbeat_time": 1,
            "extra_config": quick,
        }
        | changes
    )


async def until(what: Callable[[], Awaitable[Any]], timeout_s: float = 30.0) -> float:
    """Wait until `what` answers something true, and return how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while not await what():
            await asyncio.sleep(0.01)
    return time.monotonic() - began
