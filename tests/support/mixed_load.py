"""Greedy requests of mixed lengths, many at once, and the answers as clients saw them."""

import asyncio
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp

TOKENS = range(10, 500)
"""Ids of ordinary tokens of the demo model."""


@dataclass(frozen=True)
class Prompt:
    """One request.

    Attributes:
        token_ids: the prompt.
        max_tokens: how many tokens to ask for.
    """

    token_ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: all of it.
        finish_reason: of its last chunk.
        completion_tokens: as counted by the server.
        cached_tokens: prompt tokens the worker did not compute.
    """

    text: str
    finish_reason: str
    completion_tokens: int
    cached_tokens: int


def mixed_prompts(count: int, seed: int, longest: int = 2000) -> list[Prompt]:
    """Return prompts of 10 to `longest` tokens: half of them long, some beginning like the one before."""
    rng = random.Random(seed)
    prompts: list[Prompt] = []
    for _ in range(count):
        length = rng.choice([rng.randint(10, 500), rng.randint(600, longest)])
        shared = prompts[-1].token_ids[: rng.randrange(length)] if prompts and rng.random() < 0.3 else ()
        own = tuple(rng.choice(TOKENS) for _ in range(length - len(shared)))
        prompts.append(Prompt(shared + own, rng.choice([4, 16, 48])))
    return prompts


async def ask(session: aiohttp.ClientSession, url: str, prompt: Prompt) -> Answer:
    """Stream one completion.

    Raises:
        AssertionError: it failed, or ended early.
    """
    body = {
        "model": "demo",
        "prompt": list(prompt.token_ids),
        "max_tokens": prompt.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, finish_reason, usage = "", "", {}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            data = line.strip().removeprefix(b"data: ")
            if not data or data == b"[DONE]":
                continue
            chunk = json.loads(data)
            assert "error" not in chunk, chunk
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                text += choice["text"]
                finish_reason = choice["finish_reason"] or finish_reason
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer(text, finish_reason, usage["completion_tokens"], cached)


async def ask_all(url: str, prompts: Iterable[Prompt], at_once: int, timeout_s: float = 180) -> list[Answer]:
    """Return the answers to `prompts`, in their order, asked `at_once` at a time.

    Raises:
        AssertionError: one failed.
        TimeoutError: one took too long.
    """
    room = asyncio.Semaphore(at_once)
    timeout = aiohttp.ClientTimeout(total=timeout_s)

    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(prompt: Prompt) -> Answer:
            async with room:
                return await ask(session, url, prompt)

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(one(prompt)) for prompt in prompts]
    return [task.result() for task in asked]
