"""Takes generation requests from the bus, runs each on the engine, and hands the tokens to the outbox.

Knows the life of a request in a worker (accepted, running, cancelled, finished) and nothing of HTTP, text or vLLM.
"""

import asyncio
import logging
import time
from collections import OrderedDict

from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Counter

from components.bus.client import Bus
from components.decode.outbox import Outbox
from components.decode.remote_prefill import RemotePrefill
from components.engine.protocol import Engine, EngineInfo, EngineOutput
from components.telemetry.logs import trail
from components.telemetry.tracing import Span, carry, span
from components.wire.errors import (
    CancelledError,
    DeadlineExceededError,
    ErrorCode,
    InvalidRequestError,
    ModelNotFoundError,
    NoWorkerError,
    PenstockError,
    WorkerLostError,
)
from components.wire.messages import Cancel, GenerateRequest, TokenDelta
from components.wire.process import WorkerStatus
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

_REMEMBERED_CANCELS = 4096


class DecodeService:
    """One worker's requests."""

    def __init__(
        self,
        name: str,
        model: str,
        engine: Engine,
        info: EngineInfo,
        outbox: Outbox,
        tasks: asyncio.TaskGroup,
        remote: RemotePrefill | None = None,
        store: str = "",
    ) -> None:
        """Prepare, without listening yet.

        Args:
            name: the worker's.
            model: the served model's name.
            engine: started.
            info: what it is.
            outbox: takes the tokens.
            tasks: owns the requests.
            remote: leaves long prompts to prefill workers, where there are some.
            store: the LMCache server the engine shares KV through; empty without one.
        """
        self._name = name
        self._model = model
        self._engine = engine
        self._info = info
        self._outbox = outbox
        self._tasks = tasks
        self._remote = remote
        self._store = store
        self._running: dict[str, asyncio.Task[None]] = {}
        self._cancelled_early: OrderedDict[str, None] = OrderedDict()
        self._draining = False
        self._finished: Counter | None = None

    def count_in(self, registry: CollectorRegistry) -> None:
        """Count finished requests in `registry`."""
        self._finished = Counter(
            "penstock_worker_requests", "Requests this worker has ended, by outcome.", ["outcome"], registry=registry
        )

    async def listen(self, bus: Bus, subjects: Subjects) -> None:
        """From now on take requests and cancellations."""
        await bus.serve(subjects.generate(self._name), GenerateRequest, self.accept, only_refusals=True)
        await bus.subscribe(subjects.cancel(self._name), Cancel, self.cancel)
        await bus.flush()

    def status(self) -> WorkerStatus:
        """Return what this worker offers and how busy it is; who waits for a remote prefill waits here too."""
        load = self._engine.load()
        if self._remote is not None:
            load = replace(load, waiting_requests=load.waiting_requests + self._remote.waiting_requests)
        return WorkerStatus(
            model=self._model,
            max_model_len=self._info.max_model_len,
            block_size=self._info.block_size,
            kv_blocks=self._info.kv_blocks,
            load=load,
            tool_parser=self._info.tool_parser,
            reasoning_parser=self._info.reasoning_parser,
            store=self._store,
        )

    async def accept(self, request: GenerateRequest) -> None:
        """Start `request`; its tokens go to the outbox.

        Raises:
            NoWorkerError: this worker is draining.
            ModelNotFoundError: it serves another model.
            InvalidRequestError: the request id is in use.
            CancelledError: its cancellation came first.
        """
        if self._draining:
            raise NoWorkerError(f"{self._name} is draining")
        if request.model != self._model:
            raise ModelNotFoundError(f"{self._name} serves {self._model!r}, not {request.model!r}", param="model")
        if request.request_id in self._running:
            raise InvalidRequestError(f"request id {request.request_id} is in use")
        if self._cancelled_early.pop(request.request_id, self) is None:
            raise CancelledError("cancelled before it came")
        task = self._tasks.create_task(self._run(request))
        self._running[request.request_id] = task
        self._outbox.owe(request.processor, request.request_id)
        task.add_done_callback(lambda _: self._ended(request))

    def _ended(self, request: GenerateRequest) -> None:
        self._running.pop(request.request_id, None)
        self._outbox.forgive(request.processor, request.request_id)

    async def cancel(self, cancel: Cancel) -> None:
        """Stop generating; ids not seen yet are refused when they come."""
        for request_id in cancel.request_ids:
            if task := self._running.get(request_id):
                task.cancel()
            else:
                self._cancelled_early[request_id] = None
                if len(self._cancelled_early) > _REMEMBERED_CANCELS:
                    self._cancelled_early.popitem(last=False)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new; finish what runs within `timeout_s` seconds; give the rest back to be replayed elsewhere."""
        self._draining = True
        running = list(self._running.items())
        if running:
            await asyncio.wait([task for _, task in running], timeout=timeout_s)
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)
        await self._outbox.flush()

    async def _run(self, request: GenerateRequest) -> None:
        """Generate for one request until it ends, whatever way."""
        request_id, prompt_tokens = request.request_id, len(request.token_ids)
        with span(
            "generate", request.trace, request_id=request_id, worker=self._name, prompt_tokens=prompt_tokens
        ) as traced:
            outcome = await self._generate(replace(request, trace=carry()) if request.trace else request, traced)
            traced.set(outcome=outcome)
        self._count(outcome)

    async def _generate(self, request: GenerateRequest, traced: Span) -> str:
        """Return how it ended."""
        offset = 0
        try:
            async with asyncio.timeout(request.deadline_unix_s - time.time()):
                elsewhere_tokens = await self._remote.prepare(request) if self._remote else 0
                prepared_s = time.monotonic()
                async for output in self._engine.generate(request):
                    if not offset:
                        traced.event("first token")
                        traced.set(cached_tokens=output.cached_tokens)
                    if elsewhere_tokens and self._remote and not offset:
                        self._remote.loaded(elsewhere_tokens, time.monotonic() - prepared_s)
                        elsewhere_tokens = 0
                    self._outbox.add(request.processor, _delta(request.request_id, offset, output))
                    offset += len(output.token_ids)
            traced.set(output_tokens=offset)
            outcome = "finished"
        except asyncio.CancelledError:
            self._count("cancelled")
            if self._draining:
                self._fail(request, offset, WorkerLostError(f"{self._name} stopped before the answer was complete"))
            raise
        except TimeoutError:
            outcome = "deadline_exceeded"
            self._fail(request, offset, DeadlineExceededError("the request's deadline passed"))
        except PenstockError as error:
            outcome = error.code.value
            self._fail(request, offset, error)
        except Exception as error:  # noqa: BLE001 the outermost catch: a bug costs this request, not its neighbours
            outcome = ErrorCode.INTERNAL.value
            log.error("a request failed", extra={"request_id": request.request_id, "error": trail(error)})  # noqa: TRY400
            self._fail(request, offset, PenstockError("the worker failed to answer; its log says why"))
        return outcome

    def _fail(self, request: GenerateRequest, offset: int, error: PenstockError) -> None:
        self._outbox.add(request.processor, TokenDelta(request.request_id, offset, error=error.reply()))

    def _count(self, outcome: str) -> None:
        if self._finished:
            self._finished.labels(outcome).inc()


def _delta(request_id: str, offset: int, output: EngineOutput) -> TokenDelta:
    return TokenDelta(
        request_id,
        offset,
        output.token_ids,
        output.text,
        output.logprobs,
        output.finish_reason,
        output.stop_reason,
        output.cached_tokens,
        output.tool_calls,
        output.reasoning,
    )
