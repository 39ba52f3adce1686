"""Which vLLM engine arguments exist, and what a graph may set them to. Imports no vLLM, so it answers in milliseconds."""

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

OURS = frozenset({"tool_call_parser", "tool_parser_plugin", "enable_auto_tool_choice"})
"""Arguments of vLLM's API server, not of its engine, that penstock carries out itself (see `vllm_parsers`)."""

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # never fork a process that has threads and sockets
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # FlashInfer compiles its sampler at the first use
}
"""What every vLLM process of ours has in its environment, unless the user says otherwise."""

IPC_FOLDER = "VLLM_RPC_BASE_PATH"
"""The variable that says where vLLM makes its UNIX sockets. It leaves some there, however it ends."""

_SET_ELSEWHERE = {"model": "model", "served_model_name": "served_model_name", "block_size": "kv.block_size"}


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((float, int), "a number"),
    "str": ((str,), "text"),
}
"""The types that are checked here: as vLLM's source spells them, what fits them, and their names for a person."""


def known_engine_args() -> frozenset[str] | None:
    """Return the names a vLLM engine map of a graph may hold; None when vLLM is not installed.

    They are the fields of vLLM's ``AsyncEngineArgs``, read from its source, and `OURS`.
    """
    fields = _fields()
    return None if fields is None else frozenset(fields) | OURS


@cache
def _fields() -> dict[str, str] | None:
    """Return the fields of vLLM's ``AsyncEngineArgs`` with their types as its source spells them."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    source = Path(next(iter(spec.submodule_search_locations))) / "engine" / "arg_utils.py"
    classes = {node.name: node for node in ast.parse(source.read_bytes()).body if isinstance(node, ast.ClassDef)}
    return {
        statement.target.id: ast.unparse(statement.annotation)
        for name in ("EngineArgs", "AsyncEngineArgs")
        for statement in classes[name].body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and not statement.target.id.startswith("_")
    }


def mistaken_arg(args: Mapping[str, Any], *, kv_events: bool = False, lmcache: bool = False) -> str | None:
    """Return what is wrong with a name or a value in `args`, as ``name: why``, or None.

    Args:
        args: of an engine.
        kv_events: its KV is told of, so how it tells is ours to say.
        lmcache: the graph has an LMCache server, so how the engine uses it is ours to say.
    """
    known = known_engine_args()
    for name, value in args.items():
        if name in _SET_ELSEWHERE:
            return f"{name}: is set for the whole graph, as `{_SET_ELSEWHERE[name]}`"
        if known is not None and name not in known:
            guess = difflib.get_close_matches(name, known, n=1)
            return f"{name}: vLLM has no such engine argument" + (f"; did you mean `{guess[0]}`?" if guess else "")
        if wanted := _unfit(name, value):
            return f"{name}: must be {wanted}, not {value!r}"
    return _taken(args, kv_events=kv_events, lmcache=lmcache)


def _taken(args: Mapping[str, Any], *, kv_events: bool, lmcache: bool) -> str | None:
    if lmcache and args.get("kv_transfer_config"):
        return "kv_transfer_config: is penstock's own in a graph with `lmcache`"
    if kv_events and args.get("kv_events_config"):
        return "kv_events_config: is penstock's own in a graph with a router"
    if kv_events and int(args.get("data_parallel_size") or 1) > 1:
        return "data_parallel_size: must be 1 in a graph with a router; use replicas"
    return None


def chosen_args(args: Mapping[str, Any], kv_cache_gb: float, *, on_cpu: bool) -> dict[str, Any]:
    """Return the arguments for vLLM's engine: what a graph says, and where it says nothing what suits a CPU."""
    cpu = {"dtype": "bfloat16", "enforce_eager": True, "kv_cache_memory_bytes": int(kv_cache_gb * 2**30)}
    return (cpu if on_cpu else {}) | {name: value for name, value in args.items() if name not in OURS}


def _unfit(name: str, value: Any) -> str | None:
    """Return what `value` should be, where the argument is of a simple type that it is not of."""
    kind = (_fields() or {}).get(name, "").removesuffix(" | None")
    if kind not in _TYPES or value is None:
        return None
    types, wanted = _TYPES[kind]
    fits = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
    return None if fits else wanted
