"""A load generator for one OpenAI endpoint: streams completions and notes when each token came."""

import asyncio
import random
import time
from dataclasses import dataclass

import aiohttp


@dataclass(frozen=True)
class Answer:
    """One streamed answer, in seconds since the request was sent.

    Attributes:
        ttft_s: until the first chunk with text.
        total_s: until the stream's end.
        chunks: how many chunks carried text.
        output_tokens: as the server counted.
    """

    ttft_s: float
    total_s: float
    chunks: int
    output_tokens: int


def prompt(seed: int, words: int) -> str:
    """Return a prompt nobody has seen before, of about `words` words."""
    rng = random.Random(seed)
    return " ".join(f"{rng.randrange(10**6):06d}" for _ in range(words))


async def ask(session: aiohttp.ClientSession, url: str, text: str, max_tokens: int) -> Answer:
    """Stream one greedy chat completion of exactly `max_tokens` tokens."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    first = 0.0
    chunks = tokens = 0
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{url} says {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if b'"content":"' in line and b'"content":""' not in line:
                chunks += 1
                first = first or time.perf_counter() - began
            elif b'"completion_tokens":' in line:
                tokens = int(line.split(b'"completion_tokens":')[1].split(b",")[0].split(b"}")[0])
    return Answer(first, time.perf_counter() - began, chunks, tokens)


async def load(url: str, prompts: list[str], max_tokens: int, concurrency: int) -> tuple[list[Answer], float]:
    """Ask all `prompts`, at most `concurrency` at a time; returns the answers and the seconds it took."""
    answers: list[Answer] = []
    todo = list(reversed(prompts))
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)

    async def one_after_the_other(session: aiohttp.ClientSession) -> None:
        while todo:
            answers.append(await ask(session, url, todo.pop(), max_tokens))

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(one_after_the_other(session))
        return answers, time.perf_counter() - began
