"""The peer's side of `benchmarks.index`: Dynamo's RadixTree binding, run by its own Python, one JSON line a task.

Knows only the package ai-dynamo-runtime. Its tree wants JSON events, encoded before the clock starts, and takes them on a
thread of its own, so a lookup that waits for that thread ends each measurement of ingest.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from dynamo.llm import RadixTree, compute_block_hash_for_seq

from benchmarks.index_load import measure


class Dynamo:
    """RadixTree, and the hash its frontend uses."""

    def fresh(self) -> None:
        """Start with an empty index."""
        self._tree = RadixTree()
        self._events = 0

    def event(self, worker: int, parent: int | None, blocks: list[int]) -> tuple[int, bytes]:
        """Return a stored event."""
        self._events += 1
        stored = {"parent_hash": parent, "blocks": [{"block_hash": block, "tokens_hash": block} for block in blocks]}
        event = {"event_id": self._events, "dp_rank": 0, "data": {"stored": stored}}
        return worker, json.dumps(event, separators=(",", ":")).encode()

    def apply(self, event: tuple[int, bytes]) -> None:
        """Take one event."""
        self._tree.apply_event(*event)

    def settle(self) -> None:
        """Wait for the tree's thread."""
        self._tree.find_matches([1])

    def find(self, blocks: list[int]) -> Any:
        """Look a prompt up."""
        return self._tree.find_matches(blocks)

    def lengths(self, found: Any) -> dict[int, int]:
        """Return worker to blocks."""
        return {worker: length for (worker, _), length in found.scores.items()}

    def hash(self, token_ids: list[int], block_size: int) -> Sequence[int]:
        """Hash a prompt's blocks (each by itself; its tree chains them)."""
        return compute_block_hash_for_seq(token_ids, block_size)


def main() -> None:
    """Say the version, then do one task a line."""
    side = Dynamo()
    print(json.dumps({"version": version("ai-dynamo-runtime")}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(side, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
