"""A load generator for OpenAI's completions: prompts as text, streamed, each piece of text with its moment."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchmarks.gpu.figures import Answer


class Request(msgspec.Struct, frozen=True):
    """One request.

    Attributes:
        due_s: when it is sent, in seconds since the run's beginning.
        prompt: its text.
        output_tokens: it asks for, exactly.
        kind: which sort it is.
    """

    due_s: float
    prompt: str
    output_tokens: int
    kind: str = "trace"

    def body(self) -> bytes:
        """Return the HTTP body."""
        fields = {
            "model": "demo", "prompt": self.prompt, "max_tokens": self.output_tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        return json.dumps(fields).encode()


async def open_loop(url: str, requests: Sequence[Request], limit_s: float) -> list[Answer]:
    """Send each request when it is due, whatever became of the others; what is not there after `limit_s` has failed."""
    bodies = [request.body() for request in requests]
    async with _session() as session:
        began = time.perf_counter()
        end = began + limit_s

        async def one(request: Request, body: bytes) -> Answer:
            await asyncio.sleep(max(0.0, began + request.due_s - time.perf_counter()))
            return await _ask(session, url, request, body, began + request.due_s, end)

        return list(await asyncio.gather(*(one(*each) for each in zip(requests, bodies, strict=True))))


async def closed_loop(url: str, requests: Sequence[Request], concurrency: int, limit_s: float) -> list[Answer]:
    """Send the requests in their order, `concurrency` at a time; `due_s` becomes the moment of sending."""
    bodies = list(reversed([(request, request.body()) for request in requests]))
    answers: list[Answer] = []
    async with _session() as session:
        began = time.perf_counter()

        async def one_after_the_other() -> None:
            while bodies:
                request, body = bodies.pop()
                now = time.perf_counter()
                sent = msgspec.structs.replace(request, due_s=now - began)
                answers.append(await _ask(session, url, sent, body, now, began + limit_s))

        await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
    return answers


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))


async def _ask(session: aiohttp.ClientSession, url: str, request: Request, body: bytes, due: float, end: float) -> Answer:
    moments: list[float] = []
    usage: dict[str, Any] = {}
    policy = error = ""
    headers = {"Content-Type": "application/json"}
    try:
        async with (
            asyncio.timeout(max(0.1, end - time.perf_counter())),
            session.post(f"{url}/v1/completions", data=body, headers=headers) as response,
        ):
            policy = response.headers.get("x-penstock-policy", "")
            if response.status != 200:
                error = f"{response.status}: {(await response.text())[:200]}"
            else:
                error = await _read(response, due, moments, usage)
    except TimeoutError:
        error = "not answered in time"
    except aiohttp.ClientError as failed:
        error = f"{type(failed).__name__}: {failed}"[:200]
    return Answer(
        kind=request.kind,
        due_s=request.due_s,
        moments_s=moments,
        end_s=time.perf_counter() - due,
        prompt_tokens=usage.get("prompt_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
        policy=policy,
        error=error,
    )


async def _read(response: aiohttp.ClientResponse, due: float, moments: list[float], usage: dict[str, Any]) -> str:
    """Read a stream; returns what is wrong with it."""
    async for line in response.content:
        if not line.startswith(b"data: {"):
            continue
        now = time.perf_counter() - due
        chunk = json.loads(line[6:])
        if "error" in chunk:
            return str(chunk["error"])[:200]
        if any(choice["text"] for choice in chunk.get("choices") or ()):
            moments.append(now)
        if chunk.get("usage"):
            usage.update(chunk["usage"])
    return "" if moments and usage else "no text, or no usage"


def labelled(url: str, name: str, label: str) -> dict[str, float]:
    """Return a metric's values by one of its labels."""
    found: dict[str, float] = {}
    for sample in _samples(url):
        if sample.name == name:
            found[sample.labels[label]] = found.get(sample.labels[label], 0.0) + sample.value
    return found


def cache_counters(urls: Sequence[str]) -> dict[str, float]:
    """Return vLLM's prefix cache counters, in tokens, summed over servers and engines."""
    found = {"queries": 0.0, "hits": 0.0}
    names = {f"vllm:prefix_cache_{name}_total": name for name in found}
    for sample in (sample for url in urls for sample in _samples(url)):
        if sample.name in names:
            found[names[sample.name]] += sample.value
    return found


def _samples(url: str) -> list[Sample]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        return [sample for family in text_string_to_metric_families(page.read().decode()) for sample in family.samples]
