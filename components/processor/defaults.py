"""What a request that says nothing gets: the sampling that the model's makers recommend, as `vllm serve` takes it.

It stands in the model folder's generation_config.json. vLLM's engine arguments `generation_config` (``auto``, ``vllm`` for
none, or another folder) and `override_generation_config` mean here what they mean there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from components.model.folder import ModelError

_FILE = "generation_config.json"


class Defaults(msgspec.Struct, frozen=True):
    """Sampling where a request says nothing; None leaves OpenAI's defaults. Names are generation_config.json's.

    Attributes:
        max_new_tokens: output tokens of a chat that does not bound them; fewer where the context leaves fewer.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_new_tokens: int | None = None


NO_DEFAULTS = Defaults()


def load_defaults(folder: str, engine_args: Mapping[str, Any]) -> Defaults:
    """Return the defaults of the model in `folder`.

    Args:
        folder: the model's.
        engine_args: vLLM's, as the graph sets them for the decode workers.

    Raises:
        ModelError: a file or a value is not what it should be.
    """
    source = engine_args.get("generation_config", "auto")
    values: dict[str, Any] = {}
    if source != "vllm":
        path = Path(folder if source == "auto" else source) / _FILE
        values = _read(path) if path.exists() else {}
    try:
        return msgspec.convert(values | (engine_args.get("override_generation_config") or {}), Defaults)
    except msgspec.ValidationError as error:
        raise ModelError(f"model: {_FILE} or override_generation_config: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"model: {path} cannot be read: {error}") from error
