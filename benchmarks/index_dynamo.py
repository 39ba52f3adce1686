"""The peer's side of `benchmarks.index`: Dynamo's RadixTree and SelectionService, in its own Python, a JSON line a task.

Knows only the package ai-dynamo-runtime. Its tree wants JSON events, encoded before the clock starts, and takes them on a
thread of its own, so a lookup that waits for that thread ends each measurement of ingest.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from dynamo.llm import RadixTree, SelectionService, compute_block_hash_for_seq

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


async def select(workers: int, tokens: int, count: int = 200) -> dict[str, float]:
    """Microseconds a choice of `SelectionService`, load booked; nobody publishes at the workers' event endpoints."""
    service = SelectionService()
    for worker in range(workers):
        where = {"endpoint": f"http://127.0.0.1:{9 + worker}", "kv_events_endpoints": {0: f"tcp://127.0.0.1:{900 + worker}"}}
        await service.upsert_worker({"worker_id": worker + 1, "model_name": "m", "block_size": 32, **where})
    rng = random.Random(tokens)
    prompts = [[rng.randrange(128_000) for _ in range(tokens)] for _ in range(16)]
    seconds = []
    for number in range(count):
        asked = {"model_name": "m", "token_ids": prompts[number % 16], "selection_id": str(number)}
        began = time.perf_counter()
        await service.select_and_reserve(asked)
        seconds.append(time.perf_counter() - began)
        if number >= 16:
            await service.free_reservation(str(number - 16))
    service.shutdown()
    seconds.sort()
    return {"p50_us": seconds[count // 2] * 1e6, "p99_us": seconds[int(count * 0.99)] * 1e6}


def main() -> None:
    """Say the version, then do one task a line."""
    side = Dynamo()
    print(json.dumps({"version": version("ai-dynamo-runtime")}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        choosing = task["do"] == "select"
        found = asyncio.run(select(task["workers"], task["tokens"])) if choosing else measure(side, task)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
