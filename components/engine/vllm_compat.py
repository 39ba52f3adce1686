"""vLLM 0.26 to 0.32 as one: what differs between its versions, and what is not part of its public interface.

Imports vLLM, which takes seconds in a process that was not started warm.
"""

import dataclasses
import multiprocessing
import typing
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec
import psutil
import vllm
import vllm.exceptions as vllm_exceptions
from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVEventBatch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase

from components.engine.kv_shelves import EngineHash
from components.engine.kv_translate import EngineCleared, EngineEvent, EngineRemoved, EngineStored
from components.engine.protocol import EngineInfo
from components.engine.vllm_convert import to_engine_output, to_sampling_params
from components.wire.kv import Tier
from components.wire.messages import GenerateRequest, Sampling

__all__ = ["EngineDeadError", "EngineGenerateError", "to_engine_output"]

_FIRST_PROMPT_TOKENS = 256
_CLIENT_ERROR = getattr(vllm_exceptions, "VLLMClientError", ValueError)  # since 0.3x no ValueError any more

REFUSALS: tuple[type[Exception], ...] = (_CLIENT_ERROR, ValueError, TypeError)
"""What vLLM raises for a request that it will not take."""

QueueFullError: type[Exception] = getattr(vllm_exceptions, "GracefulHTTPError", OverflowError)
"""What vLLM raises when its queue is as long as `max_num_queued_reqs` allows, which 0.26 does not know."""

START_FAILURES: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError),
    *(TypeError, ValueError, _CLIENT_ERROR),
)
"""What vLLM is known to raise when it cannot start."""

_WHOLE_PROMPT = (None, "unknown", "full_attention", "mla_attention", "sink_full_attention")
"""Kinds of KV cache groups that keep a prompt's every block; other kinds keep only its end, or a state."""


@dataclasses.dataclass(slots=True)
class Stats:
    """What vLLM reported of its work; counters since the start."""

    running_requests: int = 0
    kv_usage: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def forget(self) -> None:
        """Count from 0 again."""
        self.running_requests = self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.kv_usage = 0.0


def engine_args(values: Mapping[str, Any]) -> AsyncEngineArgs:
    """Return vLLM's engine arguments; a map given for one of vLLM's config classes becomes that class.

    Raises:
        TypeError, ValueError: a value is wrong.
    """
    types = {field.name: field.type for field in dataclasses.fields(AsyncEngineArgs)}
    backend = values.get("distributed_executor_backend")
    if isinstance(backend, str) and "." in backend:  # of an executor named by its path, vLLM thinks that it has no pipelines
        values = {**values, "distributed_executor_backend": resolve_obj_by_qualname(backend)}
    return AsyncEngineArgs(**{name: _as_config(types.get(name), value) for name, value in values.items()})


def _as_config(hint: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    for option in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return option(**value)
    return value


def on_cpu() -> bool:
    """Return whether the installed vLLM computes on the CPU here."""
    return bool(current_platform.is_cpu())


async def compute_first_prompt(llm: AsyncLLM) -> None:
    """Compute one prompt of some length, and forget it.

    What is slow the first time is done before a client waits. And on a CPU with AMX, vLLM 0.32 dies (SIGILL) when its very
    first prompt is shorter than a few dozen tokens, in bfloat16: only oneDNN's product for longer ones asks Linux for
    the AMX registers.
    """
    tokens = min(_FIRST_PROMPT_TOKENS, llm.model_config.max_model_len - 1)
    prompt = tokens_input([1 + i % 64 for i in range(tokens)], cache_salt=None)
    async for _ in llm.generate(prompt, to_sampling_params(Sampling(max_tokens=1)), "first-prompt"):
        continue
    await llm.reset_prefix_cache()


def open_engine(arguments: AsyncEngineArgs, stats: Stats) -> AsyncLLM:
    """Start an engine and its processes, which keeps `stats` up to date; blocks until it can serve.

    The usage context is that of vLLM's own server, because some defaults depend on it.
    """
    context = UsageContext.OPENAI_API_SERVER
    return AsyncLLM.from_vllm_config(
        arguments.create_engine_config(usage_context=context),
        usage_context=context,
        stat_loggers=[_stat_logger(stats)],
        enable_log_requests=False,
    )


def describe(llm: AsyncLLM, *, tool_parser: bool, reasoning_parser: bool) -> EngineInfo:
    """Return what a started engine is."""
    cache = llm.vllm_config.cache_config
    return EngineInfo(
        version=f"vllm {vllm.__version__}",
        max_model_len=llm.model_config.max_model_len,
        block_size=cache.block_size,
        kv_blocks=cache.num_gpu_blocks,
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
    )


def vocabulary_size(llm: AsyncLLM) -> int:
    """Return how many token ids the model knows."""
    return int(llm.model_config.get_vocab_size())


def submit(
    llm: AsyncLLM, request: GenerateRequest, sampling: Sampling, reasoning: Mapping[str, Any]
) -> AsyncGenerator[Any, None]:
    """Return vLLM's stream of ``RequestOutput`` for `request`; nothing happens before its first step.

    The prompt goes in as vLLM's own renderer would hand it over, which spares a trip through a thread. `reasoning` is
    what `ParsedOutput.reasoning` returns.

    Raises:
        ValueError, TypeError: vLLM refuses a sampling parameter.
    """
    prompt = tokens_input(request.token_ids, cache_salt=request.cache_salt)
    traced = request.trace and llm.vllm_config.observability_config.otlp_traces_endpoint  # vLLM's own spans, where asked for
    headers = {"traceparent": request.trace} if traced else None
    stream: AsyncGenerator[Any, None] = llm.generate(
        prompt, to_sampling_params(sampling), request.request_id, trace_headers=headers, **reasoning
    )
    return stream


def death(llm: AsyncLLM) -> str | None:
    """Return why the engine is dead, None while it lives."""
    if not llm.errored:
        return None
    manager = llm.engine_core.resources.engine_manager
    gone = manager.finished_procs() if manager is not None else {}
    codes = ", ".join(f"{name} exited with {code}" for name, code in gone.items())
    return f"vLLM's engine died{f': {codes}' if codes else ''}"


def give_up_requests(llm: AsyncLLM) -> None:
    """End all running requests with `EngineDeadError`, and read no more from the core."""
    if llm.output_handler is not None:
        llm.output_handler.cancel()
    llm.output_processor.propagate_error(EngineDeadError())


def close_engine(llm: AsyncLLM) -> None:
    """End the engine and its processes; blocks for up to five seconds."""
    llm.shutdown()


def kill_inner_processes() -> None:
    """Kill the inner processes of an engine that is just starting, which makes its start fail."""
    for child in multiprocessing.active_children():
        if child.pid is None:
            continue
        try:
            inner = psutil.Process(child.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        child.kill()
        for process in inner:
            process.kill()


def kv_events(payload: bytes | memoryview, cpu_tier: Tier) -> list[EngineEvent]:
    """Return the events in one of vLLM's batches, without those of groups that keep only a part of a prompt.

    Args:
        payload: MessagePack of a ``KVEventBatch``.
        cpu_tier: what its medium ``CPU`` is: this worker's own memory, or that of an LMCache server.

    Raises:
        msgspec.DecodeError: it is none.
    """
    tiers = {None: Tier.DEVICE, "GPU": Tier.DEVICE, "CPU": cpu_tier, "FS": Tier.DISK, "STORAGE": Tier.DISK}
    events: list[EngineEvent] = []
    for event in _kv_batches.decode(payload).events:
        if isinstance(event, BlockStored):
            if event.kv_cache_spec_kind in _WHOLE_PROMPT and (stored := _stored(event, tiers)):
                events.append(stored)
        elif isinstance(event, BlockRemoved):
            tier = tiers.get(event.medium, Tier.SHARED)
            events.append(EngineRemoved(_names(event.block_hashes, tier), tier, event.group_idx or 0))
        else:
            events.append(EngineCleared())
    return events


_kv_batches = msgspec.msgpack.Decoder(KVEventBatch)


def _stored(event: BlockStored, tiers: Mapping[str | None, Tier]) -> EngineStored | None:
    """Return what can be reused by token ids alone: blocks up to the first that holds an image or a prompt's embeddings.

    A block's extra keys are the adapter's name, then images, the cache salt (first block of a prompt), embeddings' digests.
    """
    salt, usable = None, len(event.block_hashes)
    for index, all_keys in enumerate(event.extra_keys or ()):
        keys = list(all_keys or ())
        if keys and keys[0] == event.lora_name:
            del keys[0]
        if index == 0 and event.parent_block_hash is None and len(keys) == 1 and isinstance(keys[0], str):
            salt = keys.pop()
        if keys:
            usable = index
            break
    if not usable:
        return None
    whole, tier = usable == len(event.block_hashes), tiers.get(event.medium, Tier.SHARED)
    names, parent = _names(event.block_hashes, tier), event.parent_block_hash
    return EngineStored(
        names if whole else names[:usable],
        None if parent is None else _names([parent], tier)[0],
        event.token_ids if whole else event.token_ids[: usable * event.block_size],
        event.block_size,
        event.lora_name,
        salt,
        tier,
        event.group_idx or 0,
    )


def _names(hashes: list[EngineHash], tier: Tier) -> list[EngineHash]:
    """Return an event's hashes, LMCache's as their low 64 bits: vLLM tells no more by default."""
    if tier is not Tier.SHARED:
        return hashes
    return [int.from_bytes(each[-8:]) if isinstance(each, bytes) else each for each in hashes]


def _stat_logger(stats: Stats) -> Callable[[Any, int], StatLoggerBase]:
    """Return a factory of vLLM stat loggers that keep `stats` up to date."""

    class StatsKeeper(StatLoggerBase):  # type: ignore[misc] # vLLM is untyped here
        """Called by vLLM after each step of its engine, on the event loop."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_args: Any, **_kwargs: Any) -> None:
            if scheduler_stats is not None:
                stats.running_requests = scheduler_stats.num_running_reqs
                stats.kv_usage = scheduler_stats.kv_cache_usage
            if iteration_stats is not None:
                stats.prompt_tokens += iteration_stats.prompt_token_stats.total
                stats.cached_tokens += iteration_stats.prompt_token_stats.cached_tokens
                stats.output_tokens += iteration_stats.num_generation_tokens

        def log_engine_initialized(self) -> None:
            pass

    return StatsKeeper
