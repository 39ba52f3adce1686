"""What leaving prefills to others costs and gives, on real vLLM and LMCache: one graph, with remote prefill and without.

python -m benchmarks.disagg [--graph FILE] [--model FOLDER] [--engine JSON] [--tokens 1000,2000,4000] [--rounds N] …

Three questions. *The way there:* TTFT of a long prompt computed by the prefill worker against computed at once by the decode
worker, with the remote way broken down as the metrics have it. *The streams beside it:* the longest pause between two tokens
of running streams while long prompts come in. *The text:* the same greedy answers both ways.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.report import show, spread, write_json
from benchmarks.servers import Engine, Server, demo_engine, free_port, penstock_graph

PHASES = (
    ("put", "penstock_remote_prefill_put_seconds"),
    ("queued", "penstock_prefill_queued_seconds"),
    ("compute", "penstock_prefill_compute_seconds"),
    ("store", "penstock_prefill_store_seconds"),
    ("overhead of all that, without computing", "penstock_remote_prefill_overhead_seconds"),
    ("load, and the first token", "penstock_remote_prefill_load_seconds"),
)
STREAMS = 4


@contextmanager
def graph(file: str, engine: Engine, *settings: str, remote: bool) -> Iterator[Server]:
    """Run the graph, with remote prefill of every long prompt or with none."""
    chosen = [*settings, f"decode.disagg.enabled={str(remote).lower()}", "decode.disagg.always=true"]
    chosen += [f"{name}={free_port()}" for name in ("lmcache.port", "lmcache.http_port")]
    if "router" in file:
        chosen.append(f"router.http_port={free_port()}")
    with penstock_graph(file, engine, *chosen) as server:
        yield server


async def first_tokens(server: Server, prompts: list[list[int]]) -> tuple[list[float], list[str]]:
    """Ask one prompt after the other; return each one's TTFT in seconds, and its text."""
    ttfts, texts = [], []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        for prompt in prompts:
            moments, text = await stream(session, server, prompt, 8)
            ttfts.append(moments[0])
            texts.append(text)
    return ttfts, texts


async def stream(session: aiohttp.ClientSession, server: Server, prompt: list[int], tokens: int) -> tuple[list[float], str]:
    """Stream one completion; return when each chunk came, in seconds since the request, and the text."""
    body = {"model": "demo", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    began, moments, text = time.perf_counter(), [], ""
    async with session.post(f"{server.url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                moments.append(time.perf_counter() - began)
                text += json.loads(line[6:])["choices"][0]["text"]
    return moments, text


async def pauses(server: Server, long_prompts: list[list[int]], rng: random.Random, vocabulary: int) -> list[float]:
    """Run some streams and send long prompts beside them; return each stream's longest pause, in seconds."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        short = [rng.choices(range(10, vocabulary), k=50) for _ in range(STREAMS)]
        streams = [asyncio.create_task(stream(session, server, prompt, 200)) for prompt in short]
        await asyncio.sleep(0.3)
        await asyncio.gather(*(stream(session, server, prompt, 1) for prompt in long_prompts))
        moments = [(await task)[0] for task in streams]
    return [max(after - before for before, after in itertools.pairwise(each)) for each in moments]


def phase_means(server: Server) -> dict[str, float]:
    """Return the mean of every phase of a remote prefill so far, in seconds."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    sums: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return {phase: sums.get(f"{name}_sum", 0.0) / (sums.get(f"{name}_count", 0.0) or 1.0) for phase, name in PHASES}


def measure(arguments: argparse.Namespace, engine: Engine) -> dict[str, Any]:
    """Return all figures."""
    rng = random.Random(arguments.seed)
    vocabulary = arguments.vocabulary
    sizes = [int(size) for size in arguments.tokens.split(",")]
    prompts = {size: [rng.choices(range(10, vocabulary), k=size) for _ in range(arguments.rounds + 1)] for size in sizes}
    beside = [rng.choices(range(10, vocabulary), k=sizes[-1]) for _ in range(6)]
    found: dict[str, Any] = {"graph": arguments.graph, "ttft_s": {}, "pause_s": {}, "start_s": {}}
    texts: dict[bool, list[str]] = {}
    for remote in (False, True):
        way = "remote" if remote else "local"
        with graph(arguments.graph, engine, *arguments.set, remote=remote) as server:
            found["start_s"][way] = server.start_s
            texts[remote] = []
            for size in sizes:
                ttfts, said = asyncio.run(first_tokens(server, prompts[size]))
                found["ttft_s"][f"{way} {size}"] = ttfts[1:]  # the first one warms up
                texts[remote] += said
            if remote:
                found["phases_s"] = phase_means(server)
            found["pause_s"][way] = asyncio.run(pauses(server, beside, random.Random(arguments.seed), vocabulary))
    found["same_text"] = sum(one == other for one, other in zip(texts[False], texts[True], strict=True))
    found["prompts"] = len(texts[False])
    return found


def report(found: dict[str, Any]) -> None:
    """Print the figures."""
    rows = [[name, spread([1e3 * value for value in values])] for name, values in found["ttft_s"].items()]
    show("TTFT, ms", ["prefill, tokens", "median (min to max)"], rows)
    show(
        "a remote prefill, mean ms",
        ["phase", "ms"],
        [[name, f"{1e3 * value:.2f}"] for name, value in found["phases_s"].items()],
    )
    rows = [[way, f"{1e3 * statistics.median(values):.0f}"] for way, values in found["pause_s"].items()]
    show(f"longest pause of {STREAMS} streams beside long prompts, ms", ["prefill", "median"], rows)
    show(
        "the rest",
        ["figure", "value"],
        [
            ["same greedy text", f"{found['same_text']} of {found['prompts']}"],
            *([f"ready after, {way}", f"{seconds:.1f} s"] for way, seconds in found["start_s"].items()),
        ],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--graph", default="graphs/disagg.yaml", help="the graph to run")
    parser.add_argument("--model", help="a model folder; default: the demo model")
    parser.add_argument("--engine", type=json.loads, help="vLLM engine arguments, as JSON")
    parser.add_argument("--vocabulary", type=int, default=500, help="prompts are made of token ids below it")
    parser.add_argument("--tokens", default="1000,2000,4000", help="prompt lengths")
    parser.add_argument("--rounds", type=int, default=9, help="prompts of each length")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="further settings of the graph")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    engine = demo_engine()
    engine = Engine(arguments.model or engine.model, engine.arguments | {"max_model_len": 8192} | (arguments.engine or {}))
    found = measure(arguments, engine)
    report(found)
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
