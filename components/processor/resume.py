"""Where a lost sequence goes on when another worker takes it over. Pure.

A client may have been shown less text than its tokens hold: an engine holds text back while a character is incomplete or
a stop string may have begun. The new worker reads the kept tokens as prompt, so what was held back must be shown by us,
or those tokens dropped and generated again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from components.wire.errors import WorkerLostError
from components.wire.messages import Sampling, TokenDelta

_MOST_DROPPED = 64
_INCOMPLETE = "\ufffd"


@dataclass
class Joint:
    """How the new worker's output joins what the client has.

    Attributes:
        keep: tokens that stay; the others are generated again.
        held: text of kept tokens the client has not been shown; goes before the new text.
        seen_text: text of dropped tokens the client was shown; the new text must begin with it.
        seen_tokens: dropped tokens the client was shown; the new tokens must begin with them, if it looks at tokens.
    """

    keep: int
    held: str = ""
    seen_text: str = ""
    seen_tokens: tuple[int, ...] = ()


def exact(sampling: Sampling) -> bool:
    """Return whether tokens as prompt do the same as tokens as output: not for grammars and output penalties."""
    penalised = sampling.presence_penalty or sampling.frequency_penalty
    return sampling.structured_outputs is None and not penalised


def joint(tokens: list[int], shown: str, stops: Sequence[str], decode: Callable[[list[int]], str]) -> Joint:
    """Return where to go on after `tokens`, of whose text the client was shown `shown`; keeps as many as it can.

    Args:
        tokens: what was generated so far.
        shown: the text of it that the client has.
        stops: strings at which generation ends.
        decode: the text of tokens at this place.

    Raises:
        WorkerLostError: `shown` is not the text of `tokens`.
    """
    for keep in range(len(tokens), max(-1, len(tokens) - _MOST_DROPPED - 1), -1):
        text = decode(tokens[:keep])
        if text.endswith(_INCOMPLETE):
            continue
        dropped = tuple(tokens[keep:])
        if text.startswith(shown) and not any(_may_begin(stop, text[len(shown) :]) for stop in stops):
            return Joint(keep, held=text[len(shown) :], seen_tokens=dropped)
        if shown.startswith(text):
            return Joint(keep, seen_text=shown[len(text) :], seen_tokens=dropped)
    raise WorkerLostError("the worker was lost, and its output cannot be continued elsewhere")


def join(point: Joint, delta: TokenDelta, strict_tokens: bool) -> tuple[str, int]:
    """Return what of the new worker's `delta` is new to the client: text, and how many first tokens are not.

    Args:
        point: the joint; what is used up is taken from it.
        delta: the new worker's next output.
        strict_tokens: whether the client looks at tokens.

    Raises:
        WorkerLostError: the new worker says something else than the client was shown already.
    """
    again = min(len(point.seen_tokens), len(delta.token_ids))
    if strict_tokens and tuple(delta.token_ids[:again]) != point.seen_tokens[:again]:
        raise WorkerLostError("the worker was lost, and another one continues differently")
    point.seen_tokens = point.seen_tokens[again:]
    text = delta.text
    overlap = min(len(text), len(point.seen_text))
    if text[:overlap] != point.seen_text[:overlap]:
        raise WorkerLostError("the worker was lost, and another one continues differently")
    point.seen_text = point.seen_text[overlap:]
    text, point.held = point.held + text[overlap:], ""
    return text, again


def _may_begin(stop: str, text: str) -> bool:
    """Return whether `stop` may begin within `text` and end after it."""
    return any(stop.startswith(text[-length:]) for length in range(1, min(len(stop), len(text)) + 1))
