"""A request made ready: everything decided that can be before a worker is asked. Pure, and safe in a thread.

What depends on the workers (context length, tool parser) is decided in `Plan.sampling`.
"""

import msgspec

from components.model.tokenizer import Tokenizer
from components.processor.openai import ChatRequest, CompletionRequest, Generation, parse, prompts
from components.processor.render import Prompt, render_chat, render_text
from components.processor.sampling import Limits, asked_tokens, fit, sampling_of
from components.processor.tools import Tooling, tooling
from components.wire.errors import InvalidRequestError, ModelNotFoundError
from components.wire.messages import Sampling


class Plan(msgspec.Struct, frozen=True):
    """What shall be generated, and what the answer shall hold.

    Attributes:
        model: the model's name.
        prompts: each becomes `n` sequences.
        n: choices a prompt.
        max_tokens: output tokens asked for; None for the usual.
        settings: how to choose tokens; its `max_tokens` is not settled yet.
        tools: what `tools` and `tool_choice` ask for.
        prompt_param: the field that holds the prompt, for errors.
        stream: whether the answer is a stream.
        usage: whether the stream ends with a usage chunk.
        usage_everywhere: whether every chunk of the stream holds the usage so far.
        token_ids: whether the answer shows token ids.
        cache_salt: separates KV reuse between tenants.
        usual_tokens: output tokens where none were asked for; None for as many as fit.
    """

    model: str
    prompts: list[Prompt]
    n: int
    max_tokens: int | None
    settings: Sampling
    tools: Tooling
    prompt_param: str
    stream: bool
    usage: bool
    usage_everywhere: bool
    token_ids: bool
    cache_salt: str | None
    usual_tokens: int | None = None

    def sampling(self, prompt: Prompt, choice: int, context_tokens: int) -> Sampling:
        """Return how to choose the tokens of one sequence; choice i of a seeded request gets seed + i.

        Raises:
            ContextLengthExceededError: it does not fit the context.
            InvalidRequestError: `min_tokens` is above `max_tokens`.
        """
        settings = self.settings
        if settings.seed is not None and choice:
            settings = msgspec.structs.replace(settings, seed=_next_seed(settings.seed, choice))
        prompt_tokens = len(prompt.token_ids)
        return fit(settings, self.max_tokens, self.usual_tokens, prompt_tokens, context_tokens, self.prompt_param)


def plan_chat(data: bytes, model: str, tokenizer: Tokenizer, limits: Limits) -> Plan:
    """Return the plan for the body of a chat completion.

    Raises:
        ModelNotFoundError: it names another model.
        InvalidRequestError: it is no valid request.
    """
    body = parse(data, ChatRequest)
    check_model(body.model, model)
    tools = tooling(body, limits.reasoning)
    settings = sampling_of(body, limits, tools.constraint)
    plan = _plan(body, model, [render_chat(body, tokenizer, limits.context_tokens)], settings, tools, "messages")
    return msgspec.structs.replace(plan, usual_tokens=limits.defaults.max_new_tokens)


def plan_completion(data: bytes, model: str, tokenizer: Tokenizer, limits: Limits) -> Plan:
    """Return the plan for the body of a text completion; raises as `plan_chat`."""
    body = parse(data, CompletionRequest)
    check_model(body.model, model)
    settings = sampling_of(body, limits)
    if body.echo and body.logprobs is not None:
        raise InvalidRequestError("echo: cannot be combined with logprobs; prompts have none here", param="echo")
    asked = prompts(body.prompt)
    if len(asked) * (body.n or 1) > limits.max_choices:
        raise InvalidRequestError(f"prompt: at most {limits.max_choices} choices for all prompts together", param="prompt")
    rendered = render_text(body, asked, tokenizer, limits.context_tokens)
    return _plan(body, model, rendered, settings, Tooling(), "prompt")


def check_model(asked: str | None, served: str) -> None:
    """Refuse a request for another model; one that names none means ours.

    Raises:
        ModelNotFoundError: it names another model.
    """
    if asked is not None and asked != served:
        raise ModelNotFoundError(f"model {asked[:128]!r} is not served here; {served!r} is", param="model")


def _plan(
    body: Generation, model: str, prompts: list[Prompt], settings: Sampling, tools: Tooling, prompt_param: str
) -> Plan:
    options = body.stream_options
    return Plan(
        model=model,
        prompts=prompts,
        n=body.n or 1,
        max_tokens=asked_tokens(body),
        settings=settings,
        tools=tools,
        prompt_param=prompt_param,
        stream=body.stream or False,
        usage=bool(options and options.include_usage),
        usage_everywhere=bool(options and options.include_usage and options.continuous_usage_stats),
        token_ids=body.return_token_ids or False,
        cache_salt=body.cache_salt,
    )


def _next_seed(seed: int, step: int) -> int:
    """Return seed + step, staying within 64 bits."""
    return (seed + step + 2**63) % 2**64 - 2**63
