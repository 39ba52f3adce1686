"""Token ids in, text out, piece by piece; holds back what the next token may still change.

After the streaming decoder of Hugging Face's text-generation-inference: decode a few recent tokens with and without the
new ones, and emit the difference unless it ends inside a UTF-8 character.
"""

from collections.abc import Sequence

from components.model.tokenizer import Tokenizer

_CONTEXT_TOKENS = 6  # some tokenizers write a token otherwise at the start of a text
_INCOMPLETE = "\ufffd"


class TextStream:
    """The text of one sequence as it grows."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), skip_special_tokens: bool = True) -> None:
        """Start after the tokens in `context`, whose text is not emitted."""
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._tokens: list[int] = list(context[-_CONTEXT_TOKENS:])
        self._known_tokens = len(self._tokens)  # of these, emitted already
        self._known_text = self._decode(self._tokens)

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is certain now, possibly none."""
        self._tokens.append(token_id)
        text = self._decode(self._tokens)
        if text.endswith(_INCOMPLETE):
            return ""
        new = text[len(self._known_text) :]
        self._tokens = self._tokens[self._known_tokens :]
        self._known_tokens = len(self._tokens)
        self._known_text = self._decode(self._tokens)
        return new

    def flush(self) -> str:
        """Return the rest: bytes that stayed incomplete, as U+FFFD."""
        text = self._decode(self._tokens)[len(self._known_text) :]
        self._known_tokens = len(self._tokens)
        self._known_text = self._decode(self._tokens)
        return text

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode_raw(tokens, self._skip_special_tokens)
