"""Text to tokens and back, and chats to prompts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.model.demo import demo_model
from components.model.folder import ModelError
from components.model.text_stream import TextStream
from components.model.tokenizer import Tokenizer
from components.wire.errors import InvalidRequestError

TOKENIZER = Tokenizer(str(demo_model()))
USER = {"role": "user", "content": "Hello"}


@given(st.text())
def test_text_comes_back(text: str) -> None:
    """Any text without special tokens' names survives; the beginning-of-text token is added and skipped."""
    if "<" not in text:
        tokens = TOKENIZER.encode(text)
        assert tokens[0] == 0
        assert TOKENIZER.decode(tokens) == text
        assert TOKENIZER.encode(text, add_special_tokens=False) == tokens[1:]


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)), st.lists(st.integers(4, TOKENIZER.vocab_size - 1)))
def test_stream_tells_the_decoded_text(context: list[int], tokens: list[int]) -> None:
    """Pieces add up to the text of the tokens, whatever came before, once the context ends in whole characters."""
    context += TOKENIZER.encode(".", add_special_tokens=False)
    stream = TextStream(TOKENIZER, context)
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.flush() == TOKENIZER.decode(tokens)
    assert stream.flush() == ""


def test_stream_holds_back_half_characters() -> None:
    """The bytes of a character come out together."""
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in TOKENIZER.encode("東", add_special_tokens=False)]
    assert pieces == ["", "", "東"]


def test_facts() -> None:
    """Vocabulary, special tokens and ends of text are the demo model's."""
    assert TOKENIZER.vocab_size == 896
    assert TOKENIZER.special_ids == {0, 1, 2, 3}
    assert TOKENIZER.eos_ids == (3, 1)
    assert TOKENIZER.has_chat_template
    assert TOKENIZER.token_text(2) == "<|im_start|>"
    assert all(TOKENIZER.token_text(token) for token in range(TOKENIZER.vocab_size))


@pytest.mark.parametrize("token_id", [-1, 896])
def test_decode_refuses_unknown_ids(token_id: int) -> None:
    """An id out of the vocabulary is the client's mistake."""
    with pytest.raises(InvalidRequestError):
        TOKENIZER.decode([5, token_id])


def test_chat() -> None:
    """A conversation becomes its turns and an opened answer; text parts are joined."""
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]
    text = TOKENIZER.render_chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert text == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n"
    )
    assert TOKENIZER.encode(text, add_special_tokens=False)[:2] == [0, 2]


def test_chat_without_generation_prompt() -> None:
    """The answer's opening can be left out."""
    text = TOKENIZER.render_chat([USER], add_generation_prompt=False)
    assert text == "<s><|im_start|>user\nHello<|im_end|>\n"


def test_chat_to_be_continued() -> None:
    """The last message can be left open."""
    start = {"role": "assistant", "content": "Once upon"}
    text = TOKENIZER.render_chat([USER, start], add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nOnce upon")


def test_chat_with_tools() -> None:
    """Tools are listed in the system turn; calls and their results appear as turns."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    text = TOKENIZER.render_chat(messages, [tool])
    assert text.count("<|im_start|>system") == 1
    assert "Be brief.\n\n" in text
    assert '<tools>\n{"type": "function", "function": {"name": "weather"' in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>tool\nsunny<|im_end|>" in text


@pytest.mark.parametrize("messages", [[], [{}], [{"role": "user", "content": 3}], [{"role": 1, "content": "secret"}]])
def test_chat_the_template_refuses(messages: list[dict[str, Any]]) -> None:
    """A conversation the template cannot render is the client's mistake, told without its content."""
    with pytest.raises(InvalidRequestError) as error:
        TOKENIZER.render_chat(messages)
    assert error.value.param == "messages"
    assert "secret" not in error.value.message


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "tools"])
def test_template_variables_have_limits(name: str) -> None:
    """A client's template variables never reach the renderer's own parameters."""
    with pytest.raises(InvalidRequestError, match=name):
        TOKENIZER.render_chat([USER], template_kwargs={name: "{{ 1 }}"})


def test_continue_and_open_exclude_each_other() -> None:
    """An answer is either opened or continued."""
    with pytest.raises(InvalidRequestError):
        TOKENIZER.render_chat([USER], continue_final_message=True)


def test_no_tokenizer(tmp_path: Path) -> None:
    """A folder without tokenizer is one clear line."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="no tokenizer") as error:
        Tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_needs_no_torch_and_little_memory() -> None:
    """A process with a tokenizer imports neither torch nor vLLM and stays below 150 MB."""
    program = (
        "import psutil, sys\n"
        "from components.model.folder import model_folder\n"
        "from components.model.tokenizer import Tokenizer\n"
        "Tokenizer(model_folder('demo')).render_chat([{'role': 'user', 'content': 'Hello'}])\n"
        "assert not {'torch', 'vllm'} & set(sys.modules)\n"
        "assert psutil.Process().memory_info().rss < 150 * 2**20\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
