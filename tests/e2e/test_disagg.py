"""Prompts computed elsewhere: the same text as from one worker that does everything, whatever dies meanwhile. Real parts."""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.launched import Launched, free_port
from tests.support.mixed_load import TOKENS, Answer, Prompt, ask_all, mixed_prompts

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CHUNK_TOKENS = 64
ALWAYS = ("decode.disagg.always=true",)
"""On a busy machine a remote prefill may seem dear."""
FAULTS = (
    "kill prefill-0",
    "stop prefill-0",
    "kill decode-0",
    "kill lmcache-0",
    "kill server of lmcache-0",
    "stop server of lmcache-0",
    "kill nats",
)
MIXED = mixed_prompts(200, seed=1)
FLOOD = [prompt for prompt in mixed_prompts(40, seed=50) if len(prompt.token_ids) > 600][:16]
UNDER_FAULTS = {fault: mixed_prompts(20, seed=index + 2) for index, fault in enumerate(FAULTS)}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[Prompt, Answer]:
    """What a worker that does everything itself answers."""
    prompts = [*MIXED, *FLOOD, *(prompt for prompts in UNDER_FAULTS.values() for prompt in prompts)]
    graph = Launched.up(tmp_path_factory.mktemp("agg"), "graphs/agg.yaml")
    try:
        url = graph.wait_ready(240).url
        return dict(zip(prompts, asyncio.run(ask_all(url, prompts, 4)), strict=True))
    finally:
        graph.close()


def test_two_prefill_workers_and_one_decode_worker(expected: dict[Prompt, Answer], tmp_path: Path) -> None:
    """Both take jobs from the queue, and the text is the same (2P1D; all other tests here run 1P2D)."""
    graph = Launched.up(
        tmp_path, "graphs/disagg.yaml", "prefill.replicas=2", "decode.replicas=1", *ALWAYS, *_free("lmcache")
    )
    try:
        answers = asyncio.run(ask_all(graph.wait_ready(240).url, FLOOD, 4))
        assert _texts(answers) == _texts([expected[prompt] for prompt in FLOOD])
        for worker in ("prefill-0", "prefill-1"):
            assert graph.metric("penstock_prefill_jobs_total", process=worker, outcome="done") > 0
    finally:
        graph.close()
    assert graph.left_over(wait_s=5) == []


@pytest.fixture(scope="module")
def disagg(expected: dict[Prompt, Answer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """One prefill worker, two decode workers, a router; launched when the reference has ended."""
    assert expected
    graph = Launched.up(
        tmp_path_factory.mktemp("disagg"),
        "graphs/disagg_router.yaml",
        *ALWAYS,
        *_free("lmcache"),
        f"router.http_port={free_port()}",
    )
    try:
        yield graph.wait_ready(240)
    finally:
        graph.close()
    assert graph.left_over(wait_s=5) == []


def test_the_decode_worker_computes_only_the_tail(disagg: Launched) -> None:
    """Of 100 long prompts each that the prefill worker computed is loaded down to the last full chunk; nearly all are."""
    rng = random.Random(77)
    prompts = [Prompt(tuple(rng.choices(TOKENS, k=rng.randint(10, 30) * CHUNK_TOKENS + 1)), 2) for _ in range(100)]
    answers = asyncio.run(ask_all(disagg.url, prompts, 1))
    loaded = [len(prompt.token_ids) - answer.cached_tokens == 1 for prompt, answer in zip(prompts, answers, strict=True)]
    done = disagg.metric("penstock_remote_prefills_total", outcome="done")
    assert sum(loaded) >= done >= 90  # on a busy machine some job may be late
    assert disagg.metric("penstock_prefill_jobs_total", outcome="done") >= done
    assert disagg.metric("penstock_remote_prefill_overhead_seconds_count") == done
    assert disagg.metric("penstock_remote_prefill_overhead_seconds_sum") / done < 0.25  # 9 ms on an idle machine


def test_same_text_as_without_disaggregation(disagg: Launched, expected: dict[Prompt, Answer]) -> None:
    """200 prompts of mixed lengths, four at a time."""
    answers = asyncio.run(ask_all(disagg.url, MIXED, 4))
    assert _texts(answers) == _texts([expected[prompt] for prompt in MIXED])
    assert disagg.metric("penstock_placements_total", reason="pays") > 0


def test_a_deep_queue_keeps_prompts_here(disagg: Launched, expected: dict[Prompt, Answer]) -> None:
    """Sixteen long prompts at once, with room for one in the queue; the rule is changed while the graph runs."""
    assert disagg.run("disagg", disagg.name, "max_queue_depth=1").returncode == 0
    before = disagg.metric("penstock_placements_total", reason="queue_deep")
    answers = asyncio.run(ask_all(disagg.url, FLOOD, len(FLOOD)))
    assert _texts(answers) == _texts([expected[prompt] for prompt in FLOOD])
    assert disagg.metric("penstock_placements_total", reason="queue_deep") > before
    assert disagg.run("disagg", disagg.name, "max_queue_depth=4").returncode == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_same_text_whatever_dies(disagg: Launched, expected: dict[Prompt, Answer], fault: str) -> None:
    """Streams go on, unbroken and unchanged, and soon all processes are back."""
    prompts, name = UNDER_FAULTS[fault], fault.rpartition(" ")[2]
    restarts = disagg.row(name).restarts
    answers = asyncio.run(_ask_meanwhile(disagg, prompts, fault))
    assert _texts(answers) == _texts([expected[prompt] for prompt in prompts])
    disagg.wait_restarted(name, restarts, 120)


async def _ask_meanwhile(graph: Launched, prompts: list[Prompt], fault: str) -> list[Answer]:
    """Ask everything, and half a second later let the fault happen."""
    asking = asyncio.create_task(ask_all(graph.url, prompts, 4))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(_happen, graph, fault)
    return await asking


def _happen(graph: Launched, fault: str) -> None:
    verb, _, who = fault.partition(" ")
    name = who.removeprefix("server of ")
    pid = graph.row(name).pid
    assert pid is not None
    if name != who:  # LMCache's own process, beside the one that watches it
        (pid,) = (process.pid for process in psutil.process_iter() if _group(process) == pid and process.pid != pid)
    os.kill(pid, signal.SIGKILL if verb == "kill" else signal.SIGSTOP)


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def _free(name: str) -> list[str]:
    """Return settings that give the LMCache server `name` ports of its own."""
    return [f"{name}.{setting}={free_port()}" for setting in ("port", "http_port")]


def _texts(answers: list[Answer]) -> list[tuple[str, str, int]]:
    return [(answer.text, answer.finish_reason, answer.completion_tokens) for answer in answers]


def test_the_router_knows_what_every_decode_worker_can_load(disagg: Launched) -> None:
    """Computed once, the prompt lies in one engine, and the other one can load it from LMCache, by the router's word."""
    rng = random.Random(78)
    text = " ".join(rng.choices(["river", "stone", "cloud", "lamp", "seven", "quiet", "green", "paper"], k=400))
    with disagg.client() as client:
        client.completions.create(model="demo", prompt=text, max_tokens=2, temperature=0)
    deadline = time.monotonic() + 30
    while True:
        explained = disagg.run("router", "explain", text, "--json")
        assert explained.returncode == 0, explained.stderr
        workers = json.loads(explained.stdout)["candidates"]
        assert {worker["store"] for worker in workers} == {"lmcache-0"}
        holds, loads = ([worker for worker in workers if worker[field]] for field in ("overlap_blocks", "fetch_blocks"))
        if holds and any(worker not in holds for worker in loads):
            return
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)
