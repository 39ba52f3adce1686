"""LMCache's multi-process server, or its coordinator, unmodified, in a process beside this one, watched over HTTP.

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
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from components.engine.lmcache_config import coordinator_arguments, server_arguments
from components.engine.protocol import EngineStartError
from components.graph.schema import LMCache
from components.wire.process import MetricFamily, MetricSample

_POLL_S = 0.1
_LOOK_S = 1.0
_ANSWER_TIMEOUT_S = 2.0
_SILENT_S = 10.0
_STOP_TIMEOUT_S = 5.0
_NICE = 5
"""Requests, which come before a coordinator has its imports, go first."""


@dataclass(frozen=True)
class _Service:
    """What a process of LMCache is.

    Attributes:
        kind: for a person.
        url: where it is watched.
        health_path: answers 200 when it is well.
        run: is it, in a process of its own.
        arguments: of `run`.
    """

    kind: str
    url: str
    health_path: str
    run: Callable[..., None]
    arguments: tuple[object, ...]


def server(settings: LMCache, name: str, report_to: str) -> "LMCacheServer":
    """Return the server of engines, not yet started; it calls itself `name`, and reports to the coordinator at a URL."""
    url = f"http://{settings.host}:{settings.http_port}"
    return LMCacheServer(_Service("server", url, "/healthcheck", _run, (settings, name, report_to)))


def coordinator(settings: LMCache, checkpoint: Path | None) -> "LMCacheServer":
    """Return the coordinator of servers, not yet started; it keeps what it knows in the file `checkpoint`."""
    url = f"http://{settings.host}:{settings.coordinator_port}"
    return LMCacheServer(_Service("coordinator", url, "/healthz", _run_coordinator, (settings, checkpoint)))


class LMCacheServer:
    """One server, or one coordinator."""

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._process: multiprocessing.process.BaseProcess | None = None
        self._session: aiohttp.ClientSession | None = None
        self._families: list[MetricFamily] = []

    async def start(self, progress: Callable[[str], None]) -> str:
        """Start the process and wait until it answers; see `CacheServer.start`."""
        progress("importing LMCache")
        service = self._service
        process = multiprocessing.get_context("spawn").Process(target=service.run, args=service.arguments, daemon=True)
        await asyncio.to_thread(process.start)
        self._process = process
        self._session = aiohttp.ClientSession(service.url, timeout=aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S))
        while not await self._healthy():
            if not process.is_alive():
                raise EngineStartError(f"the LMCache {service.kind} exited with {process.exitcode}; its log says why")
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
                self._families = families
            if families or await self._healthy():  # LMCache 0.5.3's coordinator has no metrics
                answered_s = time.monotonic()
            elif time.monotonic() - answered_s > _SILENT_S:
                return f"the LMCache {self._service.kind} has not answered for {_SILENT_S:.0f} s"
            await asyncio.sleep(_LOOK_S)
        return f"the LMCache {self._service.kind} exited with {self._process.exitcode if self._process else None}"

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
        return await self._get(self._service.health_path) is not None

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


def _run(settings: LMCache, name: str, report_to: str) -> None:
    """Be the server."""
    from lmcache.v1.multiprocess.config import MPServerConfig
    from vllm.platforms import current_platform

    silence = hasattr(MPServerConfig, "kv_event_log_size")  # since 0.5.4 or later, not in 0.5.3
    on_cpu = current_platform.is_cpu()
    _run_lmcache(server_arguments(settings, name, report_to, on_cpu=on_cpu, can_silence_events=silence))


def _run_coordinator(settings: LMCache, checkpoint: Path | None) -> None:
    """Be the coordinator."""
    os.nice(_NICE)
    from lmcache.v1.mp_coordinator.config import MPCoordinatorConfig

    keeps = hasattr(MPCoordinatorConfig, "checkpoint_path")  # not in 0.5.3
    _run_lmcache(coordinator_arguments(settings, checkpoint if keeps else None))


def _run_lmcache(arguments: list[str]) -> None:
    """Be what ``lmcache …`` is on a command line."""
    for variable, value in {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1", "LMCACHE_DISABLE_BANNER": "1"}.items():
        os.environ.setdefault(variable, value)
    from lmcache.cli.main import main

    logging.getLogger("uvicorn.access").addFilter(lambda _: False)  # we look once a second
    sys.argv = ["lmcache", *arguments]
    main()
