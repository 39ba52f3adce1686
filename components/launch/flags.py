"""A graph made from command-line flags, for ``penstock serve`` and ``dynamo-llm``. Pure."""

import math
from typing import Any

import msgspec
import yaml

from components.graph.load import GraphError, graph_from_raw
from components.graph.schema import Graph, Kv, LMCache, PrefillSettings


class ServeFlags(msgspec.Struct, frozen=True, kw_only=True):
    """What the flags say; defaults are those of the schema where a flag was not given.

    Attributes:
        name: of the graph; default: ``serve-<port>``.
        prefill_workers: 0 for a graph without; LMCache takes the second and third port after `http_port`.
        prefill_tp: GPUs a prefill worker; None: as many as a decode worker.
        conditional_disagg: long prompts alone go to prefill workers, and only while it pays; False: every prompt does.
        max_local_prefill_length: conditional: prompts with more uncached tokens are long.
        max_prefill_queue_size: conditional: with so many jobs waiting, decode workers prefill themselves.
        router: the policy of a router, at the port after `http_port`; None for a graph without one.
        engine_args: vLLM engine arguments.
        overrides: ``path=value`` settings, applied last.
    """

    model: str
    name: str | None = None
    served_model_name: str | None = None
    decode_workers: int = 1
    prefill_workers: int = 0
    prefill_tp: int | None = None
    conditional_disagg: bool = False
    max_local_prefill_length: int | None = None
    max_prefill_queue_size: int | None = None
    router: str | None = None
    engine: str = "vllm"
    host: str = "127.0.0.1"
    http_port: int = 8181
    block_size: int | None = None
    reuse_gpus: bool = False
    engine_args: dict[str, Any] = {}
    overrides: tuple[str, ...] = ()


def graph_from_flags(flags: ServeFlags) -> Graph:
    """Return the graph that `flags` describe.

    Raises:
        GraphError: a value makes no sense; the text names the setting.
    """
    raw: dict[str, Any] = {
        "name": flags.name or f"serve-{flags.http_port}",
        "model": flags.model,
        "http": {"host": flags.host, "port": flags.http_port},
        "components": {
            "processor": {},
            "decode": {"replicas": flags.decode_workers, "engine": {"kind": flags.engine, **flags.engine_args}},
        },
    }
    if flags.router is not None:
        raw["components"]["router"] = {
            "policy": flags.router.replace("-", "_"),
            "http_port": flags.http_port + 1,
        }
    _add_prefill(raw, flags)
    if flags.served_model_name:
        raw["served_model_name"] = flags.served_model_name
    if flags.block_size is not None:
        raw["kv"] = {"block_size": flags.block_size}
    if flags.reuse_gpus:
        raw["supervision"] = {"reuse_gpus": True}
    return graph_from_raw(raw, flags.overrides)


def _add_prefill(raw: dict[str, Any], flags: ServeFlags) -> None:
    """Add prefill workers and what they need, or refuse flags that would have no effect."""
    unused = {
        "--prefill-tp": (flags.prefill_tp, "--prefill-workers", flags.prefill_workers),
        "--conditional-disagg": (flags.conditional_disagg or None, "--prefill-workers", flags.prefill_workers),
        "--max-local-prefill-length": (flags.max_local_prefill_length, "--conditional-disagg", flags.conditional_disagg),
        "--max-prefill-queue-size": (flags.max_prefill_queue_size, "--conditional-disagg", flags.conditional_disagg),
    }
    for flag, (value, needed, there) in unused.items():
        if value is not None and not there:
            raise GraphError(f"{flag}: has no effect without {needed}")
    if not flags.prefill_workers:
        return
    components, block_size = raw["components"], flags.block_size or Kv().block_size
    components["prefill"] = {"replicas": flags.prefill_workers}
    if flags.prefill_tp is not None:
        tensor_parallel = {"tensor_parallel_size": flags.prefill_tp}
        components["prefill"]["engine"] = {"kind": flags.engine, **flags.engine_args, **tensor_parallel}
    components["decode"]["disagg"] = _disagg(flags)
    raw["lmcache"] = {
        "port": flags.http_port + 2,
        "http_port": flags.http_port + 3,
        "chunk_tokens": math.ceil(LMCache().chunk_tokens / block_size) * block_size,
    }


def _disagg(flags: ServeFlags) -> dict[str, Any]:
    if not flags.conditional_disagg:
        return {"max_local_prefill_tokens": 0, "max_queue_depth": PrefillSettings().max_queue_jobs, "always": True}
    given = {"max_local_prefill_tokens": flags.max_local_prefill_length, "max_queue_depth": flags.max_prefill_queue_size}
    return {name: value for name, value in given.items() if value is not None}


def engine_args_from(rest: list[str]) -> dict[str, Any]:
    """Return vLLM engine arguments from flags: ``--max-num-seqs 8`` is ``max_num_seqs: 8``, a flag alone is true.

    ``--no-x`` is ``x: false``; a repeated flag, or one with several values, becomes a list. Values are read as YAML.

    Raises:
        ValueError: an argument is no flag.
    """
    arguments: dict[str, Any] = {}
    name = ""
    for word in rest:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if not equals and name.startswith("no_"):
                name = name[3:]
                arguments[name] = False
            else:
                arguments[name] = _value(value) if equals else True
        elif not name:
            raise ValueError(f"unexpected argument {word}")
        elif arguments[name] is True:
            arguments[name] = _value(word)
        else:
            before = arguments[name]
            arguments[name] = [*before, _value(word)] if isinstance(before, list) else [before, _value(word)]
    return arguments


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def without_option(argv: list[str], option: str) -> list[str]:
    """Return the command line `argv` without every ``--option value`` and ``--option=value``."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == option:
            next(words, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept
