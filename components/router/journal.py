"""The last decisions, and how they turned out. Holds no prompt, no token and no block hash."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

_KEPT = 16_384


@dataclass(slots=True)
class Entry:
    """One decision.

    Attributes:
        request_id: the processor's.
        unix_s: when.
        worker: the choice.
        prompt_tokens: the prompt's length.
        overlap_blocks: reusable blocks the worker's engine held, by its events.
        expected_blocks: the same, with what was routed there a moment ago.
        fetch_blocks: further blocks it could load from a slower tier.
        uncached_tokens: left to compute.
        cost_ms: predicted.
        candidates: how many workers there were to choose from.
        trust: in what was known of the chosen worker.
        decided_us: how long the decision took.
        ttft_ms: what came of it: time to first token; None until known.
        cached_tokens: what the engine says it reused; None until known.
        finished: whether the request has ended.
    """

    request_id: str
    unix_s: float
    worker: str
    prompt_tokens: int
    overlap_blocks: int
    expected_blocks: int
    fetch_blocks: int
    uncached_tokens: int
    cost_ms: float
    candidates: int
    trust: str
    decided_us: float
    ttft_ms: float | None = None
    cached_tokens: int | None = None
    finished: bool = False


class Journal:
    """The last decisions of this router."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def write(self, entry: Entry) -> None:
        """Add a decision; the oldest makes room."""
        self._entries[entry.request_id] = entry
        if len(self._entries) > _KEPT:
            self._entries.popitem(last=False)

    def find(self, request_id: str) -> Entry | None:
        """Return a decision made here, while it is remembered."""
        return self._entries.get(request_id)

    def last(self, count: int) -> Iterator[Entry]:
        """Return the newest decisions, newest first."""
        return itertools.islice(reversed(self._entries.values()), count)
