"""What requests under way were predicted to load from an LMCache server: if the engine finds less, the index was wrong.

Not every loss is told of; a first token with fewer cached tokens than predicted shows it. What was stored since the choice,
by the very request that missed it perhaps, is no loss. Pure; knows no time.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

_MAX_BLOCKS = 500_000


class _Prediction(NamedTuple):
    worker: str
    store: str
    blocks: Sequence[int]
    reused: int  # leading blocks that need not be computed
    at: int  # how often had been told of stores by then


class Missing(NamedTuple):
    """Blocks that a store did not supply, and the block before each."""

    store: str
    blocks: list[int]
    parents: list[int | None]


class Predictions:
    """By request; the oldest make room."""

    def __init__(self, max_blocks: int = _MAX_BLOCKS) -> None:
        """Predict nothing yet.

        Args:
            max_blocks: most blocks of prompts kept, over all requests.
        """
        self._max_blocks = max_blocks
        self._blocks = 0
        self._by_request: OrderedDict[str, _Prediction] = OrderedDict()
        self._tellings = 0
        self._told: dict[int, int] = {}  # block → the telling that it is stored, while requests are under way

    def __len__(self) -> int:
        return len(self._by_request)

    def note(self, request_id: str, worker: str, store: str, blocks: Sequence[int], reused: int) -> None:
        """Remember that `worker` shall need to compute nothing of the first `reused` of a prompt's `blocks`."""
        self.forget(request_id)
        self._by_request[request_id] = _Prediction(worker, store, blocks, reused, self._tellings)
        self._blocks += len(blocks)
        while self._blocks > self._max_blocks:
            self.forget(next(iter(self._by_request)))

    def stored(self, blocks: Sequence[int]) -> None:
        """Note that somebody tells now that these are in a store."""
        if self._by_request:
            self._tellings += 1
            self._told.update(dict.fromkeys(blocks, self._tellings))
        if not self._by_request or len(self._told) > self._max_blocks:
            self._told.clear()

    def check(self, request_id: str, worker: str, cached_blocks: int) -> Missing | None:
        """Compare with what `worker` found; return what its store lacks. Each prediction is checked once."""
        prediction = self._by_request.get(request_id)
        self.forget(request_id)
        if prediction is None or prediction.worker != worker or cached_blocks >= prediction.reused:
            return None
        missing = prediction.blocks[cached_blocks : prediction.reused]
        first_parent = prediction.blocks[cached_blocks - 1] if cached_blocks else None
        pairs = zip(missing, [first_parent, *missing[:-1]], strict=True)
        lacking = [pair for pair in pairs if self._told.get(pair[0], 0) <= prediction.at]
        return Missing(prediction.store, [block for block, _ in lacking], [parent for _, parent in lacking])

    def forget(self, request_id: str) -> None:
        """Drop a request that has ended."""
        if prediction := self._by_request.pop(request_id, None):
            self._blocks -= len(prediction.blocks)
