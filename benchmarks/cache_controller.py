"""How fast the cache controller answers, over HTTP: /query_worker_info with 1,000 workers, lookups over a million chunks.

Workers and their chunks are reported over ZeroMQ in LMCache's own messages, as engines report them.

    python -m benchmarks.cache_controller --out cache_controller.json
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
import zmq
import zmq.asyncio

from benchmarks.report import show, write_json
from components.cache_controller.hashing import Scheme, chunk_hashes, root_of
from components.cache_controller.lmcache_messages import load_messages
from components.cache_controller.process import run
from components.graph.schema import CacheController

LOCATION = "LocalCPUBackend"
PROMPT = list(range(1000, 9000))
REPORTED_AT_ONCE = 2000


async def measure(workers: int, chunks: int, calls: int) -> dict[str, Any]:
    """Fill a controller and time its calls."""
    settings = CacheController(
        port=19500, monitor_port=19501, log_level="error", max_chunks=10 * chunks, worker_timeout_s=3600
    )
    ready, stopping = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(run(settings, ready, stopping))
    await ready.wait()
    try:
        filled_s = await _fill(settings, workers, chunks)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{settings.port}") as http:
            stats = await (await http.get("/controller/key-stats")).json()
            assert stats["total_worker_count"] == workers, stats
            rows = {
                "query_worker_info, all": await _time(http, "/query_worker_info", {"instance_id": "all"}, calls),
                "query_worker_info, one": await _time(http, "/query_worker_info", {"instance_id": "i7"}, calls),
                "lookup, 8,000 tokens held": await _time(http, "/lookup", {"tokens": PROMPT}, calls),
                "lookup, 8,000 tokens, miss": await _time(http, "/lookup", {"tokens": PROMPT[::-1]}, calls),
                "full_lookup, 8,000 tokens": await _time(http, "/full_lookup", {"tokens": PROMPT}, calls),
            }
        return {"workers": workers, "chunks": stats["total_key_count"], "filled_s": round(filled_s, 2), "ms": rows}
    finally:
        stopping.set()
        await task


async def _fill(settings: CacheController, workers: int, chunks: int) -> float:
    """Register workers and report their chunks; one in a hundred holds the prompt. Return how long that took."""
    messages = load_messages()
    encode = messages.msgspec.msgpack.encode
    context = zmq.asyncio.Context()
    dealer, push = context.socket(zmq.DEALER), context.socket(zmq.PUSH)
    dealer.connect(f"tcp://127.0.0.1:{settings.monitor_port + 1}")
    push.connect(f"tcp://127.0.0.1:{settings.monitor_port}")
    prompt = chunk_hashes(PROMPT, Scheme(root_of("builtin", "0"), settings.chunk_size))
    began = time.monotonic()
    each = chunks // workers
    for worker in range(workers):
        name = f"i{worker}"
        await dealer.send_multipart([b"", encode(messages.RegisterMsg(name, 0, "127.0.0.1", 1, None))])
        await dealer.recv_multipart()
        held = [hash((worker, index)) for index in range(each)]
        if worker % 100 == 0:
            held[: len(prompt)] = prompt
        for start in range(0, each, REPORTED_AT_ONCE):
            part = enumerate(held[start : start + REPORTED_AT_ONCE], start)
            operations = [messages.KVOpEvent(messages.OpType.ADMIT, key, number) for number, key in part]
            await push.send(encode(messages.BatchedKVOperationMsg(name, 0, LOCATION, operations)))
    async with aiohttp.ClientSession(f"http://127.0.0.1:{settings.port}") as http:
        while (await (await http.get("/controller/key-stats")).json())["total_key_count"] < each * workers:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    context.destroy(linger=0)
    return time.monotonic() - began


async def _time(http: aiohttp.ClientSession, path: str, body: dict[str, Any], calls: int) -> dict[str, float]:
    """Return percentiles of one call, one after the other on one connection, in milliseconds."""
    data = json.dumps(body)
    taken = []
    for _ in range(calls + 10):
        began = time.perf_counter()
        async with http.post(path, data=data) as answer:
            assert answer.status == 200
            await answer.read()
        taken.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(taken[10:], n=100)
    return {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.workers, arguments.chunks, arguments.calls))
    title = f"{result['workers']} workers, {result['chunks']} chunks, reported in {result['filled_s']} s; milliseconds"
    rows = [[call, str(times["p50"]), str(times["p99"])] for call, times in result["ms"].items()]
    show(title, ["call", "p50", "p99"], rows)
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
