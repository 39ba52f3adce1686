"""Answers of /v1/completions: `text_completion`, whole and in chunks, as bytes."""

import msgspec
from msgspec import UNSET, UnsetType

from components.processor.generation import Piece
from components.processor.plan import Plan
from components.processor.responses import DONE, Usage, encode, event, json_logprob, usage_of, usage_so_far
from components.processor.sequence import Sequence
from components.wire.messages import PositionLogprobs


class _Logprobs(msgspec.Struct, frozen=True):
    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class _Choice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class _Completion(msgspec.Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[_Choice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"


class CompletionAnswer:
    """Writes one answer."""

    def __init__(self, plan: Plan, answer_id: str, created: int) -> None:
        self._plan = plan
        self._id = f"cmpl-{answer_id}"
        self._created = created
        self._offsets: dict[int, int] = {}
        self._begun: set[int] = set()

    def opening(self, sequences: list[Sequence]) -> bytes:
        """Return nothing: a text completion's stream begins with its first tokens."""
        del sequences
        return b""

    def chunks(self, pieces: list[Piece]) -> bytes:
        """Return the events for new output; one a piece."""
        return b"".join([self._piece(piece) for piece in pieces])

    def closing(self, sequences: list[Sequence]) -> bytes:
        """Return the end of a stream: usage when asked for, then ``[DONE]``."""
        if not self._plan.usage:
            return DONE
        usage = usage_of(sequences, self._plan.n)
        return event(_Completion(self._id, self._created, self._plan.model, [], usage)) + DONE

    def whole(self, sequences: list[Sequence]) -> bytes:
        """Return the answer that is no stream."""
        choices = [self._choice(sequence) for sequence in sequences]
        usage = usage_of(sequences, self._plan.n)
        return encode(_Completion(self._id, self._created, self._plan.model, choices, usage))

    def _piece(self, piece: Piece) -> bytes:
        sequence, new = piece.sequence, piece.delta
        first = sequence.index not in self._begun
        self._begun.add(sequence.index)
        choice = _Choice(
            sequence.index,
            sequence.prompt.echo + new.text if first else new.text,
            self._logprobs(sequence, new.logprobs) if new.logprobs else None,
            None if new.finish_reason is None else new.finish_reason.value,
            new.stop_reason,
            sequence.prompt.token_ids if self._plan.token_ids and first else UNSET,
            new.token_ids if self._plan.token_ids else UNSET,
        )
        usage: Usage | UnsetType | None = None if self._plan.usage else UNSET
        if self._plan.usage_everywhere:
            usage = usage_so_far(sequence)
        return event(_Completion(self._id, self._created, self._plan.model, [choice], usage))

    def _choice(self, sequence: Sequence) -> _Choice:
        return _Choice(
            sequence.index,
            sequence.prompt.echo + "".join(sequence.texts),
            self._logprobs(sequence, sequence.logprobs) if self._plan.settings.logprobs is not None else None,
            None if sequence.finish_reason is None else sequence.finish_reason.value,
            sequence.stop_reason,
            sequence.prompt.token_ids if self._plan.token_ids else UNSET,
            sequence.token_ids if self._plan.token_ids else UNSET,
        )

    def _logprobs(self, sequence: Sequence, positions: list[PositionLogprobs]) -> _Logprobs:
        """Return log probabilities in the legacy format; offsets count characters from the start of the output."""
        offset = self._offsets.get(sequence.index, 0)
        offsets = []
        for position in positions:
            offsets.append(offset)
            offset += len(position.chosen.token)
        self._offsets[sequence.index] = offset
        return _Logprobs(
            offsets,
            [json_logprob(position.chosen) for position in positions],
            [position.chosen.token for position in positions],
            [{token.token: json_logprob(token) for token in (position.chosen, *position.top)} for position in positions],
        )
