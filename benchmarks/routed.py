"""Two real vLLM workers on a load of shared prefixes: the same requests routed by KV and round-robin.

    python -m benchmarks.routed [--rounds N] [--json FILE]

Each round is a graph of its own, so that caches begin cold: some long beginnings, each asked about several times in random
order, four requests at a time; one engine holds only a part of all beginnings.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.report import machine, show, spread, write_json
from benchmarks.servers import Engine, Server, demo_engine, free_port, penstock_graph

PREFIXES = 8
PREFIX_TOKENS = 1600
ASKED = 8
TAIL_TOKENS = 40
OUTPUT_TOKENS = 8
CONCURRENCY = 4
KV_BLOCKS = 320
"""Of 32 tokens: six of the eight beginnings."""


def prompts(seed: int) -> list[list[int]]:
    """Return the prompts of one round, as token ids of the demo model."""
    rng = random.Random(seed)
    beginnings = [rng.choices(range(10, 500), k=PREFIX_TOKENS) for _ in range(PREFIXES)]
    asked = [beginning + rng.choices(range(10, 500), k=TAIL_TOKENS) for beginning in beginnings for _ in range(ASKED)]
    rng.shuffle(asked)
    return asked


async def load(server: Server, asked: list[list[int]]) -> tuple[list[float], float]:
    """Ask all, some at a time; return each TTFT and how long all took, in seconds."""
    todo = list(reversed(asked))
    ttfts: list[float] = []

    async def one_after_the_other(session: aiohttp.ClientSession) -> None:
        while todo:
            body = {"model": "demo", "prompt": todo.pop(), "max_tokens": OUTPUT_TOKENS, "stream": True}
            began = time.perf_counter()
            async with session.post(f"{server.url}/v1/completions", json=body | {"ignore_eos": True}) as response:
                response.raise_for_status()
                await response.content.readline()
                ttfts.append(time.perf_counter() - began)
                await response.read()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONCURRENCY):
                tasks.create_task(one_after_the_other(session))
        return ttfts, time.perf_counter() - began


def cached_share(server: Server) -> float:
    """Return which part of all prompt tokens came out of a cache."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    sums = {sample.name: sample.value for family in families for sample in family.samples}
    return sums["penstock_cached_prompt_tokens_total"] / sums["penstock_prompt_tokens_total"]


def measure(policy: str, seed: int, engine: Engine) -> dict[str, float]:
    """Run one graph and return its figures."""
    settings = (f"router.policy={policy}", f"router.http_port={free_port()}")
    with penstock_graph("graphs/agg_router.yaml", engine, *settings) as server:
        asyncio.run(load(server, [random.Random(0).choices(range(10, 500), k=64) for _ in range(8)]))
        ttfts, took_s = asyncio.run(load(server, prompts(seed)))
        share = cached_share(server)
    cuts = statistics.quantiles(ttfts, n=100)
    return {
        "ttft_mean_ms": statistics.mean(ttfts) * 1e3,
        "ttft_p50_ms": cuts[49] * 1e3,
        "ttft_p99_ms": cuts[98] * 1e3,
        "tokens_per_s": len(ttfts) * OUTPUT_TOKENS / took_s,
        "cached_share": share,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", type=json.loads, default={}, help="further vLLM engine arguments, a JSON map")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    demo = demo_engine()
    engine = Engine(demo.model, demo.arguments | {"num_gpu_blocks_override": KV_BLOCKS} | asked.engine)
    print(machine(), engine)
    policies: dict[str, list[dict[str, float]]] = {"kv": [], "round_robin": []}
    for turn in range(asked.rounds):
        for policy in list(policies)[:: 1 if turn % 2 else -1]:
            policies[policy].append(measure(policy, turn, engine))
    rows: list[list[str]] = []
    for policy, runs in policies.items():
        rows.append([policy, *(spread([run[key] for run in runs]) for key in runs[0])])
    show("Two vLLM workers, shared prefixes: median (min to max, rounds)", ["policy", *policies["kv"][0]], rows)
    results: dict[str, Any] = {"policies": policies}
    write_json(asked.json, results)


if __name__ == "__main__":
    main()
