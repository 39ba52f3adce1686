"""The model's own sampling defaults hold where a request says nothing, as under `vllm serve`."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.model.folder import ModelError, model_folder
from components.model.tokenizer import Tokenizer
from components.processor.defaults import Defaults, load_defaults
from components.processor.plan import Plan, plan_chat, plan_completion
from components.processor.sampling import Limits

RECOMMENDED: dict[str, Any] = {
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
}


def folder(path: Path, **values: Any) -> str:
    """Write a generation_config.json with `values`, and return its folder."""
    (path / "generation_config.json").write_text(json.dumps({"do_sample": True, "eos_token_id": [1, 2]} | values))
    return str(path)


def chat(tokenizer: Tokenizer, defaults: Defaults, **fields: Any) -> Plan:
    """Return the plan of a chat with `fields`."""
    body = {"messages": [{"role": "user", "content": "hello"}]} | fields
    return plan_chat(json.dumps(body).encode(), "demo", tokenizer, Limits(tokenizer.vocab_size, 8, 5, defaults=defaults))


def test_what_the_model_recommends_holds_unless_the_request_says_otherwise(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Each field for itself, in chats and completions; neutral values are said too."""
    defaults = load_defaults(folder(tmp_path, **RECOMMENDED), {})
    silent = chat(tokenizer, defaults).settings
    assert {name: getattr(silent, name) for name in RECOMMENDED} == RECOMMENDED
    spoken = {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
    spoken |= {"presence_penalty": 0, "frequency_penalty": 0}
    settings = chat(tokenizer, defaults, **spoken).settings
    assert {name: getattr(settings, name) for name in spoken} == spoken | {"top_k": 0}
    limits = Limits(tokenizer.vocab_size, 8, 5, defaults=defaults)
    completion = plan_completion(b'{"prompt":"x","top_k":3}', "demo", tokenizer, limits).settings
    assert {name: getattr(completion, name) for name in RECOMMENDED} == RECOMMENDED | {"top_k": 3}


def test_a_recommended_length_is_no_demand(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """It bounds chats that name none, and gives way to a short context; completions keep OpenAI's 16."""
    defaults = load_defaults(folder(tmp_path, max_new_tokens=100), {})
    plan = chat(tokenizer, defaults)
    prompt = plan.prompts[0]
    assert plan.sampling(prompt, 0, 2048).max_tokens == 100
    assert plan.sampling(prompt, 0, len(prompt.token_ids) + 30).max_tokens == 30
    assert chat(tokenizer, defaults, max_tokens=200).sampling(prompt, 0, 2048).max_tokens == 200
    limits = Limits(tokenizer.vocab_size, 8, 5, defaults=defaults)
    completion = plan_completion(b'{"prompt":"x"}', "demo", tokenizer, limits)
    assert completion.sampling(completion.prompts[0], 0, 2048).max_tokens == 16


def test_the_engine_arguments_decide_where_defaults_come_from(tmp_path: Path) -> None:
    """``vllm`` for none, a folder, and single values over it; nothing where the model says nothing."""
    here = folder(tmp_path, temperature=0.6, top_k=20)
    other = tmp_path / "other"
    other.mkdir()
    assert load_defaults(here, {"generation_config": "vllm"}) == Defaults()
    assert load_defaults(here, {"override_generation_config": {"top_k": 5}}) == Defaults(temperature=0.6, top_k=5)
    assert load_defaults(model_folder("demo"), {"generation_config": here}) == Defaults(temperature=0.6, top_k=20)
    assert load_defaults(str(other), {}) == load_defaults(model_folder("demo"), {}) == Defaults()


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": "hot"}'])
def test_a_broken_file_is_told_at_the_start(tmp_path: Path, text: str) -> None:
    """Not with the first request."""
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        load_defaults(str(tmp_path), {})
