"""Tool calls and reasoning out of generated text, by vLLM's own parsers.

Knows vLLM's parser interface, which is the same in 0.26 and 0.32. Imports vLLM.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec.structs import replace
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from components.engine.protocol import EngineOutput
from components.wire.errors import InvalidRequestError
from components.wire.messages import FinishReason, OutputParsing, Sampling, StructuredOutputs, ToolCallDelta


def parser_class(args: Mapping[str, Any], model: str) -> Any:
    """Return the class of vLLM parser that a graph's engine arguments ask for, or None.

    Args:
        args: `tool_call_parser` and `reasoning_parser` name parsers, `tool_parser_plugin` and `reasoning_parser_plugin`
            Python files that define more of them.
        model: for vLLM's advice about certain models.

    Raises:
        KeyError, TypeError, ImportError: there is no such parser.
    """
    tools, reasoning = args.get("tool_call_parser"), args.get("reasoning_parser")
    if not tools and not reasoning:
        return None
    if plugin := args.get("tool_parser_plugin"):
        ToolParserManager.import_tool_parser(plugin)
    if plugin := args.get("reasoning_parser_plugin"):
        ReasoningParserManager.import_reasoning_parser(plugin)
    return ParserManager.get_parser(tools, reasoning, enable_auto_tools=bool(tools), model_name=model)


class OutputParsers:
    """Makes one parser a request.

    Args:
        parser: a class from `parser_class`.
        llm: the engine, for its tokenizer.

    Raises:
        RuntimeError, ValueError: the model's tokenizer lacks the tokens that the parser goes by.
    """

    def __init__(self, parser: Any, llm: Any) -> None:
        self._parser_class = parser
        self._tokenizer = llm.get_tokenizer()
        self._model_config = llm.model_config
        self._make(None, {})

    def begin(self, parsing: OutputParsing) -> "ParsedOutput":
        """Return the parser of one request.

        Raises:
            InvalidRequestError: the tools are not what a parser can use.
        """
        try:
            request = ChatCompletionRequest(
                messages=msgspec.json.decode(parsing.messages) or [{"role": "user", "content": ""}],
                tools=msgspec.json.decode(parsing.tools) if parsing.tools else None,
                tool_choice="auto" if parsing.tools else "none",
            )
        except (ValidationError, ValueError) as error:
            raise InvalidRequestError("tools: are not what a tool parser can use", param="tools") from error
        variables = msgspec.json.decode(parsing.template_variables)
        parser = self._make(request.tools, variables)
        return ParsedOutput(parser, parser.adjust_request(request), variables)

    def _make(self, tools: Any, variables: dict[str, Any]) -> Any:
        return self._parser_class(self._tokenizer, tools, chat_template_kwargs=variables, model_config=self._model_config)


class ParsedOutput:
    """The output of one request, taken apart.

    Args:
        parser: a vLLM parser, which keeps state from delta to delta.
        request: a vLLM chat request, as the parser wants it.
        variables: of the chat template; they may turn reasoning off.
    """

    def __init__(self, parser: Any, request: Any, variables: dict[str, Any]) -> None:
        self._parser = parser
        self._request = request
        self._variables = variables

    def sampling(self, sampling: Sampling) -> Sampling:
        """Return `sampling` as the parser needs it: many look for special tokens, some constrain the output."""
        wanted = self._request.structured_outputs
        structured = sampling.structured_outputs
        if structured is None and wanted is not None:
            structured = StructuredOutputs(json_schema=_text(wanted.json), structural_tag=_text(wanted.structural_tag))
        skip = sampling.skip_special_tokens and self._request.skip_special_tokens
        return replace(sampling, skip_special_tokens=skip, structured_outputs=structured)

    def reasoning(self, prompt: list[int]) -> dict[str, Any]:
        """Return arguments of vLLM's `generate` that tell its core when a grammar begins to hold: after the reasoning."""
        if any(getattr(self._request, name, False) for name in ("_grammar_from_parser", "_grammar_from_tool_parser")):
            return {"reasoning_ended": True}
        if self._parser.reasoning_parser is None:
            return {}
        ended = self._parser.is_reasoning_end(prompt)
        return {"reasoning_ended": ended, "reasoning_parser_kwargs": {"chat_template_kwargs": self._variables}}

    async def parse(
        self, prompt: list[int], outputs: AsyncGenerator[EngineOutput, None]
    ) -> AsyncGenerator[EngineOutput, None]:
        """Yield `outputs` with calls and reasoning taken out of their text; a `stop` after a call becomes `tool_calls`."""
        called = False
        async with aclosing(outputs):
            async for output in outputs:
                reason = output.finish_reason
                delta = self._parser.parse_delta(
                    output.text, output.token_ids, self._request, prompt_token_ids=prompt, finished=reason is not None
                )
                calls = _calls(delta)
                called = called or bool(calls)
                if called and reason is FinishReason.STOP:
                    reason = FinishReason.TOOL_CALLS
                text, reasoning = (delta.content or "", delta.reasoning or "") if delta else ("", "")
                yield replace(output, text=text, tool_calls=calls, reasoning=reasoning, finish_reason=reason)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def _calls(delta: Any) -> tuple[ToolCallDelta, ...]:
    if delta is None:
        return ()
    return tuple(
        ToolCallDelta(call.index, call.id, call.function.name, call.function.arguments or "")
        for call in delta.tool_calls
        if call.function is not None
    )
