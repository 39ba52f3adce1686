"""A job worker's settings, from the environment, under the names of the document. Pure."""

import math
import os
import shlex
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

REQUIRED = ("CASOLA_WS_URL", "CASOLA_CONFIG_ID", "VLLM_MODEL")


class WorkerSettingsError(ValueError):
    """A variable is missing or makes no sense; the text names it."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a job worker needs to know.

    Attributes:
        ws_url: of the queue, without ``/ws``.
        config_id: the jobs it takes.
        model: what the engine serves.
        api_url: where heartbeats go; None sends none.
        api_token: shown to the queue and to the heartbeat API.
        worker_id: its name there.
        queue_id: told in heartbeats.
        heartbeat_interval_s: time between two.
        max_jobs: at a time.
        lease_s: how long the queue waits for a sign of life.
        renew_after_s: when to give one.
        grace_s: how long running jobs may go on when the worker is told to stop.
        engine_url: of the OpenAI endpoint, without ``/v1``.
        engine_key: shown to it.
        ready_path: answers 200 once the engine is ready.
        startup_timeout_s: how long to wait for that.
        engine_args: for an engine that is started here.
        pause_above: no new jobs while more requests than this wait in the engine.
        idle_timeout_s: an engine silent for so long within an answer has failed.
        state_dir: results not yet acknowledged lie here.
    """

    ws_url: str
    config_id: str
    model: str
    worker_id: str
    api_url: str | None = None
    api_token: str | None = field(default=None, repr=False)
    queue_id: str = "vllm-queue"
    heartbeat_interval_s: float = 60.0
    max_jobs: int = 1
    lease_s: float = 30.0
    renew_after_s: float = 24.0
    grace_s: float = 5.0
    engine_url: str = "http://127.0.0.1:8000"
    engine_key: str | None = field(default=None, repr=False)
    ready_path: str = "/health"
    startup_timeout_s: float = 120.0
    engine_args: tuple[str, ...] = ()
    pause_above: int = 16
    idle_timeout_s: float = 300.0
    state_dir: Path = field(default_factory=lambda: _state_dir())  # defined below

    @property
    def queue_url(self) -> str:
        """The queue's address for HTTP."""
        return "http" + self.ws_url.removeprefix("ws")


def worker_settings(environment: Mapping[str, str] = os.environ) -> WorkerSettings:
    """Return the settings in `environment`.

    Raises:
        WorkerSettingsError: a required variable is missing, or a value makes no sense.
    """
    if missing := [name for name in REQUIRED if not environment.get(name, "").strip()]:
        raise WorkerSettingsError(f"{', '.join(missing)}: must be set")
    ws_url = environment["CASOLA_WS_URL"].strip().rstrip("/")
    parts = urlsplit(ws_url)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname:
        raise WorkerSettingsError("CASOLA_WS_URL: must be ws://HOST[:PORT] or wss://HOST[:PORT]")
    api_url = environment.get("CASOLA_API_URL", "").strip().rstrip("/") or None
    if api_url is not None and urlsplit(api_url).scheme not in {"http", "https"}:
        raise WorkerSettingsError("CASOLA_API_URL: must begin with http:// or https://")
    lease_s = _number(environment, "CASOLA_LEASE_SECONDS", 30.0)
    renew_after_s = _number(environment, "CASOLA_RENEW_LEASE_AFTER", 0.8 * lease_s)
    if renew_after_s >= lease_s:
        raise WorkerSettingsError(f"CASOLA_RENEW_LEASE_AFTER: must be less than the lease of {lease_s:g} s")
    worker_id = environment.get("CASOLA_INSTANCE_ID") or f"vast-{environment.get('CONTAINER_ID') or socket.gethostname()}"
    port = _whole(environment, "VLLM_PORT", 8000)
    if port > 65535:
        raise WorkerSettingsError(f"VLLM_PORT: must be 1 to 65535, not {port}")
    max_jobs = _whole(environment, "CASOLA_MAX_JOBS", 1)
    try:
        engine_args = tuple(shlex.split(environment.get("VLLM_EXTRA_ARGS", "")))
    except ValueError as error:
        raise WorkerSettingsError(f"VLLM_EXTRA_ARGS: {error}") from None
    state_dir = environment.get("CASOLA_STATE_DIR")
    return WorkerSettings(
        ws_url=ws_url,
        config_id=environment["CASOLA_CONFIG_ID"].strip(),
        model=environment["VLLM_MODEL"].strip(),
        worker_id=worker_id,
        api_url=api_url,
        api_token=environment.get("CASOLA_API_TOKEN") or None,
        queue_id=environment.get("CASOLA_QUEUE_ID") or "vllm-queue",
        heartbeat_interval_s=_number(environment, "CASOLA_HEARTBEAT_INTERVAL", 60.0),
        max_jobs=max_jobs,
        lease_s=lease_s,
        renew_after_s=renew_after_s,
        grace_s=_number(environment, "CASOLA_SHUTDOWN_GRACE_PERIOD", 5.0, least=0.0),
        engine_url=f"http://{environment.get('VLLM_HOST') or '127.0.0.1'}:{port}",
        engine_key=environment.get("VLLM_API_KEY") or None,
        ready_path=environment.get("CASOLA_ENGINE_READY_PATH") or "/health",
        startup_timeout_s=_number(environment, "VLLM_STARTUP_TIMEOUT", 120.0),
        engine_args=engine_args,
        pause_above=_whole(environment, "CASOLA_PAUSE_ABOVE_WAITING", max(16, 2 * max_jobs)),
        state_dir=Path(state_dir) if state_dir else _state_dir(),
    )


def _number(environment: Mapping[str, str], name: str, default: float, least: float = 1e-3) -> float:
    text = environment.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise WorkerSettingsError(f"{name}: must be a number of at least {least:g}, not {text[:50]!r}")
    return value


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if text and not (text.isdecimal() and 0 < int(text) < 10**6):
        raise WorkerSettingsError(f"{name}: must be a whole number of at least 1, not {text[:50]!r}")
    return int(text) if text else default


def _state_dir() -> Path:
    """Return where a worker keeps what the queue has not acknowledged, if it is not told."""
    return Path(tempfile.gettempdir()) / f"penstock-job-worker-{os.getuid()}"
