"""A worker that speaks the wire protocol and says what a test tells it to; for faults no engine makes on demand."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from components.bus.client import Bus
from components.wire.messages import Cancel, FinishReason, GenerateRequest, TokenBatch, TokenDelta
from components.wire.process import ProcessState, ProcessStatus, WorkerLoad, WorkerStatus
from components.wire.subjects import Subjects

Script = Callable[["ScriptedWorker", GenerateRequest], Awaitable[None]]


@dataclass
class ScriptedWorker:
    """One worker; `script` runs for each request it accepts.

    Attributes:
        requests: what it was given, in order.
        cancelled: request ids it was told to stop.
        load: what it tells of its work.
        refuse: raised instead of accepting, when set.
        acknowledges: whether it says that it has a request before `script` says anything.
    """

    bus: Bus
    subjects: Subjects
    name: str
    script: Script
    model: str = "demo"
    max_model_len: int = 2048
    tool_parser: bool = False
    load: WorkerLoad = field(default_factory=WorkerLoad)
    refuse: Exception | None = None
    acknowledges: bool = True
    incarnation: str = field(default_factory=lambda: secrets.token_hex(4))
    state: ProcessState = ProcessState.READY
    requests: list[GenerateRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    seqs: dict[str, int] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    telling: asyncio.Task[None] | None = None

    async def start(self, listen: bool = True) -> "ScriptedWorker":
        """Listen for requests, and tell the status from now on."""
        if listen:
            await self.bus.serve(self.subjects.generate(self.name), GenerateRequest, self._accept, only_refusals=True)
            await self.bus.subscribe(self.subjects.cancel(self.name), Cancel, self._cancel)
        self.telling = asyncio.create_task(self._tell_for_ever())
        return self

    async def tell(self) -> None:
        """Publish the status."""
        offer = WorkerStatus(self.model, self.max_model_len, 32, 100, self.load, self.tool_parser)
        status = ProcessStatus(self.name, "decode", self.incarnation, 1, "test", self.state, worker=offer)
        await self.bus.publish(self.subjects.status(self.name), status)

    async def _tell_for_ever(self) -> None:
        while True:
            await self.tell()
            await asyncio.sleep(0.3)

    async def send(self, request: GenerateRequest, **fields: Any) -> None:
        """Send one delta of `request` in a batch of its own."""
        seq = self.seqs[request.processor] = self.seqs.get(request.processor, -1) + 1
        delta = TokenDelta(request.request_id, **fields)
        batch = TokenBatch(self.name, self.incarnation, seq, [delta])
        await self.bus.publish(self.subjects.tokens(request.processor), batch)

    async def repeat(self, processor: str) -> None:
        """Send an empty batch with the last number."""
        batch = TokenBatch(self.name, self.incarnation, self.seqs[processor])
        await self.bus.publish(self.subjects.tokens(processor), batch)

    async def say(self, request: GenerateRequest, words: list[tuple[int, str]], until: int | None = None) -> None:
        """Say `words` from where `request` stands up to number `until`; all of them end the answer."""
        for number in range(request.replayed_tokens, len(words) if until is None else until):
            token, text = words[number]
            last = number == len(words) - 1
            await self.send(
                request,
                offset=number - request.replayed_tokens,
                token_ids=[token],
                text=text,
                finish_reason=FinishReason.STOP if last else None,
                cached_tokens=0 if number == request.replayed_tokens else None,
            )
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Say nothing more."""
        for task in [*self.tasks, *([self.telling] if self.telling else [])]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _accept(self, request: GenerateRequest) -> None:
        self.requests.append(request)
        if self.refuse is not None:
            raise self.refuse
        task = asyncio.create_task(self._run(request))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _run(self, request: GenerateRequest) -> None:
        if self.acknowledges:
            await self.send(request)
        await self.script(self, request)

    async def _cancel(self, cancel: Cancel) -> None:
        self.cancelled += cancel.request_ids
