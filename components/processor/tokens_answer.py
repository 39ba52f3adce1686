"""Answers of POST /tokenize and /detokenize: bytes in, bytes out. Pure, and meant for a thread: bodies may be huge."""

from components.model.tokenizer import Tokenizer
from components.processor import messages
from components.processor.openai import DetokenizeRequest, TokenizeRequest, parse
from components.processor.plan import check_model
from components.processor.render import tokenize
from components.processor.responses import encode
from components.wire.errors import ContextLengthExceededError, InvalidRequestError

MAX_IDS = 131_072


def tokenize_answer(data: bytes, model: str, tokenizer: Tokenizer, context_tokens: int | None) -> bytes:
    """Return the answer to the body of POST /tokenize.

    Args:
        data: the body.
        model: served.
        tokenizer: of the model.
        context_tokens: of the workers; None while there is none.

    Raises:
        ModelNotFoundError: it names another model.
        ContextLengthExceededError: the text is longer than any that fits the context.
        InvalidRequestError: it is no valid request, or asks for the texts of too many tokens.
    """
    body = parse(data, TokenizeRequest)
    check_model(body.model, model)
    _check_length(body, context_tokens or MAX_IDS, tokenizer.longest_token_chars)
    token_ids = tokenize(body, tokenizer)
    texts = _texts(token_ids, tokenizer) if body.return_token_strs else None
    answer = {"count": len(token_ids), "max_model_len": context_tokens, "tokens": token_ids, "token_strs": texts}
    return encode(answer)


def detokenize_answer(data: bytes, model: str, tokenizer: Tokenizer) -> bytes:
    """Return the answer to the body of POST /detokenize.

    Raises:
        ModelNotFoundError: it names another model.
        InvalidRequestError: it is no valid request, or holds too many ids or unknown ones.
    """
    body = parse(data, DetokenizeRequest)
    check_model(body.model, model)
    if len(body.tokens) > MAX_IDS:
        raise InvalidRequestError(f"tokens: at most {MAX_IDS}", param="tokens")
    return encode({"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)})


def _check_length(body: TokenizeRequest, most_tokens: int, longest_token_chars: int) -> None:
    """Refuse a text that is certainly more than `most_tokens`; counting by how much would take seconds."""
    chars = len(body.prompt or "") + sum(len(messages.text_of(message) or "") for message in body.messages or [])
    if chars > most_tokens * longest_token_chars:
        param = "messages" if body.prompt is None else "prompt"
        raise ContextLengthExceededError(f"{param}: {chars} characters are more than {most_tokens} tokens", param=param)


def _texts(token_ids: list[int], tokenizer: Tokenizer) -> list[str]:
    if len(token_ids) > MAX_IDS:
        raise InvalidRequestError(f"return_token_strs: for at most {MAX_IDS} tokens", param="return_token_strs")
    texts = {token_id: tokenizer.token_text(token_id) for token_id in set(token_ids)}
    return [texts[token_id] for token_id in token_ids]
