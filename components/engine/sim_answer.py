"""What the simulated engine says: a sequence's next token, and what of its text may be shown.

A random token is drawn from a hash of every token before it. So a prompt followed by the first tokens of its answer
goes on with the rest of the same answer, on any worker. Temperature, top_p, top_k, min_p and penalties change nothing,
for there is no distribution to shape; `seed` (unless greedy), `logit_bias` and `allowed_token_ids` do.
"""

import math
from array import array

import xxhash

from components.model.text_stream import TextStream
from components.model.tokenizer import Tokenizer
from components.wire.messages import GenerateRequest, PositionLogprobs, Sampling, TokenLogprob

_BEST_LOGPROB = math.log(0.6)  # of the best candidate; each further one is 0.4 times as likely
_NEXT_LOGPROB = math.log(0.4)
_OTHER_LOGPROB = -30.0  # of tokens that are no candidates
_CANDIDATES = 24
_MASK = (1 << 64) - 1


class Vocabulary:
    """A tokenizer, and which of its tokens make text; looked up once for each token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.size = tokenizer.vocab_size
        self.eos_ids = tokenizer.eos_ids
        self._texts: dict[int, str] = {}

    def text(self, token_id: int) -> str:
        """Return the text of one token."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.tokenizer.token_text(token_id)
        return text

    def speakable(self, token_id: int) -> bool:
        """Return whether a token makes text on its own: no special token, no part of a character."""
        text = self.text(token_id)
        return bool(text) and "\ufffd" not in text and token_id not in self.tokenizer.special_ids


class Answer:
    """The tokens of one answer, drawn one after the other."""

    def __init__(self, request: GenerateRequest, vocabulary: Vocabulary, echo: bool) -> None:
        sampling = request.sampling
        seed = sampling.seed or 0 if sampling.temperature > 0 else 0
        self._hash = xxhash.xxh3_64(array("I", request.token_ids).tobytes(), seed=seed & _MASK)
        self._vocabulary = vocabulary
        self._sampling = sampling
        self._spoken = 0
        self._echo = _sayable(request, vocabulary) if echo else None
        self._echoed = request.replayed_tokens
        self._ending = frozenset((*sampling.stop_token_ids, *vocabulary.eos_ids)) if sampling.min_tokens else frozenset()
        self._plain = not (sampling.logit_bias or sampling.allowed_token_ids or sampling.logprobs is not None)
        self.logprobs: list[PositionLogprobs] = []

    def next_token(self) -> int:
        """Draw the next token; when asked for, `logprobs` grows by its entry."""
        if self._echo is not None:
            chosen = self._next_echo(self._echo)
            candidates = [] if self._plain else self._candidates(_CANDIDATES, chosen)
        else:
            candidates = self._candidates(1 if self._plain else _CANDIDATES)
            chosen = candidates[0] if self._plain else self._best(candidates)
        if self._sampling.logprobs is not None:
            self.logprobs.append(self._position(chosen, candidates, self._sampling.logprobs))
        self._hash.update(chosen.to_bytes(4, "little"))
        self._spoken += 1
        return chosen

    def _next_echo(self, said: list[int]) -> int:
        index = self._echoed
        self._echoed += 1
        may_end = not self._sampling.ignore_eos and self._spoken >= self._sampling.min_tokens
        if (index >= len(said) and may_end and self._vocabulary.eos_ids) or not said:
            return self._vocabulary.eos_ids[0] if self._vocabulary.eos_ids else 0
        return said[index % len(said)]

    def _candidates(self, count: int, first: int | None = None) -> list[int]:
        """Return up to `count` tokens, the likeliest first."""
        pool = sorted(set(self._sampling.allowed_token_ids))
        barred = self._ending if self._spoken < self._sampling.min_tokens else ()
        pool_size = len(pool) or self._vocabulary.size
        found: dict[int, None] = {} if first is None else {first: None}
        state = self._hash.intdigest()
        for _ in range(64 * count):
            state = (state * 6364136223846793005 + 1442695040888963407) & _MASK
            token = state % pool_size if not pool else pool[(state >> 20) % pool_size]
            if token not in found and token not in barred and (pool or self._vocabulary.speakable(token)):
                found[token] = None
                if len(found) == count:
                    break
        return list(found) or pool[:1] or [0]

    def _best(self, candidates: list[int]) -> int:
        """Return the likeliest candidate after `logit_bias`, which may bring in tokens of its own."""
        bias = self._sampling.logit_bias
        scores = {token: _logprob(rank) for rank, token in enumerate(candidates)}
        for token in bias:
            if not self._sampling.allowed_token_ids or token in self._sampling.allowed_token_ids:
                scores[token] = scores.get(token, _OTHER_LOGPROB) + bias[token]
        return max(scores, key=lambda token: (scores[token], -token))

    def _position(self, chosen: int, candidates: list[int], count: int) -> PositionLogprobs:
        entries = [
            TokenLogprob(token, self._vocabulary.text(token), _logprob(rank), rank + 1)
            for rank, token in enumerate(candidates)
        ]
        by_token = {entry.token_id: entry for entry in entries}
        other = TokenLogprob(chosen, self._vocabulary.text(chosen), _OTHER_LOGPROB)
        return PositionLogprobs(by_token.get(chosen, other), tuple(entries[:count]))


class AnswerText:
    """The text of one answer, up to its stop string; holds back what may become one.

    Attributes:
        stopped_by: the stop string that was found.
    """

    def __init__(self, request: GenerateRequest, tokenizer: Tokenizer) -> None:
        """Begin after the request's tokens; those an earlier attempt generated are prompt too, as they are to vLLM."""
        sampling = request.sampling
        self._stream = TextStream(tokenizer, request.token_ids, sampling.skip_special_tokens)
        self._sampling = sampling
        self._held_chars = max(map(len, sampling.stop), default=1) - 1
        self._pending = ""
        self.stopped_by: str | None = None

    def push(self, token_id: int, may_stop: bool = True) -> str:
        """Add a token and return the text to show now."""
        self._pending += self._stream.push(token_id)
        if may_stop and self._sampling.stop and self._cut_at_stop():
            return self._take(len(self._pending))
        return self._take(len(self._pending) - self._held_chars)

    def finish(self) -> str:
        """Return what was held back, after the last token of an answer no stop string ended."""
        self._pending += self._stream.flush()
        return self._take(len(self._pending))

    def _take(self, chars: int) -> str:
        if chars <= 0:
            return ""
        text, self._pending = self._pending[:chars], self._pending[chars:]
        return text

    def _cut_at_stop(self) -> bool:
        found = [(at, stop) for stop in self._sampling.stop if (at := self._pending.find(stop)) >= 0]
        if not found:
            return False
        at, self.stopped_by = min(found)
        end = at + len(self.stopped_by) if self._sampling.include_stop_str_in_output else at
        self._pending = self._pending[:end]
        return True


def _sayable(request: GenerateRequest, vocabulary: Vocabulary) -> list[int]:
    """Return the client's own prompt without special tokens."""
    prompt_tokens = len(request.token_ids) - request.replayed_tokens
    special = vocabulary.tokenizer.special_ids
    return [token_id for token_id in request.token_ids[:prompt_tokens] if token_id not in special]


def _logprob(rank: int) -> float:
    return _BEST_LOGPROB + rank * _NEXT_LOGPROB


def refusal(sampling: Sampling, echo: bool) -> str | None:
    """Return which field of `sampling` the simulated engine cannot honour, if any."""
    if sampling.structured_outputs is not None:
        return "response_format"
    if sampling.bad_words:
        return "bad_words"
    if echo and sampling.logit_bias:
        return "logit_bias"
    if echo and sampling.allowed_token_ids:
        return "allowed_token_ids"
    return None
