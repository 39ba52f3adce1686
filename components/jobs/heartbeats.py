"""A worker's heartbeats to the status API. That API may be down: work goes on."""

import asyncio
import logging
from typing import Literal

import aiohttp

from components.jobs.worker_settings import WorkerSettings

log = logging.getLogger(__name__)

_TIMEOUT_S = 2.0

Status = Literal["starting", "running", "stopping", "error"]


class Heartbeats:
    """What one instance tells of itself."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._failing = False

    async def send(self, status: Status, error_message: str | None = None) -> None:
        """Tell `status` now, within two seconds or not at all."""
        settings = self._settings
        if settings.api_url is None:
            return
        body = {"instance_id": settings.worker_id, "queue_id": settings.queue_id, "status": status}
        if error_message is not None:
            body["error_message"] = error_message[:1000]
        headers = {"Authorization": f"Bearer {settings.api_token}"} if settings.api_token else {}
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(f"{settings.api_url}/api/heartbeats", json=body, headers=headers) as response,
            ):
                failure = "" if response.status < 400 else f"it answers {response.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failure = type(error).__name__
        if failure and not self._failing:
            log.warning("the heartbeat API fails; work goes on", extra={"url": settings.api_url, "error": failure})
        self._failing = bool(failure)

    async def run(self) -> None:
        """Tell ``running`` at once and then every `heartbeat_interval_s`, for ever."""
        while True:
            await self.send("running")
            await asyncio.sleep(self._settings.heartbeat_interval_s)
