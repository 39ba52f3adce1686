"""Callers who wait for their job on the line: transient jobs, whose outcome goes to the caller and nowhere else."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator

import msgspec

from components.jobs.dispatch import Dispatch
from components.jobs.held import Call, Held
from components.jobs.metrics import Metrics
from components.wire.errors import DeadlineExceededError, NoWorkerError, WorkerFailedError
from components.wire.jobs import Job

_RETRY_AFTER_S = 1.0


class Calls:
    """Held calls."""

    def __init__(self, dispatch: Dispatch, metrics: Metrics, hold_timeout_s: float) -> None:
        self._dispatch = dispatch
        self._metrics = metrics
        self._hold_timeout_s = hold_timeout_s

    def enter(self, job_id: str, config_id: str, payload: bytes, call: Call) -> Held:
        """Take a transient job.

        Raises:
            NoWorkerError: nobody would do it.
        """
        if not self._dispatch.book.serving(config_id):
            raise NoWorkerError(f"no worker for config {config_id} is connected", retry_after_s=_RETRY_AFTER_S)
        self._metrics.submitted.labels("transient").inc()
        held = Held(Job(job_id, config_id, time.time(), payload), "transient", call=call)
        self._dispatch.enter(held)
        return held

    async def hold(self, config_id: str, payload: bytes) -> bytes:
        """Have a job done, and return its result.

        Raises:
            NoWorkerError: nobody would do it.
            WorkerFailedError: the worker cannot, or was lost too often.
            DeadlineExceededError: it takes too long.
        """
        call = new_call(stream=False)
        held = self.enter(secrets.token_hex(16), config_id, payload, call)
        try:
            async with asyncio.timeout(self._hold_timeout_s):
                return await call.answer
        except TimeoutError:
            raise DeadlineExceededError(f"no result within {self._hold_timeout_s:g} s") from None
        finally:
            if not call.answer.done() or call.answer.cancelled():
                self._dispatch.withdraw(held, "nobody waits for it any more")

    async def hold_stream(self, config_id: str, payload: bytes) -> AsyncGenerator[bytes, None]:
        """Have a job done, and yield OpenAI chunks as they come; from a worker that sends none, its whole result.

        Raises:
            PenstockError: as `hold`; after the first chunk, too.
        """
        call = new_call(stream=True)
        held = self.enter(secrets.token_hex(16), config_id, payload, call)
        end_s = asyncio.get_running_loop().time() + self._hold_timeout_s
        try:
            while True:
                async with asyncio.timeout_at(end_s):
                    chunk = await call.chunks.get()
                if chunk is None:
                    break
                yield chunk
            result = await call.answer
            if not held.begun:
                yield result
        except TimeoutError:
            raise DeadlineExceededError(f"no result within {self._hold_timeout_s:g} s") from None
        finally:
            if not call.answer.done():
                self._dispatch.withdraw(held, "nobody waits for it any more")


def new_call(*, stream: bool) -> Call:
    """Return a call that nobody has answered; `stream`: it wants chunks as they come."""
    return Call(stream, asyncio.get_running_loop().create_future(), asyncio.Queue())


def completion_in(result: bytes) -> dict[str, object]:
    """Return the completion in a result, as OpenAI's chat completions answer.

    Raises:
        WorkerFailedError: the result holds none.
    """
    try:
        completion = msgspec.json.decode(result)["completion"]
        return {
            "id": completion["id"],
            "object": "chat.completion",
            "created": int(time.time()),
            "model": completion["model"],
            "choices": completion["choices"],
            "usage": completion.get("usage"),
        }
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise WorkerFailedError("the worker's result holds no completion") from error
