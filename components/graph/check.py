"""Values of a graph that have the right type and make no sense. Pure; what depends on the machine is `launch.plan`'s."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from components.graph.schema import Graph, JobsSettings, LMCache, Nats, Settings, SimEngine, Telemetry, VllmEngine

MAX_REPLICAS = 4096  # of one component; more are a slip of the finger
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOB_CONFIG = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
_NATS_SCHEMES = ("nats", "tls", "ws", "wss")


def mistakes(graph: Graph) -> Iterator[str]:
    """Yield what is wrong with `graph`, each as ``path: what is wrong``."""
    yield from (f"{path}: must be a finite number, not {value}" for path, value in _not_finite(msgspec.to_builtins(graph)))
    if not _NAME.fullmatch(graph.name):
        yield f"name: must be 1 to 64 letters, digits, `-` and `_`, not {graph.name[:100]!r}"
    if graph.served_model_name == "":
        yield "served_model_name: must not be empty; leave it out to use the model's name"
    yield from _replicas(graph)
    yield from _nats(graph.nats)
    if (silence_s := graph.supervision.silence_timeout_s) <= 1:
        yield f"supervision.silence_timeout_s: must be more than 1, statuses come so often, not {silence_s}"
    yield from _telemetry(graph.telemetry)
    yield from _disaggregation(graph)
    if graph.components.jobs is not None:
        yield from _jobs(graph.components.jobs)
    for component, settings in (("decode", graph.components.decode), ("prefill", graph.components.prefill)):
        if settings is None or settings.engine is None:
            continue
        path = f"components.{component}"
        if isinstance(settings.engine, SimEngine):
            if settings.gpus is not None:
                yield f"{path}.gpus: is for vLLM; the sim engine uses none"
            yield from _sim(settings.engine, graph.kv.block_size, f"{path}.engine")
        else:
            yield from _vllm(settings.engine, f"{path}.engine")


def _telemetry(telemetry: Telemetry) -> Iterator[str]:
    if (endpoint := telemetry.otlp_endpoint) and not re.match(r"https?://[^/\s]+", endpoint):
        yield f"telemetry.otlp_endpoint: must be a URL such as http://127.0.0.1:4318, not {endpoint[:100]!r}"
    if not 0 <= telemetry.trace_ratio <= 1:
        yield f"telemetry.trace_ratio: must be 0 to 1, not {telemetry.trace_ratio}"


def _disaggregation(graph: Graph) -> Iterator[str]:
    lmcache, prefill, decode = graph.lmcache, graph.components.prefill, graph.components.decode
    if lmcache is not None:
        yield from _lmcache(lmcache, graph.kv.block_size)
    if decode is not None:
        yield from _at_least(decode.disagg, "components.decode.disagg", max_local_prefill_tokens=0, max_queue_depth=1)
        yield from _more_than_0(decode.disagg, "components.decode.disagg", "max_queue_age_s", "max_wait_s")
    if prefill is None:
        return
    if lmcache is None:
        yield "lmcache: is missing; prefill workers hand KV to decode workers through it (`lmcache: {}`)"
    kinds = {type(settings.engine) for settings in (decode, prefill) if settings is not None and settings.engine is not None}
    if len(kinds) > 1:
        yield "components.prefill.engine.kind: must be that of the decode workers, or they cannot share KV"
    path = "components.prefill"
    if decode is not None and prefill.engine is not None and _ranks(prefill.engine) != _ranks(decode.engine):
        yield f"{path}.engine.tensor_parallel_size: must be the decode workers'; LMCache keeps KV of different sizes apart"
    yield from _at_least(prefill, path, max_batched_tokens=1, max_deliveries=1, max_queue_jobs=1)
    yield from _more_than_0(prefill, path, "ack_wait_s", "drain_timeout_s")


def _ranks(engine: VllmEngine | SimEngine) -> tuple[Any, ...]:
    sizes = ("tensor_parallel_size", "pipeline_parallel_size")
    return tuple(engine.args.get(name, 1) for name in sizes) if isinstance(engine, VllmEngine) else ()


def _lmcache(lmcache: LMCache, block_size: int) -> Iterator[str]:
    if lmcache.chunk_tokens < 1 or lmcache.chunk_tokens % block_size:
        yield f"lmcache.chunk_tokens: must be a multiple of kv.block_size {block_size}, not {lmcache.chunk_tokens}"
    for name in ("port", "http_port"):
        if not 0 < getattr(lmcache, name) < 65536:
            yield f"lmcache.{name}: must be 1 to 65535, not {getattr(lmcache, name)}"
    if not 0 <= lmcache.coordinator_port < 65536:
        yield f"lmcache.coordinator_port: must be 0 to 65535, not {lmcache.coordinator_port}"
    if lmcache.port == lmcache.http_port:
        yield f"lmcache.http_port: must differ from lmcache.port, {lmcache.port}"
    yield from _more_than_0(lmcache, "lmcache", "l1_gb", "timeout_s")
    for index, adapter in enumerate(lmcache.l2):
        if not isinstance(adapter.get("type"), str):
            yield f"lmcache.l2[{index}]: needs a `type`, such as fs or resp"


def _at_least(settings: Settings, path: str, **least: int) -> Iterator[str]:
    for name, value in least.items():
        if getattr(settings, name) < value:
            yield f"{path}.{name}: must be at least {value}, not {getattr(settings, name)}"


def _more_than_0(settings: Settings, path: str, *names: str) -> Iterator[str]:
    for name in names:
        if getattr(settings, name) <= 0:
            yield f"{path}.{name}: must be more than 0, not {getattr(settings, name)}"


def _not_finite(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield the path and value of every NaN and infinity in plain data."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    inner: Mapping[Any, Any] = value if isinstance(value, Mapping) else {}
    if isinstance(value, list):
        inner = dict(enumerate(value))
    for key, item in inner.items():
        yield from _not_finite(item, f"{path}.{key}" if path else str(key))


def _replicas(graph: Graph) -> Iterator[str]:
    for name in graph.components.__struct_fields__:
        settings = getattr(graph.components, name)
        if settings is not None and settings.replicas > MAX_REPLICAS:
            yield f"components.{name}.replicas: must be at most {MAX_REPLICAS}, not {settings.replicas}"


def _jobs(jobs: JobsSettings) -> Iterator[str]:
    path = "components.jobs"
    if jobs.replicas > 1:
        yield f"{path}.replicas: must be 0 or 1, not {jobs.replicas}; one queue gives out all jobs"
    if not 0 < jobs.http_port < 65536:
        yield f"{path}.http_port: must be 1 to 65535, not {jobs.http_port}"
    if not 0 <= jobs.workers <= MAX_REPLICAS:
        yield f"{path}.workers: must be 0 to {MAX_REPLICAS}, not {jobs.workers}"
    if not _JOB_CONFIG.fullmatch(jobs.config_id):
        yield f"{path}.config_id: must be 1 to 128 letters, digits and `-_.:@`, not {jobs.config_id[:100]!r}"
    for name in ("lease_s", "hold_timeout_s", "keep_s"):
        if getattr(jobs, name) < 1:
            yield f"{path}.{name}: must be at least 1 second, not {getattr(jobs, name)}"
    yield from _at_least(jobs, path, worker_capacity=1, max_attempts=1, max_jobs=1)
    yield from _at_least(jobs, path, max_body_bytes=1, max_queue_bytes=1, max_kept_bytes=1)


def _nats(nats: str | Nats) -> Iterator[str]:
    path, urls = ("nats", nats) if isinstance(nats, str) else ("nats.url", nats.url)
    if urls == "embedded" or "@" in urls or (path == "nats" and "://" not in urls):
        return  # the last two are refused elsewhere, a secret without repeating it
    schemes = ", ".join(f"{scheme}://" for scheme in _NATS_SCHEMES)
    for url in map(str.strip, urls.split(",")):
        if not _is_nats_url(url):
            yield f"{path}: must be host:port after one of {schemes}, not {url!r}"


def _is_nats_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in _NATS_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _sim(engine: SimEngine, block_size: int, path: str) -> Iterator[str]:
    if engine.speed <= 0:
        yield f"{path}.speed: must be more than 0, not {engine.speed}"
    for name in ("max_model_len", "kv_blocks", "max_running_requests", "max_batched_tokens"):
        if getattr(engine, name) < 1:
            yield f"{path}.{name}: must be at least 1, not {getattr(engine, name)}"
    held = engine.kv_blocks * block_size
    if held < engine.max_model_len:
        yield (
            f"{path}.kv_blocks: {engine.kv_blocks} blocks of {block_size} tokens hold {held}, "
            f"less than one request of max_model_len {engine.max_model_len}"
        )


def _vllm(engine: VllmEngine, path: str) -> Iterator[str]:
    longest = engine.args.get("max_model_len")
    if isinstance(longest, int) and longest < 1 and longest != -1:  # -1: vLLM takes what fits into memory
        yield f"{path}.max_model_len: must be at least 1, or -1 for what fits, not {longest}"
    if engine.kv_cache_gb <= 0:
        yield f"{path}.kv_cache_gb: must be more than 0, not {engine.kv_cache_gb}"
