"""KV events from vLLM's own publisher until they are in an index on the other side of NATS.

    python -m benchmarks.kv_events [--rounds N] [--blocks N] [--json FILE]

Three processes, as in a graph: an engine's core (only vLLM's publisher, which is given events of 64 blocks of 32 tokens), a
worker (reads, hashes anew, publishes batches), and a router's index (here). `benchmarks.routing` measures the router itself.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.report import show, spread, write_json
from components.bus.client import Bus
from components.bus.server import NatsServerPlan
from components.graph.schema import Nats
from components.router.kv_index import KvIndex
from components.wire.kv import KvBatch, KvRemoved, KvStored, Tier
from components.wire.subjects import Subjects
from components.worker.kv_publisher import KvPublisher

SUBJECTS = Subjects("bench")
EVENT_BLOCKS, BLOCK_SIZE = 64, 32
PINGS = 200
PING_PAUSE_S = 0.005


def event(name: int, rng: random.Random) -> Any:
    """Return vLLM's event of 64 new blocks of one prompt; blocks are called by numbers no other event has."""
    from vllm.distributed.kv_events import BlockStored

    tokens = [rng.randrange(128_000) for _ in range(EVENT_BLOCKS * BLOCK_SIZE)]
    hashes = list(range(name * EVENT_BLOCKS, (name + 1) * EVENT_BLOCKS))
    return BlockStored(hashes, None, tokens, BLOCK_SIZE, None, "GPU", None)


def batches(blocks: int, seed: int) -> list[Any]:
    """Return as many batches, of one event each, as make up `blocks`."""
    from vllm.distributed.kv_events import KVEventBatch

    rng = random.Random(seed)
    return [KVEventBatch(ts=time.time(), events=[event(name, rng)]) for name in range(blocks // EVENT_BLOCKS)]


def play_engine(config: dict[str, str], blocks: int) -> None:
    """Play the engine's core: a few single events, then all as fast as vLLM's publisher takes them; tell when."""
    from vllm.distributed.kv_events import ZmqEventPublisher

    made = batches(blocks + PINGS * EVENT_BLOCKS, seed=1)
    publisher = ZmqEventPublisher(0, config["endpoint"], config["replay_endpoint"])
    gc.freeze()  # as vLLM's core does
    _say("ready")
    sys.stdin.readline()
    pings = []
    for batch in made[:PINGS]:
        pings.append(time.monotonic())
        publisher.publish(batch)
        time.sleep(PING_PAUSE_S)
    _say({"pings": pings})
    sys.stdin.readline()
    began = time.monotonic()
    for batch in made[PINGS:]:
        publisher.publish(batch)
    _say({"began": began})
    sys.stdin.readline()
    publisher.shutdown()


async def play_worker(url: str) -> None:
    """Play the worker, without its engine."""
    from components.engine.vllm_compat import kv_events
    from components.engine.vllm_kv import KvStream

    stream = KvStream("demo", BLOCK_SIZE, partial(kv_events, cpu_tier=Tier.HOST))
    stream.open()
    bus = await Bus.connect(Nats(url=url), "w")
    publisher = KvPublisher(bus, SUBJECTS, "w", "life", CollectorRegistry())
    await publisher.listen()
    gc.freeze()  # as the warm start does
    _say(stream.config)
    publishing = asyncio.create_task(publisher.run(stream.updates()))
    await asyncio.to_thread(sys.stdin.readline)
    stream.close()
    await publishing
    await bus.close()


def translate(blocks: int) -> float:
    """Return how many million blocks a second one core decodes and hashes anew."""
    from components.engine.kv_translate import KvTranslator
    from components.engine.vllm_compat import kv_events

    payloads = [msgspec.msgpack.encode(batch) for batch in batches(blocks, seed=2)]
    translator = KvTranslator("demo", BLOCK_SIZE)
    began = time.perf_counter()
    for payload in payloads:
        translator.apply(kv_events(payload, Tier.HOST))
    seconds = time.perf_counter() - began
    update = translator.take()
    if update is None or sum(len(c.blocks) for c in update.changes if isinstance(c, KvStored)) != blocks:
        raise SystemExit("blocks are missing")
    return blocks / seconds / 1e6


class Index:
    """What a router does with batches, and when it had done it."""

    def __init__(self) -> None:
        self.index = KvIndex()
        self.seen_s: list[float] = []
        self.blocks = 0
        self._more = asyncio.Event()
        self.next_seq = 0

    async def take(self, batch: KvBatch) -> None:
        """Apply one batch."""
        if batch.changes and batch.seq != self.next_seq:
            raise SystemExit("a batch is missing")
        self.next_seq = batch.seq + 1
        for change in batch.changes:
            if isinstance(change, KvStored):
                self.index.stored("w", change.blocks, change.parent)
                self.blocks += len(change.blocks)
                self.seen_s += [time.monotonic()] * (len(change.blocks) // EVENT_BLOCKS)
            elif isinstance(change, KvRemoved):
                self.index.removed("w", change.blocks, change.parents)
        self._more.set()

    async def has(self, blocks: int) -> float:
        """Wait until so many blocks are visible; return when the last one was."""
        async with asyncio.timeout(60):
            while self.blocks < blocks:
                self._more.clear()
                await self._more.wait()
        return self.seen_s[-1]


async def measure(url: str, blocks: int) -> dict[str, float]:
    """Return one round's figures of the whole way."""
    bus, index = await Bus.connect(Nats(url=url), "r"), Index()
    await bus.subscribe(SUBJECTS.kv_events("w"), KvBatch, index.take)
    await bus.flush()
    async with _child("worker", url) as worker:
        config = await _told(worker)
        async with _child("engine", json.dumps(config), str(blocks)) as engine:
            await _told(engine)
            await asyncio.sleep(0.5)  # sockets find each other
            _nudge(engine)
            pings = (await _told(engine))["pings"]
            await index.has(PINGS * EVENT_BLOCKS)
            latencies = sorted((seen - sent) * 1e3 for seen, sent in zip(index.seen_s, pings, strict=True))
            processes = {"engine": engine.pid, "worker": worker.pid, "index": os.getpid()}
            before = _cpu_us(processes)
            _nudge(engine)
            began = (await _told(engine))["began"]
            seconds = await index.has(PINGS * EVENT_BLOCKS + blocks) - began
            events = blocks // EVENT_BLOCKS
            cpu_us = {f"{name}_cpu_us": (after - before[name]) / events for name, after in _cpu_us(processes).items()}
            _nudge(engine)
        _nudge(worker)
    await bus.close()
    return {
        "mblocks_per_s": blocks / seconds / 1e6,
        "p50_ms": statistics.median(latencies),
        "p99_ms": latencies[int(len(latencies) * 0.99)],
        **cpu_us,
    }


async def main(rounds: int, blocks: int, path: Path | None) -> None:
    """Measure, and show medians."""
    results: dict[str, list[float]] = {"translate_mblocks_per_s": [translate(blocks) for _ in range(rounds)]}
    with tempfile.TemporaryDirectory() as folder:
        plan = NatsServerPlan(Path(folder), name="bench")
        plan.write()
        os.environ.update(plan.environment)
        with (Path(folder) / "log").open("wb") as log:
            server = await asyncio.create_subprocess_exec(*plan.argv, stdout=log, stderr=log)
        try:
            url = (await plan.settings(server.pid)).url
            for _ in range(rounds):
                for name, value in (await measure(url, blocks)).items():
                    results.setdefault(name, []).append(value)
        finally:
            server.terminate()
            await server.wait()
    show(
        f"KV events, {EVENT_BLOCKS} blocks of {BLOCK_SIZE} tokens an event, {blocks} blocks: median (min to max, rounds)",
        ["what", "figure"],
        [
            ["decoded and hashed anew in one process, million blocks/s", spread(results["translate_mblocks_per_s"], 3)],
            ["vLLM's publisher to the index over NATS, million blocks/s", spread(results["mblocks_per_s"], 3)],
            ["the same, one event: p50 ms", spread(results["p50_ms"])],
            ["the same, one event: p99 ms", spread(results["p99_ms"])],
            *(
                [f"CPU of the {name}, µs an event", spread(results[f"{name}_cpu_us"])]
                for name in ("engine", "worker", "index")
            ),
        ],
    )
    write_json(path, {"blocks": blocks, "event_blocks": EVENT_BLOCKS, **results})


def _cpu_us(processes: dict[str, int]) -> dict[str, float]:
    """Return the CPU time each has taken so far, all threads, sockets included."""
    times = {name: psutil.Process(pid).cpu_times() for name, pid in processes.items()}
    return {name: (each.user + each.system) * 1e6 for name, each in times.items()}


def _say(what: object) -> None:
    sys.stdout.write("TOLD " + json.dumps(what) + "\n")
    sys.stdout.flush()


async def _told(child: asyncio.subprocess.Process) -> Any:
    """Return the next thing a child says; vLLM says others."""
    assert child.stdout is not None
    async with asyncio.timeout(120):
        while line := await child.stdout.readline():
            if line.startswith(b"TOLD "):
                return json.loads(line[5:])
    raise SystemExit("a child process died")


def _nudge(child: asyncio.subprocess.Process) -> None:
    assert child.stdin is not None
    child.stdin.write(b"\n")


@asynccontextmanager
async def _child(role: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    argv = [sys.executable, "-m", "benchmarks.kv_events", role, *arguments]
    child = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, limit=1 << 22)
    try:
        yield child
        await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        play_engine(json.loads(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["worker"]:
        uvloop.run(play_worker(sys.argv[2]))
    else:
        parser = argparse.ArgumentParser(description="KV events from vLLM's publisher to the index over NATS")
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--blocks", type=int, default=262_144)
        parser.add_argument("--json", type=Path)
        options = parser.parse_args()
        uvloop.run(main(options.rounds, options.blocks, options.json))
