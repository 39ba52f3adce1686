"""What is started for an engine, by its role: an OpenAI server of its own, or a worker of a running graph. Pure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.graph.load import GraphError, load_graph
from components.graph.schema import ControllerSettings, Graph, Nats, VllmEngine
from components.model.folder import model_folder
from components.wire.errors import InvalidRequestError
from components.worker_controller.engine_args import with_defaults
from components.worker_controller.engine_request import EngineRequest

SERVER_MODULE = "components.worker_controller.engine_process"
EXECUTOR = "components.worker_controller.remote_executor.RemoteExecutor"


class Joined(NamedTuple):
    """A graph that engines may join.

    Attributes:
        file: where it stands, resolved, as its own processes read it.
        graph: what it says.
    """

    file: Path
    graph: Graph

    @property
    def nats(self) -> Nats:
        """How to reach its NATS server."""
        return Nats(url=self.graph.nats) if isinstance(self.graph.nats, str) else self.graph.nats


class GraphFileError(Exception):
    """A graph file that no engine can join; the text is one line."""


def read_graphs(files: Sequence[str]) -> dict[str, Joined]:
    """Return the graphs in `files`, by name.

    Raises:
        GraphFileError: one cannot be used.
    """
    found = {}
    for file in files:
        try:
            graph = load_graph(Path(file))
        except GraphError as error:
            raise GraphFileError(f"graph: {error}") from None
        if graph.nats == "embedded":
            raise GraphFileError(
                f"graph: {file} has its own NATS server; give the running graph's name to penstock controller"
            )
        found[graph.name] = Joined(Path(file).absolute(), graph)
    return found


def chosen_graph(request: EngineRequest, graphs: Mapping[str, Joined]) -> Joined:
    """Return the graph that an engine with a role is to join.

    Raises:
        InvalidRequestError: there is none, or it does not go with what is asked for.
    """
    only = next(iter(graphs)) if len(graphs) == 1 else ""
    joined = graphs.get(request.graph or only)
    if joined is None:
        known = ", ".join(graphs) or "none; start the controller with --graph"
        raise InvalidRequestError(f"graph: must name a graph the controller knows: {known}", param="graph")
    graph = joined.graph
    if request.model not in (None, graph.model, graph.model_name):
        raise InvalidRequestError(f"model: graph {graph.name} serves {graph.model_name}", param="model")
    if not isinstance(_engine_settings(request, graph), VllmEngine):
        raise InvalidRequestError(f"role: graph {graph.name} has no vLLM engines as {request.role} workers", param="role")
    return joined


def _engine_settings(request: EngineRequest, graph: Graph) -> Any:
    """Return how the graph's own workers of this role run their engines."""
    components = graph.components
    decode = components.decode.engine if components.decode else None
    if request.role == "decode":
        return decode
    return (components.prefill.engine or decode) if components.prefill else None


def worker_name(request: EngineRequest, graph: Graph) -> str:
    """Return the name in the graph of the worker that an engine becomes."""
    where = f"{graph.host}-" if graph.host else ""
    return f"{request.role}-{where}{request.engine_uuid}"


def worker_arguments(request: EngineRequest, joined: Joined) -> list[str]:
    """Return the arguments of the worker's process: the graph's own settings, with what was asked for on top."""
    settings = _engine_settings(request, joined.graph)
    engine = {"kind": "vllm", "kv_cache_gb": settings.kv_cache_gb, **settings.args, **request.args}
    engine["distributed_executor_backend"] = EXECUTOR
    override = f"components.{request.role}.engine={json.dumps(engine)}"
    return ["--graph", str(joined.file), "--name", worker_name(request, joined.graph), "--set", override]


def server_args(request: EngineRequest, settings: ControllerSettings, *, on_cpu: bool) -> dict[str, Any]:
    """Return vLLM's arguments for an OpenAI server; may look for the model on disk.

    Raises:
        ModelError: there is no such model.
    """
    model = request.model or ""
    folder = model_folder(model)
    where = folder if model == "demo" or Path(model).expanduser().is_dir() else model
    args = {"model": where, "served_model_name": [model], **request.args}
    return with_defaults(args, on_cpu=on_cpu, kv_cache_bytes=int(settings.kv_cache_gb * 2**30))
