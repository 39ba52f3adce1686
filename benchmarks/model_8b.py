"""Write a folder that vLLM serves as an 8B-shaped Llama with random weights (`load_format: dummy`): its speed is real.

python -m benchmarks.model_8b FOLDER
"""

import json
import shutil
import sys
from pathlib import Path

from components.model.demo import demo_model

VOCAB_SIZE = 128256
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 3,
    "dtype": "bfloat16",
}


def write(folder: Path) -> None:
    """Write configuration and tokenizer: the demo's, with a word for every further token id, so that all output is text."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in demo_model().iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(SHAPE, indent=1))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    taken = set(words.values()) | {token["id"] for token in tokenizer["added_tokens"]}
    words |= {f"word{i}": i for i in range(VOCAB_SIZE) if i not in taken}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
