"""A model's tokenizer and chat template. Imports no torch: a processor with it stays small.

Knows text and token ids, not requests. Error texts never hold prompt content, so Jinja's own messages are not handed on
unless the template raised them on purpose.
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from components.model.folder import ModelError
from components.model.segments import Segments, separable
from components.wire.errors import InvalidRequestError

_RESERVED = frozenset(inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters)


class Tokenizer:
    """The tokenizer in a model folder; safe to share between threads, and `encode` lets others run meanwhile.

    Attributes:
        vocab_size: token ids are below this.
        longest_token_chars: no token stands for more characters of text.
        special_ids: ids of tokens that `decode` may skip.
        has_chat_template: whether `render_chat` works.
    """

    def __init__(self, folder: str, remembered_chars: int = 0) -> None:
        """Load the tokenizer in `folder`.

        Args:
            folder: the model's.
            remembered_chars: of conversations; see `Segments`. 0: nothing of any text is kept.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        self._fast = _load(folder)
        self.vocab_size: int = len(self._fast)
        self.longest_token_chars: int = max(map(len, self._fast.get_vocab()))
        self.special_ids: frozenset[int] = frozenset(
            token_id for token_id, token in self._fast.added_tokens_decoder.items() if token.special
        )
        self.has_chat_template: bool = bool(self._fast.chat_template)
        self.eos_ids: tuple[int, ...] = _eos_ids(folder, self._fast.eos_token_id)
        self._segments = self._make_segments(remembered_chars) if remembered_chars else None

    def _make_segments(self, max_chars: int) -> Segments | None:
        backend = getattr(self._fast, "backend_tokenizer", None)  # some tokenizers are Python only
        if backend is None or not separable(json.loads(backend.to_str())):
            return None
        special = {token.content: token_id for token_id, token in self._fast.added_tokens_decoder.items()}
        return Segments(special, lambda text: self._encode(text, add_special_tokens=False), max_chars)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`; special tokens written in it count as such."""
        if self._segments is not None and not add_special_tokens:
            return self._segments.encode(text)
        return self._encode(text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._fast.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InvalidRequestError: an id is out of the vocabulary.
        """
        if any(not 0 <= token_id < self.vocab_size for token_id in token_ids):
            raise InvalidRequestError(f"token ids must be 0 to {self.vocab_size - 1}", param="tokens")
        text: str = self._fast.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def decode_raw(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of valid `token_ids`, unchecked and fast; for what an engine generated."""
        text: str = self._fast.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Return the text of one token on its own; special tokens by their name."""
        return self.decode([token_id], skip_special_tokens=False)

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Return the prompt text for a conversation; it holds its special tokens, so encode it without adding any.

        Args:
            messages: OpenAI's `messages`, content as text or as text parts.
            tools: OpenAI's `tools`.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: leave the last message open, for the model to go on with.
            template_kwargs: further variables for the template.

        Raises:
            InvalidRequestError: the model has no template, or the template refuses the conversation.
        """
        if not self.has_chat_template:
            raise InvalidRequestError("the model has no chat template; use /v1/completions", param="messages")
        variables = template_kwargs or {}
        if taken := sorted(_RESERVED.intersection(variables)):
            raise InvalidRequestError(f"{taken[0]} cannot be set for the template", param="chat_template_kwargs")
        if add_generation_prompt and continue_final_message:
            raise InvalidRequestError(
                "add_generation_prompt and continue_final_message exclude each other", param="continue_final_message"
            )
        try:
            text: str = self._fast.apply_chat_template(
                messages,
                tools=tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidRequestError(_why(error), param="messages") from error
        return text


def _why(error: Exception) -> str:
    """Return a reason without prompt content: only what a template raises itself is written for the client."""
    own_words = type(error) is TemplateError
    return f"the chat template refuses the messages{f': {error}' if own_words else ''}"


def _load(folder: str) -> Any:
    try:
        if (Path(folder) / "tokenizer.json").exists():
            return PreTrainedTokenizerFast.from_pretrained(folder)
        # Imported late: this one may pull in much more.
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"model: no tokenizer in {folder}: {' '.join(str(error).split())}") from error


def _eos_ids(folder: str, tokenizer_eos: int | None) -> tuple[int, ...]:
    """Return the ids that end an answer: the tokenizer's, and those of generation_config.json."""
    ids = [] if tokenizer_eos is None else [tokenizer_eos]
    path = Path(folder) / "generation_config.json"
    if path.exists():
        more = json.loads(path.read_text()).get("eos_token_id")
        ids += more if isinstance(more, list) else [] if more is None else [more]
    return tuple(dict.fromkeys(ids))
