"""The demo model: a small Llama with random weights, a byte-level BPE tokenizer and a chat template, made offline.

The folder is the same, byte for byte, on every machine: weights come from SHAKE-256, everything else is copied from
`demo_files/`. Knows nothing of engines; vLLM and transformers load the folder like any other.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1  # raise it when a file of the folder changes, so that old folders are not found any more

_FILES = Path(__file__).parent / "demo_files"
_COPIED = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")


def demo_model() -> Path:
    """Return the demo model's folder, made at the first call on a machine (takes well under a second).

    It lies in ``$XDG_CACHE_HOME/penstock``, by default ``~/.cache/penstock``, and appears there complete or not at all,
    so several processes may ask at once.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"
    folder = cache / f"demo-{FORMAT_VERSION}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    half_made = Path(tempfile.mkdtemp(dir=cache, prefix=".demo-"))
    try:
        write_demo_model(half_made)
        half_made.chmod(0o755)
        half_made.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(half_made, ignore_errors=True)
    return folder


def write_demo_model(folder: Path) -> None:
    """Write the demo model's files into the empty `folder`."""
    for name in _COPIED:
        shutil.copyfile(_FILES / name, folder / name)
    config = json.loads((_FILES / "config.json").read_text())
    _write_safetensors(folder / "model.safetensors", _weights(config))


def _write_safetensors(path: Path, tensors: dict[str, npt.NDArray[np.float32]]) -> None:
    """Write bfloat16 tensors: header length, header, data (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in tensors.items():
        start, end = end, end + 2 * values.size
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(_bfloat16(values) for values in tensors.values())


def _weights(config: dict[str, int]) -> dict[str, npt.NDArray[np.float32]]:
    """Return every tensor of a Llama of this shape."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (queries, hidden),
            f"{prefix}self_attn.k_proj.weight": (keys, hidden),
            f"{prefix}self_attn.v_proj.weight": (keys, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, queries),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
        }
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return ones for a norm, else values that keep the variance of what they multiply."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    values = _uniform(name, shape)
    if name == "model.embed_tokens.weight":
        return values
    if name == "lm_head.weight":
        return values * np.float32(4 / shape[1] ** 0.5) * _loudness(shape[0])[:, None]
    return values * np.float32(1 / shape[1] ** 0.5)


def _loudness(vocab: int) -> npt.NDArray[np.float32]:
    """Return a factor for each token's logit: 0 for special tokens and lone bytes beyond ASCII, which make no text."""
    tokens = json.loads((_FILES / "tokenizer.json").read_text())["model"]["vocab"]
    factors = np.zeros(vocab, np.float32)
    for token, index in tokens.items():
        factors[index] = 1.0 if len(token) > 1 or token.isascii() else 0.0
    factors[:4] = 0.0
    return factors


def _uniform(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return reproducible values of mean 0 and variance 1, evenly spread."""
    raw = hashlib.shake_256(name.encode()).digest(2 * int(np.prod(shape)))
    values = np.frombuffer(raw, "<u2").reshape(shape).astype(np.float32)
    return (values - np.float32(32767.5)) * np.float32(3**0.5 / 32768)


def _bfloat16(values: npt.NDArray[np.float32]) -> bytes:
    """Return `values` as bfloat16, little-endian: the upper half of each float, rounded to nearest."""
    bits = values.view(np.uint32) + np.uint32(0x8000)
    return (bits >> np.uint32(16)).astype("<u2").tobytes()
