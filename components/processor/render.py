"""From what a client wrote to token ids: chat template and tokenizer. Knows nothing of sampling or workers."""

import msgspec

from components.model.tokenizer import Tokenizer
from components.processor import messages, tools
from components.processor.openai import ChatRequest, CompletionRequest, TokenizeRequest
from components.wire.errors import ContextLengthExceededError, InvalidRequestError


class Prompt(msgspec.Struct, frozen=True):
    """One prompt.

    Attributes:
        token_ids: what the model reads.
        echo: text to put before the answer, when the client asked for it.
        blocks: block hashes of its full blocks, where a router wants them.
    """

    token_ids: list[int]
    echo: str = ""
    blocks: list[int] = []


def render_chat(body: ChatRequest | TokenizeRequest, tokenizer: Tokenizer, context_tokens: int | None = None) -> Prompt:
    """Return the prompt for a conversation.

    Raises:
        ContextLengthExceededError: its text cannot fit into `context_tokens`, whatever its tokens are.
        InvalidRequestError: the messages are no conversation this model can read.
    """
    said = body.messages or []
    text = _chat_text(body, said, tokenizer)
    _check_length(text, tokenizer, context_tokens, "messages")
    echo = ""
    if isinstance(body, ChatRequest) and body.echo and isinstance(said[-1], messages.AssistantMessage):
        echo = messages.text_of(said[-1]) or ""
    return Prompt(tokenizer.encode(text, add_special_tokens=body.add_special_tokens or False), echo)


def render_text(
    body: CompletionRequest, asked: list[str | list[int]], tokenizer: Tokenizer, context_tokens: int | None
) -> list[Prompt]:
    """Return the prompts of a completion: strings or token ids.

    Raises:
        ContextLengthExceededError: one cannot fit into `context_tokens`.
        InvalidRequestError: one holds ids the model does not know.
    """
    for prompt in asked:
        _check_length(prompt, tokenizer, context_tokens, "prompt")
    return [_prompt(prompt, tokenizer, body.add_special_tokens is not False, body.echo or False) for prompt in asked]


def _check_length(prompt: str | list[int], tokenizer: Tokenizer, context_tokens: int | None, param: str) -> None:
    """Refuse a prompt that cannot fit, before it is tokenized, which may take seconds; vLLM bounds texts the same way."""
    if context_tokens is None:
        return
    per_token, unit = (tokenizer.longest_token_chars, "characters") if isinstance(prompt, str) else (1, "tokens")
    if len(prompt) > context_tokens * per_token:
        raise ContextLengthExceededError(
            f"the model's context is {context_tokens} tokens; the prompt's {len(prompt)} {unit} cannot fit", param=param
        )


def _prompt(prompt: str | list[int], tokenizer: Tokenizer, add_special_tokens: bool, echo: bool) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(tokenizer.encode(prompt, add_special_tokens=add_special_tokens), prompt if echo else "")
    if max(prompt) >= tokenizer.vocab_size:
        raise InvalidRequestError(f"prompt: token ids must be 0 to {tokenizer.vocab_size - 1}", param="prompt")
    return Prompt(prompt, tokenizer.decode(prompt) if echo else "")


def _chat_text(body: ChatRequest | TokenizeRequest, said: list[messages.ChatMessage], tokenizer: Tokenizer) -> str:
    resume = body.continue_final_message or False
    opening = body.add_generation_prompt if body.add_generation_prompt is not None else not resume
    variables = dict(body.chat_template_kwargs or {})
    try:
        return tokenizer.render_chat(messages.for_template(said), tools.for_template(body.tools), opening, resume, variables)
    except RecursionError:
        raise InvalidRequestError("messages: are nested too deeply for the chat template", param="messages") from None


def tokenize(body: TokenizeRequest, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids that POST /tokenize asks for.

    Raises:
        InvalidRequestError: it holds not exactly one of `prompt` and `messages`.
    """
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("prompt: exactly one of prompt and messages must be set", param="prompt")
    if body.prompt is not None:
        return tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    return render_chat(body, tokenizer).token_ids
