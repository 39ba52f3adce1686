"""Answers of /v1/chat/completions: `chat.completion` and `chat.completion.chunk`, as bytes."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from components.processor.generation import Piece
from components.processor.plan import Plan
from components.processor.responses import DONE, Usage, encode, event, json_logprob, usage_of, usage_so_far
from components.processor.sequence import Sequence
from components.processor.tools import ForcedCalls
from components.wire.messages import FinishReason, PositionLogprobs, TokenLogprob, ToolCallDelta


class _Logprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class _TokenLogprobs(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[_Logprob]


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[_TokenLogprobs]
    refusal: None = None


class _CalledFunction(msgspec.Struct, frozen=True):
    arguments: str
    name: str | UnsetType = UNSET


class _ToolCall(msgspec.Struct, frozen=True):
    index: int | UnsetType
    function: _CalledFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class _Delta(msgspec.Struct, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[_ToolCall] | UnsetType = UNSET


class _ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: _Delta
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class _Chunk(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[_ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatAnswer:
    """Writes one answer."""

    def __init__(self, plan: Plan, answer_id: str, created: int) -> None:
        self._plan = plan
        self._id = f"chatcmpl-{answer_id}"
        self._created = created
        tools = plan.tools
        self._forced = [ForcedCalls(tools.named) for _ in range(plan.n)] if tools.constraint else None
        self._called: set[int] = set()

    def opening(self, sequences: list[Sequence]) -> bytes:
        """Return the chunks that name the role, and those that repeat an echoed message."""
        delta = _Delta(role="assistant", content=self._plan.prompts[0].echo)
        ids = self._plan.prompts[0].token_ids if self._plan.token_ids else UNSET
        return b"".join(self._chunk(_ChunkChoice(sequence.index, delta), sequence, ids) for sequence in sequences)

    def chunks(self, pieces: list[Piece]) -> bytes:
        """Return the events for new output; one a piece."""
        return b"".join([self._piece(piece) for piece in pieces])

    def closing(self, sequences: list[Sequence]) -> bytes:
        """Return the end of a stream: usage when asked for, then ``[DONE]``."""
        if not self._plan.usage:
            return DONE
        usage = usage_of(sequences, self._plan.n)
        return event(_Chunk(self._id, "chat.completion.chunk", self._created, self._plan.model, [], usage)) + DONE

    def whole(self, sequences: list[Sequence]) -> bytes:
        """Return the answer that is no stream."""
        answer: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._plan.model,
            "choices": [self._choice(sequence) for sequence in sequences],
            "usage": usage_of(sequences, self._plan.n),
        }
        if self._plan.token_ids:
            answer["prompt_token_ids"] = self._plan.prompts[0].token_ids
        return encode(answer)

    def _piece(self, piece: Piece) -> bytes:
        sequence, new = piece.sequence, piece.delta
        calls = self._calls(sequence, new.text, new.tool_calls)
        if calls or new.reasoning:
            content = UNSET if self._forced else new.text or UNSET
            made = [_tool_call(call) for call in calls] if calls else UNSET
            delta = _Delta(content=content, reasoning=new.reasoning or UNSET, tool_calls=made)
        elif self._forced and new.finish_reason is None and not (new.logprobs or self._plan.token_ids):
            return b""
        else:
            delta = _Delta() if self._forced else _Delta(content=new.text)
        choice = _ChunkChoice(
            sequence.index,
            delta,
            _logprobs(new.logprobs) if new.logprobs else None,
            self._finish_reason(sequence, new.finish_reason),
            UNSET if new.finish_reason is None else new.stop_reason,
            new.token_ids if self._plan.token_ids else UNSET,
        )
        return self._chunk(choice, sequence)

    def _chunk(self, choice: _ChunkChoice, sequence: Sequence, prompt_ids: list[int] | UnsetType = UNSET) -> bytes:
        usage: Usage | UnsetType | None = None if self._plan.usage else UNSET
        if self._plan.usage_everywhere:
            usage = usage_so_far(sequence)
        model = self._plan.model
        return event(_Chunk(self._id, "chat.completion.chunk", self._created, model, [choice], usage, prompt_ids))

    def _choice(self, sequence: Sequence) -> dict[str, Any]:
        text = "".join(sequence.texts)
        calls = _joined(self._calls(sequence, text, tuple(sequence.tool_calls)))
        message: dict[str, Any] = {"role": "assistant", "content": sequence.prompt.echo + text, "refusal": None}
        if sequence.reasoning:
            message["reasoning"] = "".join(sequence.reasoning)
        if self._forced or (not text and (calls or sequence.reasoning)):
            message["content"] = None
        if calls:
            message["tool_calls"] = [_tool_call(call, whole=True) for call in calls]
        choice: dict[str, Any] = {
            "index": sequence.index,
            "message": message,
            "logprobs": _logprobs(sequence.logprobs) if self._plan.settings.logprobs is not None else None,
            "finish_reason": self._finish_reason(sequence, sequence.finish_reason),
            "stop_reason": sequence.stop_reason,
        }
        if self._plan.token_ids:
            choice["token_ids"] = sequence.token_ids
        return choice

    def _calls(self, sequence: Sequence, text: str, parsed: tuple[ToolCallDelta, ...]) -> tuple[ToolCallDelta, ...]:
        """Return the pieces of tool calls in new output."""
        calls = self._forced[sequence.index].feed(text) if self._forced else parsed
        if not self._plan.tools.parallel:
            calls = tuple(call for call in calls if call.index == 0)
        if calls:
            self._called.add(sequence.index)
        return calls

    def _finish_reason(self, sequence: Sequence, reason: FinishReason | None) -> str | None:
        """Return the reason as OpenAI has it: calls the model chose end with ``tool_calls``, a named one with ``stop``."""
        if reason is None:
            return None
        chosen = sequence.index in self._called and self._plan.tools.named is None
        return "tool_calls" if chosen and reason is FinishReason.STOP else reason.value


def _tool_call(call: ToolCallDelta, whole: bool = False) -> _ToolCall:
    named = UNSET if call.name is None else call.name
    return _ToolCall(
        UNSET if whole else call.index,
        _CalledFunction(call.arguments, named),
        UNSET if call.id is None else call.id,
        UNSET if call.id is None else "function",
    )


def _joined(calls: tuple[ToolCallDelta, ...]) -> list[ToolCallDelta]:
    """Return whole calls from their pieces."""
    whole: dict[int, ToolCallDelta] = {}
    for call in calls:
        known = whole.get(call.index)
        if known is not None:
            call = ToolCallDelta(call.index, known.id, known.name, known.arguments + call.arguments)
        whole[call.index] = call
    return list(whole.values())


def _logprobs(positions: list[PositionLogprobs]) -> _Logprobs:
    return _Logprobs([_position(position) for position in positions])


def _position(position: PositionLogprobs) -> _TokenLogprobs:
    chosen = _logprob(position.chosen)
    return _TokenLogprobs(chosen.token, chosen.logprob, chosen.bytes, [_logprob(token) for token in position.top])


def _logprob(token: TokenLogprob) -> _Logprob:
    return _Logprob(token.token, json_logprob(token), list(token.token.encode(errors="replace")))
