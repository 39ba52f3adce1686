"""Tokenizes a conversation piece by piece between special tokens, and remembers them: turns and system prompts come again.

A special token is cut out before anything else looks at the text, so what stands between two of them becomes the same tokens
wherever it stands. That holds for tokenizers whose parts look at nothing but the piece; `separable` knows which.
"""

import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

_LOCAL_STEPS = frozenset({"ByteLevel", "Digits", "Punctuation", "Sequence", "Split", "Whitespace", "WhitespaceSplit"})
_LOCAL_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Sequence"})
_ENTRY_CHARS = 256  # what a piece costs beside its text, at least


class AddedToken(msgspec.Struct):
    """A token that tokenizer.json adds to the model's, with what it says of it."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


def separable(config: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer, given as tokenizer.json, makes the same tokens of a text and of its pieces."""
    added = [msgspec.convert(token, AddedToken) for token in config.get("added_tokens", [])]
    plain = all(not (token.single_word or token.lstrip or token.rstrip or token.normalized) for token in added)
    return (
        bool(added)
        and plain
        and _steps(config.get("pre_tokenizer")) <= _LOCAL_STEPS
        and _steps(config.get("normalizer")) <= _LOCAL_NORMALIZERS
        and not _adds_space(config.get("pre_tokenizer"))
    )


class Segments:
    """Token ids of text, with the pieces seen lately in memory; safe to share between threads."""

    def __init__(self, special: Mapping[str, int], encode: Callable[[str], list[int]], max_chars: int) -> None:
        """Remember nothing yet.

        Args:
            special: ids of the special tokens by their text.
            encode: makes token ids of a piece without special tokens.
            max_chars: most text to remember, in characters; the piece used longest ago makes room.
        """
        self._special = special
        self._encode = encode
        self._max_chars = max_chars
        longest_first = sorted(special, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._pieces: OrderedDict[str, array[int]] = OrderedDict()
        self._chars = 0
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`."""
        ids: list[int] = []
        for index, piece in enumerate(self._cut.split(text)):
            if index % 2:
                ids.append(self._special[piece])
            elif piece:
                ids.extend(self._known(piece) or self._learn(piece))
        return ids

    def _known(self, piece: str) -> "array[int] | None":
        with self._lock:
            ids = self._pieces.get(piece)
            if ids is not None:
                self._pieces.move_to_end(piece)
        return ids

    def _learn(self, piece: str) -> list[int]:
        ids = self._encode(piece)
        cost = len(piece) + _ENTRY_CHARS
        if cost <= self._max_chars:
            with self._lock:
                if piece not in self._pieces:
                    self._pieces[piece] = array("I", ids)
                    self._chars += cost
                while self._chars > self._max_chars:
                    oldest, _ = self._pieces.popitem(last=False)
                    self._chars -= len(oldest) + _ENTRY_CHARS
        return ids


def _steps(step: Mapping[str, Any] | None) -> set[str]:
    """Return the types of a step of the tokenizer and of all inside it."""
    if step is None:
        return set()
    inside = [*step.get("pretokenizers", []), *step.get("normalizers", [])]
    return {str(step["type"])}.union(*map(_steps, inside))


def _adds_space(step: Mapping[str, Any] | None) -> bool:
    """Return whether a pre-tokenizer puts a space before a text, which it then would before each piece."""
    return step is not None and (
        bool(step.get("add_prefix_space")) or any(_adds_space(inside) for inside in step.get("pretokenizers", []))
    )
