"""A copy of the demo model whose vocabulary is as wide as a real one's, for engines that make up token ids.

Dynamo's mocker draws ids that the demo model's 896 tokens do not hold, and its frontend then has no text to send, and no
events. The tokens added here never come out of a prompt, for no merge makes them; so prompts stay the same.
"""

import json
import shutil
from pathlib import Path

from components.model.demo import demo_model

VOCABULARY = 32_768


def wide_model(folder: Path) -> Path:
    """Make the model in `folder`, which must not exist yet, and return it."""
    shutil.copytree(demo_model(), folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    used = {*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    vocabulary |= {f"Ġword{number}": number for number in range(VOCABULARY) if number not in used}
    path.write_text(json.dumps(tokenizer))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": VOCABULARY}))
    return folder
