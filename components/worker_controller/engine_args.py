"""Engine arguments as clients give them: which are refused or need consent, what suits a CPU. Imports no vLLM."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from components.engine.vllm_args import OURS, known_engine_args, mistaken_arg

OWN = frozenset(
    {
        *("distributed_executor_backend", "worker_cls", "nnodes", "node_rank", "master_addr", "master_port"),
        *("data_parallel_size", "data_parallel_rank", "data_parallel_start_rank", "data_parallel_size_local"),
        *("data_parallel_address", "data_parallel_rpc_port", "data_parallel_backend", "data_parallel_hybrid_lb"),
        *("data_parallel_external_lb", "enable_elastic_ep", "device_ids", "numa_bind", "prefill_context_parallel_size"),
    }
)
"""Arguments that say where an engine runs, which is the controller's business."""

LOADS_CODE = frozenset(
    {
        *("trust_remote_code", "worker_extension_cls", "scheduler_cls", "logits_processors"),
        *("tool_parser_plugin", "reasoning_parser_plugin", "io_processor_plugin", "model_loader_extra_config"),
        *("kv_transfer_config", "ec_transfer_config", "compilation_config", "speculative_config", "additional_config"),
        *(
            "load_format",
            "allowed_local_media_path",
            "download_dir",
            "hf_config_path",
            "quantization_config",
            "profiler_config",
        ),
    }
)
"""Arguments by which a request could have code imported or files outside the model read or written."""

_HARMLESS = {"load_format": frozenset({"auto", "safetensors", "dummy", "pt", "hf"}), "trust_remote_code": frozenset({False})}
"""Values of those that do no such thing."""


class RefusedArgsError(Exception):
    """The arguments cannot be used; the text is one line and names the one at fault."""


class ConsentError(Exception):
    """The arguments need the owner's consent, which was not given."""


def checked(args: Mapping[str, Any], *, consent: bool) -> None:
    """Refuse `args` that no engine of the pool may have.

    Args:
        args: by vLLM's Python names.
        consent: whether the server was started with ``--trust-remote-code``.

    Raises:
        RefusedArgsError: one is unknown, of the wrong type, or the controller's own.
        ConsentError: one needs consent.
    """
    for name in args:
        if name in OWN:
            raise RefusedArgsError(f"{name}: is the controller's own business")
    plain = {name: value for name, value in args.items() if name not in {"model", "block_size", "served_model_name"}}
    if mistake := mistaken_arg(plain):
        raise RefusedArgsError(mistake)
    for name in args.keys() & LOADS_CODE:
        harmless = _HARMLESS.get(name, frozenset())
        if not consent and args[name] is not None and not (isinstance(args[name], str | bool) and args[name] in harmless):
            raise ConsentError(f"{name}: could load code, so the controller must have been started with --trust-remote-code")


def with_defaults(args: Mapping[str, Any], *, on_cpu: bool, kv_cache_bytes: int) -> dict[str, Any]:
    """Return `args` with what an engine on this kind of machine cannot do without.

    On a CPU, vLLM would take nine tenths of the machine's memory for one rank, and compile for minutes.
    """
    cpu = {"enforce_eager": True, "kv_cache_memory_bytes": kv_cache_bytes} if on_cpu else {}
    return cpu | dict(args)


def command_line(args: Mapping[str, Any]) -> list[str]:
    """Return `args` as the words of ``vllm serve``'s command line."""
    return [word for name, value in args.items() for word in _words(f"--{name.replace('_', '-')}", value)]


def _words(flag: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, bool):
        yield flag if value else flag.replace("--", "--no-", 1)
    elif isinstance(value, dict):
        yield from (flag, json.dumps(value))
    elif isinstance(value, list):
        yield from (flag, *(json.dumps(each) if isinstance(each, dict) else str(each) for each in value))
    else:
        yield f"{flag}={value}"


def known_args() -> frozenset[str]:
    """Return the names a request may use; empty when vLLM is not installed."""
    return (known_engine_args() or frozenset()) | OURS
