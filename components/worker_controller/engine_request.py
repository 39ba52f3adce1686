"""The body of POST /engines: what a client may ask for, read and checked. Pure."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from components.wire.errors import InvalidRequestError, UnprocessableError
from components.worker_controller.engine_args import ConsentError, RefusedArgsError, checked

_UUID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$(?!\n)"
_OWN_KEYS = frozenset({"engine_uuid", "model", "vllm_config", "role", "graph"})

Size = Annotated[int, Meta(ge=1, le=4096)]


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What POST /engines asks for.

    Attributes:
        engine_uuid: the engine's name, unique among the living.
        model: ``demo``, a folder, or a Hugging Face model id.
        role: ``api`` for an OpenAI server of its own; ``decode`` or ``prefill`` to join a running graph.
        graph: the name of that graph, where the controller knows several.
        args: vLLM engine arguments, parallel sizes among them.
    """

    engine_uuid: str
    model: str | None
    role: Literal["api", "decode", "prefill"] = "api"
    graph: str | None = None
    args: dict[str, Any]

    @property
    def world_size(self) -> int:
        """How many ranks it needs."""
        return int(self.args.get("tensor_parallel_size", 1)) * int(self.args.get("pipeline_parallel_size", 1))


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /engines: fields with a type of our own; others are vLLM's engine arguments."""

    engine_uuid: Annotated[str, Meta(pattern=_UUID)]
    model: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    vllm_config: dict[str, Any] = {}
    role: Literal["api", "decode", "prefill"] = "api"
    graph: str | None = None
    tokenizer: str | None = None
    dtype: str = "float16"
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    tensor_parallel_size: Size = 1
    pipeline_parallel_size: Size = 1
    block_size: Annotated[int, Meta(ge=1)] | None = None
    seed: int | None = None
    enforce_eager: bool | None = None
    trust_remote_code: bool = False
    max_model_len: Annotated[int, Meta(ge=1)] | None = None


def read_request(data: bytes, *, consent: bool) -> EngineRequest:
    """Return what the body `data` asks for.

    ``vllm_config`` holds any of the arguments, also grouped as vLLM groups them (``{"model_config": {…}}``); what stands
    beside it overrides it.

    Raises:
        UnprocessableError: it is no JSON object, or a field is missing, unknown or of the wrong type.
        InvalidRequestError: it asks for what the server's owner has not allowed.
    """
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
        flat = {**_flat(raw.get("vllm_config") or {}), **{key: value for key, value in raw.items() if key != "vllm_config"}}
        body = msgspec.convert(flat, Body)
    except msgspec.ValidationError as error:
        raise UnprocessableError(f"the body: {error}", param=_field(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnprocessableError("the body is not valid JSON in UTF-8") from None
    given = Body.__struct_fields__ if body.role == "api" else flat  # a graph's own settings count before our defaults
    typed = {
        name: value
        for name in given
        if name in Body.__struct_fields__ and name not in _OWN_KEYS and (value := getattr(body, name)) is not None
    }
    others = {name: value for name, value in flat.items() if name not in Body.__struct_fields__}
    args = typed | others
    if body.role == "api" and body.model is None:
        raise UnprocessableError("model: is missing", param="model")
    try:
        checked(args, consent=consent)
    except RefusedArgsError as error:
        raise UnprocessableError(str(error), param=str(error).partition(":")[0]) from None
    except ConsentError as error:
        raise InvalidRequestError(str(error), param=str(error).partition(":")[0]) from None
    return EngineRequest(engine_uuid=body.engine_uuid, model=body.model, role=body.role, graph=body.graph, args=args)


def _flat(config: Any) -> dict[str, Any]:
    """Return the arguments in a ``vllm_config``: its own keys, and those in its ``…_config`` groups that vLLM calls so."""
    if not isinstance(config, dict):
        raise msgspec.ValidationError("Expected `object` - at `$.vllm_config`")
    groups = {"model_config", "cache_config", "parallel_config", "scheduler_config", "load_config"}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= value if key in groups and isinstance(value, dict) else {key: value}
    return found


def _field(message: str) -> str | None:
    """Return the field that msgspec's message names."""
    _, at, path = message.partition("`$.")
    return path.partition("`")[0] if at else None
