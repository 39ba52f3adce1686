"""The router as a process on real NATS: decisions, events until they are visible, and the way back after its death.

    python -m benchmarks.routing [--rounds N] [--only decision|throughput|events|recovery] [--json FILE]

Workers are played, see `router_stage`.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.report import show, spread, write_json
from benchmarks.router_stage import WORKERS, Holders, stage


def prompts_of(count: int, blocks: int, seed: int) -> list[list[int]]:
    """Return prompts of random blocks."""
    rng = random.Random(seed)
    return [[rng.getrandbits(60) for _ in range(blocks)] for _ in range(count)]


async def decision(rounds: int) -> dict[str, Any]:
    """One question after the other: 512 blocks, 8 workers, half of the prompts cached somewhere."""
    async with stage() as made, made.routers(1):
        holders = Holders(made)
        await holders.listen()
        await made.whole()
        prompts = prompts_of(256, 512, 1)
        for number, prompt in enumerate(prompts[:128]):
            await holders.store(number % WORKERS, [prompt], 64)
        await made.until(lambda view: view["device"]["blocks"] == 128 * 512, "/index/stats")
        p50_ms, p99_ms = [], []
        for _ in range(rounds):
            took = []
            for number in range(1500):
                await made.ask(prompts[number % 256])
                took.append(made.took_s * 1000)
            took.sort()
            p50_ms.append(took[len(took) // 2])
            p99_ms.append(took[int(len(took) * 0.99)])
        return {"p50_ms": p50_ms, "p99_ms": p99_ms}


async def throughput(rounds: int) -> dict[str, Any]:
    """Many questions at once, one replica and two."""
    results: dict[str, Any] = {}
    for replicas in (1, 2):
        async with stage() as made, made.routers(replicas):
            holders = Holders(made)
            await holders.listen()
            for replica in range(replicas):
                await made.whole(replica)
            prompts = prompts_of(256, 512, 1)
            rates = []
            for _ in range(rounds):
                asked = 0
                stop_s = time.perf_counter() + 3

                async def client(number: int) -> None:
                    nonlocal asked
                    while time.perf_counter() < stop_s:  # noqa: B023 runs within the round
                        await made.ask(prompts[(number * 7 + asked) % 256])  # noqa: B023 see above
                        asked += 1

                start_s = time.perf_counter()
                async with asyncio.TaskGroup() as tasks:
                    for number in range(32):
                        tasks.create_task(client(number))
                rates.append(asked / (time.perf_counter() - start_s))
            results[f"{replicas}"] = rates
    return results


async def events(rounds: int) -> dict[str, Any]:
    """From the first event sent until the last of 524,288 blocks is visible, in events of 64 blocks."""
    rates = []
    for _ in range(rounds):
        async with stage() as made, made.routers(1):
            holders = Holders(made)
            await holders.listen()
            await made.whole()
            prompts = [prompts_of(128, 512, number) for number in range(WORKERS)]
            start_s = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for number in range(WORKERS):
                    tasks.create_task(holders.store(number, prompts[number], 64))
            while (await made.ask(prompts[-1][-1], dry_run=True)).chosen.overlap_blocks < 512:  # noqa: ASYNC110 another process's
                await asyncio.sleep(0.005)
            await made.until(lambda view: view["device"]["blocks"] == WORKERS * 128 * 512, "/index/stats")
            rates.append(WORKERS * 128 * 512 / (time.perf_counter() - start_s))
    return {"blocks_per_s": rates}


async def recovery(rounds: int) -> dict[str, Any]:
    """A router killed with 1,048,576 blocks in its index: from its new start, and from its first word, until it is whole."""
    from_start, from_ready, answering = [], [], []
    async with stage() as made:
        holders = Holders(made)
        await holders.listen()
        repeating = asyncio.ensure_future(holders.repeat())
        for number in range(WORKERS):
            await holders.store(number, prompts_of(256, 512, number), 64)
        for _ in range(rounds):
            start_s = time.perf_counter()
            async with made.routers(1) as (process,):
                ready_s = time.perf_counter()
                await made.ask([1], dry_run=True)
                answering.append(time.perf_counter() - start_s)
                await made.whole()
                whole_s = time.perf_counter()
                blocks = (await made.query("/index/stats"))["device"]["blocks"]
                assert blocks == WORKERS * 256 * 512, blocks
                from_start.append(whole_s - start_s)
                from_ready.append(whole_s - ready_s)
                process.kill()
        repeating.cancel()
    return {"from_start_s": from_start, "from_ready_s": from_ready, "answering_s": answering}


PARTS: dict[str, Callable[[int], Awaitable[dict[str, Any]]]] = {
    "decision": decision,
    "throughput": throughput,
    "events": events,
    "recovery": recovery,
}
_TITLES = {
    "p50_ms": "a decision over NATS, 512 blocks, 8 workers, one at a time: p50 (ms)",
    "p99_ms": "the same: p99 (ms)",
    "1": "decisions a second, 32 at once, one replica",
    "2": "decisions a second, 32 at once, two replicas",
    "blocks_per_s": "events of 64 blocks over NATS until visible (blocks/s)",
    "from_start_s": "1,048,576 blocks: start of the process until the index is whole (s)",
    "from_ready_s": "1,048,576 blocks: first query answered until the index is whole (s)",
    "answering_s": "start of the process until it answers route queries (s)",
}


def main() -> None:
    """Run the parts and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            results[name] = uvloop.run(part(arguments.rounds))
    rows = []
    for part in results.values():
        rows += [
            [_TITLES[key], spread(values, 2 if statistics.median(values) < 1000 else 0)] for key, values in part.items()
        ]
    show("The router over NATS", ["what", "median (min to max, runs)"], rows)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
