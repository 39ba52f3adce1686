"""What the graph says, as LMCache takes it: its server's command line, and every engine's connector. Imports no LMCache."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from components.graph.schema import LMCache

_HEARTBEAT_S = 1.0
_KNOCK_S = 0.1
_REPORT_S = 0.05
_MISSED_BEATS = 5
_CHECKPOINT_S = 1.0


def server_arguments(
    settings: LMCache, name: str, report_to: str = "", *, on_cpu: bool, can_silence_events: bool
) -> list[str]:
    """Return the arguments of ``lmcache server``.

    Args:
        settings: of the graph.
        name: what it calls itself in its metrics.
        report_to: URL of a coordinator to which it tells each change of what it holds; empty: it tells nobody.
        on_cpu: engines compute on the CPU: they move KV themselves, as the server cannot reach into their memory.
        can_silence_events: this version can be told to report no events of its own. On a CPU it reports no stores, and keeps
            engines from reporting theirs; silenced, every engine reports what it stored.
    """
    words: list[Any] = ["server", "--instance-id", name, "--quiet"]
    words += ["--host", settings.host, "--port", settings.port]
    words += ["--http-host", settings.host, "--http-port", settings.http_port]
    words += ["--chunk-size", settings.chunk_tokens, "--l1-size-gb", settings.l1_gb]
    words += ["--eviction-policy", settings.eviction_policy]
    if on_cpu:
        words += ["--supported-transfer-mode", "engine_driven"]
        words += ["--kv-event-log-size", 0] if can_silence_events else []
    if report_to:
        words += ["--coordinator-url", report_to, "--coordinator-event-reporting"]
        words += ["--coordinator-advertise-ip", settings.host, "--coordinator-heartbeat-interval", _HEARTBEAT_S]
        words += ["--coordinator-event-flush-interval", _REPORT_S]
    for adapter in settings.l2:
        words += ["--l2-adapter", json.dumps(adapter)]
    for option, value in settings.args.items():
        words += _option(option.replace("_", "-"), value)
    return [str(word) for word in words]


def coordinator_arguments(settings: LMCache, checkpoint: Path | None) -> list[str]:
    """Return the arguments of ``lmcache coordinator``; it must cut prompts into chunks as its servers do.

    Args:
        settings: of the graph.
        checkpoint: where it keeps what it knows; servers tell it of changes only, so without it a new one knows nothing.
    """
    words: list[Any] = ["coordinator", "--quiet", "--host", settings.host, "--port", settings.coordinator_port]
    words += ["--chunk-size", settings.chunk_tokens]
    words += ["--instance-timeout", _MISSED_BEATS * _HEARTBEAT_S, "--health-check-interval", _HEARTBEAT_S]
    words += ["--checkpoint-path", checkpoint, "--checkpoint-interval", _CHECKPOINT_S] if checkpoint else []
    return [str(word) for word in words]


def _option(name: str, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    text = json.dumps(value) if isinstance(value, dict | list) else value
    return [f"--{name}", text]


def connector_config(settings: LMCache) -> dict[str, Any]:
    """Return vLLM's ``kv_transfer_config`` for an engine that shares its KV through the server.

    KV that cannot be loaded after all is computed again.
    """
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": connector_options(settings),
    }


def connector_options(settings: LMCache) -> dict[str, Any]:
    """Return what LMCache's side of an engine must know."""
    return {
        "lmcache.mp.host": f"tcp://{settings.host}",
        "lmcache.mp.port": settings.port,
        "lmcache.mp.mq_timeout": settings.timeout_s,
        "lmcache.mp.heartbeat_interval": _HEARTBEAT_S,
    }


async def server_is_up(settings: LMCache) -> None:
    """Return when something listens where the server shall; waits for ever."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(settings.host, settings.port)
            writer.close()
            return
        await asyncio.sleep(_KNOCK_S)
