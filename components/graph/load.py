"""Reading a graph: YAML file, then ``--set path=value`` overrides, then checks that need no machine.

Knows nothing of devices, ports or processes (see `components.launch.plan`). Every mistake becomes one `GraphError` whose
text is one line with the path of the setting at fault.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from components.graph.check import mistakes
from components.graph.explain import explain
from components.graph.schema import Disagg, Graph, Nats, RouterSettings, Settings, VllmEngine
from components.graph.yaml_text import YamlTextError, read_yaml


class GraphError(Exception):
    """A graph that cannot be used; the text is one line, with the path of the setting at fault."""


def load_graph(path: Path, overrides: Sequence[str] = ()) -> Graph:
    """Return the graph in the YAML file `path`, with ``--set`` style `overrides` (``"decode.replicas=4"``) applied.

    Raises:
        GraphError: the file cannot be read, or a setting is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GraphError(f"{path}: cannot be read: {error}") from error
    try:
        raw = read_yaml(text)
    except YamlTextError as error:
        raise GraphError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise GraphError(f"{path}: a graph is a map of settings, this is {_kind(raw)}")
    raw.setdefault("name", path.stem)
    try:
        return graph_from_raw(raw, overrides)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from error


def graph_from_raw(raw: dict[str, Any], overrides: Sequence[str] = ()) -> Graph:
    """Return the graph described by plain data; as `load_graph`.

    Raises:
        GraphError: a setting is wrong.
    """
    for override in overrides:
        _apply_override(raw, override)
    _collect_engine_args(raw)
    try:
        graph = msgspec.convert(raw, Graph)
        _check(graph)
    except msgspec.ValidationError as error:
        raise GraphError(explain(error)) from error
    except RecursionError as error:
        raise GraphError("a setting holds itself, or is nested too deeply") from error
    return graph


def change_disagg(rules: Disagg, changes: Mapping[str, Any]) -> Disagg:
    """Return `rules` with `changes`, settings under ``components.decode.disagg``, held to all that a graph is held to.

    Raises:
        GraphError: a name or a value is wrong.
    """
    disagg = msgspec.to_builtins(rules) | dict(changes)
    decode = graph_from_raw({"model": "demo", "components": {"decode": {"disagg": disagg}}}).components.decode
    return rules if decode is None else decode.disagg


def dump_graph(graph: Graph) -> str:
    """Return `graph` as YAML that `load_graph` reads back unchanged."""
    return yaml.safe_dump(msgspec.to_builtins(graph), sort_keys=False)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one ``path=value``; a path may leave out the leading ``components.``. The value is read as YAML."""
    path, equals, value = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise GraphError(f"--set {override}: expected path=value, such as decode.replicas=4")
    components = {field.name for field in msgspec.structs.fields(_components_type())}
    if keys[0] in components:
        keys.insert(0, "components")
    where = raw
    for key in keys[:-1]:
        if where.get(key) is None:
            where[key] = {}
        where = where[key]
        if not isinstance(where, dict):
            raise GraphError(f"--set {override}: {key} is not a map")
    try:
        where[keys[-1]] = read_yaml(value)
    except YamlTextError as error:
        raise GraphError(f"--set {override[:100]}: the value {error}") from error


def _components_type() -> type[Settings]:
    from components.graph.schema import Components

    return Components


def _collect_engine_args(raw: dict[str, Any]) -> None:
    """Move every key of a vLLM engine map that is not ours into its `args`."""
    components = raw.get("components")
    if not isinstance(components, dict):
        return
    ours = {field.name for field in msgspec.structs.fields(VllmEngine)} | {"kind"}
    for component in components.values():
        engine = component.get("engine") if isinstance(component, dict) else None
        if not isinstance(engine, dict) or engine.setdefault("kind", "vllm") != "vllm":
            continue
        args = engine.setdefault("args", {})
        if isinstance(args, dict):
            for key in [key for key in engine if key not in ours]:
                args[key] = engine.pop(key)


def _check(graph: Graph) -> None:
    """Refuse values that have the right type and make no sense."""
    for mistake in mistakes(graph):
        raise GraphError(mistake)
    _check_parts(graph)
    at_least_one: list[tuple[str, float]] = [
        ("kv.block_size", graph.kv.block_size),
        ("http.max_body_bytes", graph.http.max_body_bytes),
        ("http.max_inflight_requests", graph.http.max_inflight_requests),
        ("http.max_choices", graph.http.max_choices),
    ]
    if graph.components.router:
        at_least_one.append(("components.router.max_index_pairs", graph.components.router.max_index_pairs))
        _check_router(graph.components.router, graph.routers)
    for path, value in at_least_one:
        if value < 1:
            raise GraphError(f"{path}: must be at least 1, not {value}")
    for struct, prefix in ((graph.http, "http"), (graph.supervision, "supervision")):
        for field in msgspec.structs.fields(struct):
            value = getattr(struct, field.name)
            if field.name.endswith("_s") and value <= 0:
                raise GraphError(f"{prefix}.{field.name}: must be more than 0 seconds, not {value}")
    if not 0 < graph.http.port < 65536:
        raise GraphError(f"http.port: must be 1 to 65535, not {graph.http.port}")
    if bool(graph.http.tls_cert_file) != bool(graph.http.tls_key_file):
        raise GraphError("http.tls_cert_file: and http.tls_key_file are needed together")
    _check_nats(graph.nats)
    if not graph.model:
        raise GraphError("model: must not be empty")


def _check_parts(graph: Graph) -> None:
    """Refuse what only makes sense where other machines, met on a NATS server of the user's, run the rest of the graph."""
    if not _HOST.fullmatch(graph.host):
        raise GraphError(f"host: must be letters, digits, `_`, `.` and `-`, not {graph.host!r}")
    alone = graph.nats == "embedded"
    if alone and graph.host:
        raise GraphError("host: is for a graph on several machines, which needs a NATS server of yours; set nats")
    if alone and graph.components.decode is None and not graph.only_queues:
        raise GraphError("components.decode: is missing; a graph needs workers")
    replicas = {
        name: settings.replicas
        for name in graph.components.__struct_fields__
        if (settings := getattr(graph.components, name)) is not None
    }
    if graph.components.router and graph.components.router.embedded:
        del replicas["router"]  # as many as processors
    for name, count in replicas.items():
        if count < (1 if alone else 0):
            elsewhere = " (0 where other machines run them and nats is a server of yours)" if count == 0 else ""
            raise GraphError(f"components.{name}.replicas: must be at least {int(alone)}, not {count}{elsewhere}")
    if not sum(replicas.values()):
        raise GraphError("components: there is nothing to run here")


def _check_nats(nats: str | Nats) -> None:
    url = nats if isinstance(nats, str) else nats.url
    if "@" in url:  # the text does not repeat it
        raise GraphError(
            "nats: a URL holds no user, password or token; set PENSTOCK_NATS_USER and PENSTOCK_NATS_PASSWORD, or "
            "PENSTOCK_NATS_TOKEN, in the environment"
        )
    if isinstance(nats, str) and nats != "embedded" and "://" not in nats:
        raise GraphError(f"nats: must be `embedded`, a URL such as nats://host:4222, or a map, not {nats!r}")


def _check_router(router: RouterSettings, routers: int) -> None:
    for name in ("session_ttl_s", "temperature_s", "occupancy_weight", "decode_weight"):
        if getattr(router, name) < 0:
            raise GraphError(f"components.router.{name}: must not be negative, not {getattr(router, name)}")
    for name in ("timeout_s", "approximate_ttl_s"):
        if getattr(router, name) <= 0:
            raise GraphError(f"components.router.{name}: must be more than 0 seconds, not {getattr(router, name)}")
    last = router.http_port + max(routers, 1) - 1
    if not 0 < router.http_port <= last < 65536:
        raise GraphError(f"components.router.http_port: {router.http_port} to {last} must lie in 1 to 65535")


_HOST = re.compile(r"[A-Za-z0-9._-]*")


def _kind(value: object) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"
