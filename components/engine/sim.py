"""The simulated engine behind the engine protocol, in real time: `sim_scheduler` on a clock, `sim_answer` for content.

Its answers end at `max_tokens` or at a stop string or token; it says an end-of-sequence token of its own accord only
with ``output: echo``, after the prompt. `die`, `freeze`, `thaw` and `slowdown` make it fail on demand.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from components.engine.protocol import EngineInfo, EngineOutput, EngineStartError, KvUpdate
from components.engine.sim_answer import Vocabulary, refusal
from components.engine.sim_kv import KvFeed
from components.engine.sim_metrics import SimMetrics
from components.engine.sim_request import SimRequest, prompt_root
from components.engine.sim_scheduler import SimScheduler
from components.engine.sim_sequence import SimSequence
from components.engine.sim_shared import SharedFile, SharedPrompts
from components.engine.sim_step import Step
from components.engine.sim_timing import TimingError, load_timing
from components.graph.schema import SimEngine as SimSettings
from components.model.folder import ModelError, model_folder
from components.model.tokenizer import Tokenizer
from components.wire.block_hash import block_hashes
from components.wire.errors import ContextLengthExceededError, EngineDiedError, InvalidRequestError, WorkerLostError
from components.wire.messages import GenerateRequest
from components.wire.process import MetricFamily, WorkerLoad

_TURN_S = 0.001  # an engine that cannot keep up computes for so long before others have their turn
_MAX_LAG_S = 0.05  # an engine that cannot keep up with its clock forgets older delays


class SimEngine:
    """Real scheduling and caching, no model.

    Attributes:
        slowdown: steps take so many times longer.
    """

    def __init__(
        self,
        model: str,
        settings: SimSettings,
        block_size: int,
        *,
        kv_events: bool = False,
        shared: SharedFile | None = None,
    ) -> None:
        """Prepare an engine, without I/O.

        Args:
            model: whose tokenizer it has.
            settings: see there.
            block_size: tokens a KV block.
            kv_events: see `Engine.kv_updates`.
            shared: the cache it shares with other engines.
        """
        self.slowdown = 1.0
        self._model = model
        self._settings = settings
        self._block_size = block_size
        self._vocabulary: Vocabulary | None = None
        self._scheduler: SimScheduler | None = None
        self._metrics = SimMetrics(model)
        self._requests: dict[SimSequence, SimRequest] = {}
        self._work = asyncio.Event()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._ended: str | None = None  # why no request is taken any more
        self._dead = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._kv = KvFeed(shared) if kv_events else None
        self._shared_file = shared
        self._shared = None if shared is None else SharedPrompts(shared, block_size)

    async def start(self, progress: Callable[[str], None]) -> EngineInfo:
        """See `Engine.start`."""
        settings = self._settings
        if settings.kv_blocks * self._block_size < settings.max_model_len:
            raise EngineStartError(
                f"engine.kv_blocks: {settings.kv_blocks} blocks of {self._block_size} tokens do not hold one sequence"
                f" of max_model_len {settings.max_model_len}"
            )
        if self._shared_file is not None and self._shared_file.chunk_tokens % self._block_size:
            raise EngineStartError(
                f"lmcache.chunk_tokens: must be a multiple of kv.block_size {self._block_size}, "
                f"not {self._shared_file.chunk_tokens}"
            )
        progress("loading the tokenizer")
        try:
            timing = load_timing(settings.timing).faster(settings.speed)
            folder = await asyncio.to_thread(model_folder, self._model)
            self._vocabulary = Vocabulary(await asyncio.to_thread(Tokenizer, folder))
        except (ModelError, TimingError) as error:
            raise EngineStartError(str(error)) from error
        self._scheduler = SimScheduler(
            timing,
            blocks=settings.kv_blocks,
            block_size=self._block_size,
            max_running_requests=settings.max_running_requests,
            max_batched_tokens=settings.max_batched_tokens,
            shared=self._shared,
        )
        self._loop = asyncio.create_task(self._run(self._scheduler), name="simulated engine")
        self._loop.add_done_callback(self._loop_ended)
        return EngineInfo("sim", settings.max_model_len, self._block_size, settings.kv_blocks)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        """See `Engine.generate`."""
        scheduler, entry = self._admit(request)
        try:
            while True:
                output = await entry.next_output()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._requests.pop(entry.sequence, None)
            scheduler.finish(entry.sequence)

    async def kv_updates(self) -> AsyncIterator[KvUpdate]:
        """See `Engine.kv_updates`."""
        while self._kv is not None and (update := await self._kv.next_update()) is not None:
            yield update

    def shared_changed(self, held: Sequence[int], gone: Sequence[int]) -> None:
        """Ignore it: the simulated cache tells its engines itself; see `Engine.shared_changed`."""

    def shared_lost(self) -> None:
        """Ignore it likewise; see `Engine.shared_lost`."""

    async def shared_tokens(self, request: GenerateRequest) -> int:
        """See `Engine.shared_tokens`."""
        if self._shared is None or self._ended is not None:
            return 0
        return self._shared.tokens(block_hashes(request.token_ids, self._block_size, prompt_root(request)))

    def load(self) -> WorkerLoad:
        """See `Engine.load`."""
        scheduler = self._scheduler
        if scheduler is None:
            return WorkerLoad()
        return WorkerLoad(
            running_requests=len(scheduler.running),
            waiting_requests=scheduler.waiting_requests,
            kv_usage=scheduler.kv_usage,
            prompt_tokens=scheduler.totals.prompt,
            cached_tokens=scheduler.totals.cached,
            output_tokens=scheduler.totals.output,
        )

    def metrics(self) -> list[MetricFamily]:
        """See `Engine.metrics`."""
        return [] if self._scheduler is None else self._metrics.families(self._scheduler, self.load())

    async def failed(self) -> str:
        """See `Engine.failed`."""
        await self._dead.wait()
        return self._ended or "the simulated engine is dead"

    async def stop(self) -> None:
        """See `Engine.stop`."""
        self._end("the engine was stopped")
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        if self._shared_file is not None:
            self._shared_file.close()

    def die(self, reason: str) -> None:
        """Fail for good, as an engine does whose process is gone."""
        self._end(reason, EngineDiedError)
        self._dead.set()
        if self._loop is not None:
            self._loop.cancel()

    def freeze(self) -> None:
        """Compute nothing until `thaw`, as an engine does whose process is stopped."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._thawed.set()

    def _admit(self, request: GenerateRequest) -> tuple[SimScheduler, SimRequest]:
        if self._scheduler is None or self._vocabulary is None or self._ended is not None:
            raise WorkerLostError(self._ended or "the engine is not started")
        self._check(request, self._vocabulary)
        entry = SimRequest(
            request,
            self._vocabulary,
            room=self._settings.max_model_len - len(request.token_ids),
            echo=self._settings.output == "echo",
        )
        self._requests[entry.sequence] = entry
        self._scheduler.add(entry.sequence, asyncio.get_running_loop().time())
        self._work.set()
        return self._scheduler, entry

    def _check(self, request: GenerateRequest, vocabulary: Vocabulary) -> None:
        tokens, limit = request.token_ids, self._settings.max_model_len
        if not tokens:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if len(tokens) >= limit:
            raise ContextLengthExceededError(
                f"the prompt has {len(tokens)} tokens; with at least one of output, the context holds {limit}",
                param="prompt",
            )
        known = range(vocabulary.size)
        for param, ids in (
            ("prompt", tokens),
            ("stop_token_ids", request.sampling.stop_token_ids),
            ("allowed_token_ids", request.sampling.allowed_token_ids),
            ("logit_bias", tuple(request.sampling.logit_bias)),
        ):
            if ids and (min(ids) not in known or max(ids) not in known):
                raise InvalidRequestError(f"{param} has token ids that are not 0 to {vocabulary.size - 1}", param=param)
        tools = request.parsing is not None and request.parsing.tools
        field = "tools" if tools else refusal(request.sampling, self._settings.output == "echo")
        if field is not None:
            raise InvalidRequestError(f"{field} is not possible: the engine is simulated", param=field)

    async def _run(self, scheduler: SimScheduler) -> None:
        clock = asyncio.get_running_loop().time
        engine_s = turn_s = clock()
        while True:
            await self._thawed.wait()
            step = scheduler.schedule(engine_s)
            if step is None:
                await self._wait_for_work(scheduler.next_arrival_s(), clock)
                engine_s = clock()
                continue
            engine_s = max(engine_s, clock() - _MAX_LAG_S) + step.duration_s * self.slowdown
            if engine_s > clock() or clock() > turn_s + _TURN_S:
                await asyncio.sleep(max(0.0, engine_s - clock()))
                turn_s = clock()
            self._deliver(scheduler, step)

    async def _wait_for_work(self, next_arrival_s: float | None, clock: Callable[[], float]) -> None:
        self._work.clear()
        try:
            async with asyncio.timeout(None if next_arrival_s is None else max(0.0, next_arrival_s - clock())):
                await self._work.wait()
        except TimeoutError:
            return

    def _deliver(self, scheduler: SimScheduler, step: Step) -> None:
        grown = scheduler.complete(step)
        if self._kv is not None:
            self._kv.add(step.events, step.shared)
        for sequence in grown:
            entry = self._requests.get(sequence)
            if entry is None:
                continue
            entry.take_token()
            if entry.finish_reason is not None:
                scheduler.finish(sequence)
                self._metrics.count_finished(entry.finish_reason)

    def _end(self, reason: str, error: type[WorkerLostError] = WorkerLostError) -> None:
        if self._ended is None:
            self._ended = reason
        for entry in self._requests.values():
            entry.fail(error(self._ended))
        if self._kv is not None:
            self._kv.end()

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        if not loop.cancelled() and (error := loop.exception()) is not None:
            self._end(f"the simulated engine failed: {type(error).__name__}")
            self._dead.set()
