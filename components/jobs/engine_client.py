"""The engine as a job worker sees it: any OpenAI endpoint, through the `openai` client; its health, and its queue."""

import logging
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
import httpx2
import msgspec
import openai

from components.jobs.assemble import Assembly
from components.jobs.payload import ChatJob
from components.jobs.worker_settings import WorkerSettings

log = logging.getLogger(__name__)

_WAITING = re.compile(r"^vllm:num_requests_waiting(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)
_CHECK_S = aiohttp.ClientTimeout(total=2.0)
_CONNECT_S = 5.0
_AGAIN = frozenset({401, 403, 408, 409, 425, 429})  # not the job's fault; neither is any 5xx

_BUSY = frozenset({429, 503})

_CHUNKS = msgspec.json.Decoder(dict[str, Any])

OnChunk = Callable[[bytes], None]


class EngineError(Exception):
    """The engine refuses the job: sending it again changes nothing."""


class EngineAwayError(Exception):
    """The engine is not there, or too busy; another time, or another worker, may do the job."""


class EngineBusyError(EngineAwayError):
    """The engine is there and takes no more at the moment."""


class Engine:
    """One OpenAI endpoint."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._url = settings.engine_url
        self._ready_path = settings.ready_path
        self._model = settings.model
        key = settings.engine_key
        timeout = httpx2.Timeout(settings.idle_timeout_s, connect=_CONNECT_S)
        self._client = openai.AsyncOpenAI(base_url=f"{self._url}/v1", api_key=key or "none", max_retries=0, timeout=timeout)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._http.close()
        await self._client.close()

    async def ready(self) -> bool:
        """Return whether it can do jobs now."""
        try:
            async with self._http.get(self._url + self._ready_path, timeout=_CHECK_S) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def served_model(self) -> str:
        """Return the name under which it serves, for jobs that say ``default``."""
        try:
            async with self._http.get(f"{self._url}/v1/models", timeout=_CHECK_S) as response:
                names = [str(model["id"]) for model in (await response.json())["data"]]
        except (aiohttp.ClientError, TimeoutError, KeyError, TypeError, ValueError):
            return self._model
        return self._model if self._model in names or not names else names[0]

    async def waiting(self) -> int | None:
        """Return how many requests wait in it; None where it does not tell."""
        try:
            async with self._http.get(f"{self._url}/metrics", timeout=_CHECK_S) as response:
                found = _WAITING.findall(await response.text()) if response.status == 200 else []
        except (aiohttp.ClientError, TimeoutError):
            return None
        return int(sum(map(float, found))) if found else None

    async def chat(self, job: ChatJob, model: str, assembly: Assembly, on_chunk: OnChunk | None = None) -> None:
        """Do `job`, filling `assembly` as tokens come. Cancelled, it frees the engine.

        Args:
            job: what to ask.
            model: for jobs that name none.
            assembly: what came so far.
            on_chunk: called with each chunk's JSON.

        Raises:
            EngineError: it refuses the job.
            EngineBusyError: it takes no more now; nothing of the answer came.
            EngineAwayError: it is not there, or broke off.
        """
        # As `extra_body` the request goes out as it is: `payload` has checked it, and the client's own walk through every
        # message would cost as much as the rest of the call.
        body = {**job.request, "stream_options": {"include_usage": True}}
        try:
            async with self._client.chat.completions.with_streaming_response.create(
                model=job.model or model, messages=[], stream=True, extra_body=body
            ) as response:
                async for line in response.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        self._take(line[6:], assembly, on_chunk)
            if not assembly.complete:
                raise EngineAwayError("the engine's stream ended early")
        except openai.APIStatusError as error:
            text = f"the engine answers {error.status_code}: {error.message}"
            if error.status_code in _BUSY and await self.ready():
                raise EngineBusyError(text) from error
            if error.status_code in _AGAIN or error.status_code >= 500:
                raise EngineAwayError(text) from error
            raise EngineError(text) from error
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise EngineAwayError(f"the engine does not answer: {type(error).__name__}") from error

    def _take(self, text: str, assembly: Assembly, on_chunk: OnChunk | None) -> None:
        try:
            chunk = _CHUNKS.decode(text)
        except msgspec.DecodeError:
            raise EngineAwayError("the engine sends what is no JSON") from None
        if "error" in chunk:
            error = chunk["error"]
            raise EngineAwayError(f"the engine broke off: {error.get('message', '') if isinstance(error, dict) else ''}")
        assembly.add(chunk)
        if on_chunk is not None:
            on_chunk(text.encode())
