"""What requests under way were predicted to load from an LMCache server: if the engine finds less, the index was wrong.

On a CPU nobody tells of evictions; a first token with fewer cached tokens than predicted does. Pure; knows no time.
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

    def __len__(self) -> int:
        return len(self._by_request)

    def note(self, request_id: str, worker: str, store: str, blocks: Sequence[int], reused: int) -> None:
        """Remember that `worker` shall need to compute nothing of the first `reused` of a prompt's `blocks`."""
        self.forget(request_id)
        self._by_request[request_id] = _Prediction(worker, store, blocks, reused)
        self._blocks += len(blocks)
        while self._blocks > self._max_blocks:
            self.forget(next(iter(self._by_request)))

    def check(self, request_id: str, worker: str, cached_blocks: int) -> Missing | None:
        """Compare with what `worker` found; return what its store lacks. Each prediction is checked once."""
        prediction = self._by_request.get(request_id)
        self.forget(request_id)
        if prediction is None or prediction.worker != worker or cached_blocks >= prediction.reused:
            return None
        missing = list(prediction.blocks[cached_blocks : prediction.reused])
        first_parent = prediction.blocks[cached_blocks - 1] if cached_blocks else None
        return Missing(prediction.store, missing, [first_parent, *missing[:-1]])

    def forget(self, request_id: str) -> None:
        """Drop a request that has ended."""
        if prediction := self._by_request.pop(request_id, None):
            self._blocks -= len(prediction.blocks)
