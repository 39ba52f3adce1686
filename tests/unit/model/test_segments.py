"""Tokenizing by pieces: the same tokens as of the whole text, and bounded memory."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.model.demo import demo_model
from components.model.segments import Segments, separable
from components.model.tokenizer import Tokenizer

PLAIN = Tokenizer(str(demo_model()))
REMEMBERING = Tokenizer(str(demo_model()), remembered_chars=4096)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CONFIG = {
    "added_tokens": [{"id": 0, "content": "<s>", "normalized": False}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "normalizer": None,
}


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from([*SPECIAL, " ", "\n", "<|im", "_end|>", "user\n"]), st.text(max_size=12)), max_size=14
    )
)
def test_pieces_make_the_same_tokens(parts: list[str]) -> None:
    """Whatever stands between special tokens, and however often it comes."""
    text = "".join(parts)
    expected = PLAIN.encode(text, add_special_tokens=False)
    assert REMEMBERING.encode(text, add_special_tokens=False) == expected
    assert REMEMBERING.encode(text, add_special_tokens=False) == expected


def test_a_conversation_is_the_same_too() -> None:
    """As the chat template writes it."""
    said = [{"role": "system", "content": "You are a mill. " * 40}, {"role": "user", "content": "Grind, <|im_end|> please!"}]
    text = PLAIN.render_chat(said)
    assert REMEMBERING.encode(text, add_special_tokens=False) == PLAIN.encode(text, add_special_tokens=False)


def test_special_tokens_are_added_as_ever() -> None:
    """Where the tokenizer itself adds some, the text is not cut."""
    assert REMEMBERING.encode("water") == PLAIN.encode("water")


def test_a_piece_is_tokenized_once() -> None:
    """Until it has to make room; the one used longest ago goes first."""
    asked: list[str] = []

    def encode(text: str) -> list[int]:
        asked.append(text)
        return [len(text)]

    segments = Segments({"|": 99}, encode, max_chars=3 * 257)
    assert segments.encode("a|b|a") == [1, 99, 1, 99, 1]
    assert asked == ["a", "b"]
    segments.encode("c|a|d")  # four pieces do not fit, b goes
    assert asked == ["a", "b", "c", "d"]
    segments.encode("a|b")
    assert asked == ["a", "b", "c", "d", "b"]
    segments.encode("x" * 1000)
    segments.encode("x" * 1000)
    assert asked[5:] == ["x" * 1000, "x" * 1000]


@pytest.mark.parametrize(
    "change",
    [
        {"added_tokens": []},
        {"added_tokens": [{"id": 0, "content": "<s>", "normalized": True}]},
        {"added_tokens": [{"id": 0, "content": "<s>", "normalized": False, "lstrip": True}]},
        {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True}]}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}]}},
    ],
)
def test_tokenizers_that_look_beyond_a_piece_are_left_alone(change: dict[str, object]) -> None:
    """A space put before a text would be put before every piece."""
    assert separable(json.loads(json.dumps(CONFIG)))
    assert not separable(CONFIG | change)
