"""One sequence of an answer: what has come of it, and how the output of a second worker joins that of the first. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from components.processor.render import Prompt
from components.processor.resume import Joint, join, joint
from components.wire.messages import FinishReason, PositionLogprobs, Sampling, TokenDelta, ToolCallDelta

Decode = Callable[[list[int], bool], str]
"""Text of token ids; the flag tells whether special tokens are skipped."""

_CONTEXT_TOKENS = 8


@dataclass
class Sequence:
    """One sequence, and all that has come of it.

    Attributes:
        index: its number in the answer.
        prompt: what it continues.
        sampling: how its tokens are chosen.
        token_ids: what was generated.
        texts: its text, in pieces.
        logprobs: one entry a token, when asked for.
        tool_calls: pieces of tool calls from the worker's parser.
        reasoning: text of the reasoning from there, in pieces.
        finish_reason: set at the end.
        stop_reason: what ended it.
        cached_tokens: prompt tokens whose KV the first worker reused.
        replays: how often it was moved.
        tried: workers that lost it.
        worker: the one that has it, or had it last.
        joint: how the output of the present worker joins what came before.
    """

    index: int
    prompt: Prompt
    sampling: Sampling
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int | None = None
    replays: int = 0
    tried: set[str] = field(default_factory=set)
    worker: str = ""
    joint: Joint | None = None

    def restart(self) -> None:
        """Forget everything that has come."""
        for pieces in (self.token_ids, self.texts, self.logprobs, self.tool_calls, self.reasoning):
            pieces.clear()
        self.joint = None

    def take(self, delta: TokenDelta, tokens_seen: bool) -> TokenDelta:
        """Add `delta`, and return what of it the client has not seen.

        Args:
            delta: the worker's next output.
            tokens_seen: whether the client is shown tokens as they come, not only text.

        Raises:
            WorkerLostError: a second worker does not say what the client has been shown of the first.
        """
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.tool_calls += delta.tool_calls
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        if self.cached_tokens is None:
            self.cached_tokens = delta.cached_tokens
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        if self.joint is not None:
            text, again = join(self.joint, delta, tokens_seen)
            logprobs = delta.logprobs and delta.logprobs[again:]
            delta = msgspec.structs.replace(delta, text=text, token_ids=delta.token_ids[again:], logprobs=logprobs)
        if delta.text:
            self.texts.append(delta.text)
        return delta

    def rejoin(self, decode: Decode, seen: bool) -> None:
        """Make ready for a second worker: keep what can be kept, and note how its output will join.

        Args:
            decode: text of token ids.
            seen: whether the client has been shown what came so far.

        Raises:
            WorkerLostError: the text that was shown is not that of the tokens.
        """
        shown = "".join(self.texts)
        point = joint(self.token_ids, shown, self.sampling.stop, lambda tokens: self._text(tokens, decode))
        del self.token_ids[point.keep :]
        del self.logprobs[point.keep :]
        if not seen:
            shown = shown[: len(shown) - len(point.seen_text)]
            point.seen_text, point.seen_tokens = "", ()
        elif self.joint is not None:
            point.seen_tokens += self.joint.seen_tokens
        self.texts, self.joint = [shown], point

    def _text(self, tokens: list[int], decode: Decode) -> str:
        """Return the text of output tokens as it reads after the prompt."""
        skip = self.sampling.skip_special_tokens
        before = self.prompt.token_ids[-_CONTEXT_TOKENS:]
        start, whole = decode(before, skip), decode(before + tokens, skip)
        return whole[len(start) :] if whole.startswith(start) else decode(tokens, skip)
