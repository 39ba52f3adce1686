"""One request in the simulated engine: from tokens to outputs, with the reasons to end. Knows no scheduling and no time."""

import asyncio

from components.engine.protocol import EngineOutput
from components.engine.sim_answer import Answer, AnswerText, Vocabulary
from components.engine.sim_sequence import SimSequence
from components.wire.block_hash import root_hash
from components.wire.errors import WorkerLostError
from components.wire.messages import FinishReason, GenerateRequest, PositionLogprobs


def prompt_root(request: GenerateRequest) -> int:
    """Return what a request's first block is chained to."""
    return root_hash(request.model, cache_salt=request.cache_salt)


class SimRequest:
    """Gathers a request's output until somebody takes it.

    Attributes:
        sequence: the request as the scheduler sees it.
        finish_reason: set once the answer is complete.
    """

    def __init__(self, request: GenerateRequest, vocabulary: Vocabulary, room: int, echo: bool) -> None:
        sampling = request.sampling
        self._sampling = sampling
        self._eos_ids = () if sampling.ignore_eos else vocabulary.eos_ids
        self._answer = Answer(request, vocabulary, echo)
        self._text = AnswerText(request, vocabulary.tokenizer)
        self.sequence = SimSequence(
            request.token_ids,
            min(sampling.max_tokens, room),
            self._answer.next_token,
            prompt_root(request),
        )
        self.finish_reason: FinishReason | None = None
        self._stop_reason: int | str | None = None
        self._error: WorkerLostError | None = None
        self._told_cached = False
        self._new_tokens: list[int] = []
        self._new_text: list[str] = []
        self._changed = asyncio.Event()

    def take_token(self) -> None:
        """Take over the sequence's newest token, and find out whether the answer ends with it."""
        token = self.sequence.tokens[-1]
        self._new_tokens.append(token)
        may_stop = self.sequence.output_tokens >= self._sampling.min_tokens
        self._new_text.append(self._show(token, may_stop))
        if self.finish_reason is None and self.sequence.finished:
            self.finish_reason = FinishReason.LENGTH
            self._new_text.append(self._text.finish())
        self._changed.set()

    def fail(self, error: WorkerLostError) -> None:
        """End the answer with an error, unless it is complete."""
        self._error = error
        self._changed.set()

    async def next_output(self) -> EngineOutput:
        """Wait for output and return all there is.

        Raises:
            WorkerLostError: the engine ended before the answer did.
        """
        await self._changed.wait()
        self._changed.clear()
        if self._error is not None and self.finish_reason is None:
            raise self._error
        cached_tokens = None if self._told_cached else self.sequence.cached_tokens
        self._told_cached = True
        tokens, self._new_tokens = self._new_tokens, []
        text, self._new_text = "".join(self._new_text), []
        return EngineOutput(tokens, text, self._take_logprobs(), self.finish_reason, self._stop_reason, cached_tokens)

    def _show(self, token: int, may_stop: bool) -> str:
        """Return the text to show for `token`; a token or string that ends the answer shows only when asked for."""
        if may_stop and (token in self._eos_ids or token in self._sampling.stop_token_ids):
            self.finish_reason = FinishReason.STOP
            self._stop_reason = None if token in self._eos_ids else token
            shown = self._text.push(token) if self._sampling.include_stop_str_in_output else ""
            return shown + self._text.finish()
        shown = self._text.push(token, may_stop)
        if self._text.stopped_by is not None:
            self.finish_reason, self._stop_reason = FinishReason.STOP, self._text.stopped_by
        return shown

    def _take_logprobs(self) -> list[PositionLogprobs] | None:
        if self._sampling.logprobs is None:
            return None
        logprobs, self._answer.logprobs = self._answer.logprobs, []
        return logprobs
