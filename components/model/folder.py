"""Where a model's files are: the demo model, a folder, or a Hugging Face model that is already on this machine."""

import os
from pathlib import Path

from components.model.demo import demo_model


class ModelError(Exception):
    """The model's files cannot be had; the text says why in one line."""


def model_folder(model: str) -> str:
    """Return the folder of `model`.

    Args:
        model: ``demo``, a folder, or a Hugging Face model id. Of an id, the configuration and the tokenizer are looked
            for in the local cache, and downloaded when they are not there and HF_HUB_OFFLINE is not set; the weights
            are the engine's business.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
    """
    if model == "demo":
        return str(demo_model())
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"model: the folder {model} has no config.json")
        return str(path)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"model: there is no folder {model}")
    return _hub_folder(model)


_PATTERNS = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


def _hub_folder(model: str) -> str:
    # Imported late: most graphs name the demo model or a folder.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return snapshot_download(model, allow_patterns=_PATTERNS, local_files_only=True)
    except HFValidationError as error:
        raise ModelError(f"model: {model} is neither a folder nor a Hugging Face model id") from error
    except LocalEntryNotFoundError as error:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
            raise ModelError(f"model: {model} is not on this machine, and HF_HUB_OFFLINE is set") from error
    try:
        return snapshot_download(model, allow_patterns=_PATTERNS)
    except LocalEntryNotFoundError as error:
        raise ModelError(f"model: {model} is not on this machine, and the Hugging Face Hub cannot be reached") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"model: the Hugging Face Hub has no {model}, or it needs your HF_TOKEN") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"model: {model} cannot be fetched: {' '.join(str(error).split())}") from error
