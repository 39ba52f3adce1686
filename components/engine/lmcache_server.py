"""LMCache's multi-process server, unmodified, in a process beside this one, watched through its HTTP port.

Where this process was started warm, so is the server. Source: LMCache's ``cli`` and ``v1/multiprocess/http_server.py``.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from components.engine.lmcache_config import server_arguments
from components.engine.protocol import EngineStartError
from components.graph.schema import LMCache
from components.wire.messages import MetricFamily, MetricSample

_POLL_S = 0.1
_LOOK_S = 1.0
_ANSWER_TIMEOUT_S = 2.0
_SILENT_S = 10.0
_STOP_TIMEOUT_S = 5.0


class LMCacheServer:
    """One server.

    Args:
        settings: of the graph.
        name: what it calls itself.
    """

    def __init__(self, settings: LMCache, name: str) -> None:
        self._settings = settings
        self._name = name
        self._process: multiprocessing.process.BaseProcess | None = None
        self._session: aiohttp.ClientSession | None = None
        self._families: list[MetricFamily] = []

    async def start(self, progress: Callable[[str], None]) -> str:
        """Start the process and wait until it answers; see `CacheServer.start`."""
        progress("importing LMCache")
        process = multiprocessing.get_context("spawn").Process(target=_run, args=(self._settings, self._name), daemon=True)
        await asyncio.to_thread(process.start)
        self._process = process
        self._session = aiohttp.ClientSession(
            f"http://{self._settings.host}:{self._settings.http_port}",
            timeout=aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S),
        )
        while not await self._healthy():
            if not process.is_alive():
                raise EngineStartError(f"the LMCache server exited with {process.exitcode}; its log says why")
            await asyncio.sleep(_POLL_S)
        return f"lmcache {importlib.metadata.version('lmcache')}"

    def metrics(self) -> list[MetricFamily]:
        """Return the server's own metrics, a second old; see `CacheServer.metrics`."""
        return self._families

    async def failed(self) -> str:
        """Watch the server until it dies or falls silent; see `CacheServer.failed`."""
        answered_s = time.monotonic()
        while self._process is not None and self._process.is_alive():
            if families := await self._scrape():
                self._families, answered_s = families, time.monotonic()
            elif time.monotonic() - answered_s > _SILENT_S:
                return f"the LMCache server has not answered for {_SILENT_S:.0f} s"
            await asyncio.sleep(_LOOK_S)
        return f"the LMCache server exited with {self._process.exitcode if self._process else None}"

    async def stop(self) -> None:
        """End the server; see `CacheServer.stop`."""
        if self._session is not None:
            await self._session.close()
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        await asyncio.to_thread(process.join, _STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            await asyncio.to_thread(process.join)

    async def _healthy(self) -> bool:
        return await self._get("/healthcheck") is not None

    async def _scrape(self) -> list[MetricFamily]:
        return _families(await self._get("/metrics") or "")

    async def _get(self, path: str) -> str | None:
        """Return what the server answers, None when it does not."""
        if self._session is None:
            return None
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.get(path) as response:
                if response.status == 200:
                    return await response.text()
        return None


def _families(text: str) -> list[MetricFamily]:
    """Return what a Prometheus page says."""
    with contextlib.suppress(ValueError):
        return [
            MetricFamily(
                family.name,
                family.type,
                family.documentation,
                [MetricSample(sample.name, dict(sample.labels), sample.value) for sample in family.samples],
            )
            for family in text_string_to_metric_families(text)
        ]
    return []


def _run(settings: LMCache, name: str) -> None:
    """Be the server: what ``lmcache server …`` does on a command line."""
    for variable, value in {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1", "LMCACHE_DISABLE_BANNER": "1"}.items():
        os.environ.setdefault(variable, value)
    from lmcache.cli.main import main
    from lmcache.v1.multiprocess.config import MPServerConfig
    from vllm.platforms import current_platform

    logging.getLogger("uvicorn.access").addFilter(lambda _: False)  # we look once a second
    silence = hasattr(MPServerConfig, "kv_event_log_size")  # since 0.5.4 or later, not in 0.5.3
    arguments = server_arguments(settings, name, on_cpu=current_platform.is_cpu(), can_silence_events=silence)
    sys.argv = ["lmcache", *arguments]
    main()
