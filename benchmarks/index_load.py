"""The work both sides of `benchmarks.index` do, and how it is timed. Standard library only: the peer has no more."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

LOOKUP_S = 0.1
"""How long one lookup is repeated for one figure."""


class Side(Protocol):
    """An index under measurement."""

    def fresh(self) -> None:
        """Start with an empty index."""
        ...

    def event(self, worker: int, parent: int | None, blocks: list[int]) -> Any:
        """Return a stored event in the form `apply` takes; not timed."""
        ...

    def apply(self, event: Any) -> None:
        """Take one event."""
        ...

    def settle(self) -> None:
        """Wait until all events are visible."""
        ...

    def find(self, blocks: list[int]) -> Any:
        """Look a prompt up; timed."""
        ...

    def lengths(self, found: Any) -> dict[int, int]:
        """Return what `find` found as worker to blocks."""
        ...

    def hash(self, token_ids: list[int], block_size: int) -> Sequence[int]:
        """Hash a prompt's blocks; timed."""
        ...


def measure(side: Side, task: dict[str, Any]) -> dict[str, float]:
    """Do one task: its ``do`` names the function below, the rest are its arguments."""
    arguments = {key: value for key, value in task.items() if key != "do"}
    tasks: dict[str, Callable[..., dict[str, float]]] = {
        "ingest": ingest,
        "populate": populate,
        "lookup": lookup,
        "hash": hashing,
    }
    return tasks[task["do"]](side, **arguments)


def ingest(side: Side, workers: int, blocks: int, event_blocks: int) -> dict[str, float]:
    """Millions of blocks a second into an empty index, until visible: prompts of 512 blocks, worker after worker."""
    rng = random.Random(event_blocks)
    side.fresh()
    events = []
    for worker in range(workers):
        for _ in range(blocks // workers // 512):
            events += _events(side, worker, _blocks(rng, 512), event_blocks)
    began = time.perf_counter()
    for event in events:
        side.apply(event)
    side.settle()
    return {"mblocks_per_s": len(events) * event_blocks / (time.perf_counter() - began) / 1e6}


def populate(side: Side, workers: int) -> dict[str, float]:
    """Fill an index for `lookup`: 1,000,000 blocks of others, and the prompts that are looked for."""
    rng = random.Random(workers)
    side.fresh()
    for worker in range(workers):
        for _ in range(1_000_000 // workers // 512):
            for event in _events(side, worker, _blocks(rng, 512), 64):
                side.apply(event)
    for size in (64, 512, 4096):
        for kind in ("one", "all", "half", "ends"):
            prompt = _prompt(size, kind)
            for worker, length in _holders(workers, size, kind).items():
                for event in _events(side, worker, prompt[:length], 64):
                    side.apply(event)
    side.settle()
    return {}


def lookup(side: Side, workers: int, size: int, kind: str) -> dict[str, float]:
    """Microseconds a lookup.

    ``one`` worker holds all of the prompt; ``all`` do; one holds ``half``; each holds a part of another length (``ends``);
    none holds any (``miss``).
    """
    prompt = _prompt(size, kind)
    found = side.lengths(side.find(prompt))
    if found != _holders(workers, size, kind):
        raise SystemExit(f"{type(side).__name__} found {found} for {kind}")
    return _timed(lambda: side.find(prompt))


def hashing(side: Side, tokens: int, block_size: int) -> dict[str, float]:
    """Microseconds to hash a prompt."""
    rng = random.Random(tokens)
    token_ids = [rng.randrange(128_000) for _ in range(tokens)]
    return _timed(lambda: side.hash(token_ids, block_size))


def _timed(call: Callable[[], Any]) -> dict[str, float]:
    seconds: list[float] = []
    until = time.perf_counter() + LOOKUP_S
    while not seconds or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    seconds.sort()
    return {"p50_us": statistics.median(seconds) * 1e6, "p99_us": seconds[int(len(seconds) * 0.99)] * 1e6}


def _blocks(rng: random.Random, count: int) -> list[int]:
    return [rng.getrandbits(60) for _ in range(count)]


def _prompt(size: int, kind: str) -> list[int]:
    return _blocks(random.Random(f"{size} {kind}"), size)


def _holders(workers: int, size: int, kind: str) -> dict[int, int]:
    if kind == "one":
        return {0: size}
    if kind == "all":
        return dict.fromkeys(range(workers), size)
    if kind == "half":
        return {1: size // 2}
    if kind == "ends":
        rng = random.Random(size)
        return {worker: rng.randint(1, size) for worker in range(workers)}
    return {}


def _events(side: Side, worker: int, blocks: list[int], event_blocks: int) -> list[Any]:
    starts = range(0, len(blocks), event_blocks)
    return [side.event(worker, blocks[at - 1] if at else None, blocks[at : at + event_blocks]) for at in starts]
