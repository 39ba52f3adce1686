"""Takes prefill jobs, computes them together up to a budget of tokens, and ends each once its KV can be loaded by others.

A job taken is under a lease that is renewed while it runs. It leaves the queue when the shared cache answers that every full
chunk of its prompt is readable, not before. A worker that dies holds nothing back: the lease ends and another takes the job.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from functools import partial

from components.bus.client import Bus, BusError
from components.bus.delivery import Delivery
from components.bus.work_queue import WorkQueue
from components.engine.protocol import Engine, EngineInfo
from components.graph.schema import Graph, LMCache, PrefillSettings
from components.prefill.budget import Budget
from components.prefill.metrics import Metrics
from components.telemetry.logs import trail
from components.telemetry.tracing import carry, span
from components.wire.errors import InvalidRequestError, PenstockError, WorkerLostError
from components.wire.messages import GenerateRequest, Sampling
from components.wire.prefill import PrefillCancel, PrefillJob, PrefillProgress, PrefillState
from components.wire.process import WorkerRole, WorkerStatus
from components.wire.subjects import Subjects

log = logging.getLogger(__name__)

_TAKE_WAIT_S = 1.0
_READABLE_TIMEOUT_S = 2.0
_FIRST_PAUSE_S = 0.001
_REMEMBERED_CANCELS = 4096


class PrefillService:
    """One prefill worker's jobs."""

    def __init__(
        self,
        name: str,
        graph: Graph,
        engine: Engine,
        info: EngineInfo,
        queue: WorkQueue[PrefillJob],
        bus: Bus,
        subjects: Subjects,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._name = name
        self._model = graph.model_name
        self._settings = graph.components.prefill or PrefillSettings()
        self._chunk_tokens = (graph.lmcache or LMCache()).chunk_tokens
        self._store = graph.process_name("lmcache", 0)
        self._engine = engine
        self._info = info
        self._queue = queue
        self._bus = bus
        self._subjects = subjects
        self._metrics = metrics
        self._tasks = tasks
        self._running: dict[str, asyncio.Task[None]] = {}
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._budget = Budget(self._settings.max_batched_tokens)
        self._room = asyncio.Event()
        self._taking: asyncio.Task[None] | None = None
        self._draining = False

    async def open(self) -> None:
        """From now on take jobs, and hear which of them nobody waits for any more."""
        await self._bus.subscribe(self._subjects.prefill_cancel(), PrefillCancel, self._cancel)
        self._taking = self._tasks.create_task(self._take())

    async def _take(self) -> None:
        """Take jobs while there is room in the budget, for ever."""
        while True:
            self._room.clear()
            if not self._budget.open:
                await self._room.wait()
                continue
            for delivery in await self._queue.take(1, _TAKE_WAIT_S):
                task = self._tasks.create_task(self._serve(delivery))
                self._running[delivery.id] = task
                self._budget.began(len(delivery.message.token_ids))
                self._metrics.under_way.set(self._budget.tokens)
                task.add_done_callback(partial(self._gone, delivery))

    def status(self) -> WorkerStatus:
        """Return what this worker offers and how busy it is."""
        return WorkerStatus(
            model=self._model,
            max_model_len=self._info.max_model_len,
            block_size=self._info.block_size,
            kv_blocks=self._info.kv_blocks,
            load=self._engine.load(),
            role=WorkerRole.PREFILL,
            store=self._store,
        )

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new; finish what runs within `timeout_s` seconds; give the rest back to the queue."""
        self._draining = True
        if self._taking is not None:
            self._taking.cancel()
        await self._queue.close()
        running = list(self._running.values())
        if running:
            await asyncio.wait(running, timeout=timeout_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _gone(self, delivery: Delivery[PrefillJob], _: object) -> None:
        self._running.pop(delivery.id, None)
        self._budget.ended(len(delivery.message.token_ids))
        self._metrics.under_way.set(self._budget.tokens)
        self._room.set()

    async def _cancel(self, cancel: PrefillCancel) -> None:
        for job_id in cancel.job_ids:
            self._cancelled[job_id] = None
            if task := self._running.get(job_id):
                task.cancel()
        while len(self._cancelled) > _REMEMBERED_CANCELS:
            self._cancelled.popitem(last=False)

    async def _serve(self, delivery: Delivery[PrefillJob]) -> None:
        """Bring one job to an end, whatever happens to it."""
        job = delivery.message
        with span("prefill", job.trace, worker=self._name, tokens=len(job.token_ids), delivery=delivery.delivery) as traced:
            try:
                outcome = await self._end(delivery)
            except BusError as error:  # the lease ends, and the job comes again
                outcome = "undelivered"
                log.warning("cannot end a prefill job", extra={"job": delivery.id, "error": str(error)})
            traced.set(outcome=outcome)
        self._metrics.jobs.labels(outcome).inc()

    async def _end(self, delivery: Delivery[PrefillJob]) -> str:
        """Do a job and take it off the queue, or give it back, or up; return its outcome."""
        job = delivery.message
        left_s = job.deadline_unix_s - time.time()
        if left_s <= 0 or delivery.id in self._cancelled:
            await delivery.done()
            return "expired" if left_s <= 0 else "cancelled"
        try:
            async with asyncio.timeout(left_s):
                done = await self._compute(delivery)
        except TimeoutError:
            await delivery.done()
            return "expired"
        except asyncio.CancelledError:
            if delivery.id in self._cancelled:
                await delivery.done()
                return "cancelled"
            await delivery.release()
            raise
        except WorkerLostError:
            await delivery.release()
            return "given_back"
        except InvalidRequestError as error:
            await self._tell(job, PrefillProgress(job.job_id, self._name, PrefillState.FAILED, error=error.reply()))
            await delivery.reject(error.message)
            return "refused"
        except Exception as error:  # noqa: BLE001 the outermost catch: a bug costs this job, not its neighbours
            log.error("a prefill job failed", extra={"job": job.job_id, "error": trail(error)})  # noqa: TRY400
            await self._fail(job, "the prefill worker failed; its log says why")
            await delivery.reject(trail(error))
            return "failed"
        await self._tell(job, done)
        await delivery.done()
        return done.state.value

    async def _compute(self, delivery: Delivery[PrefillJob]) -> PrefillProgress:
        """Compute a job under its lease; return how it went once its KV can be loaded, or clearly cannot."""
        job, queued_s = delivery.message, max(time.time() - delivery.message.put_unix_s, 0.0)
        await self._tell(job, PrefillProgress(job.job_id, self._name, PrefillState.STARTED, queued_s=queued_s))
        self._metrics.queued_s.observe(queued_s)
        renewing = self._tasks.create_task(self._renew(delivery))
        try:
            start_s = time.monotonic()
            with span("compute", queued_s=queued_s):
                request = self._request(job, delivery.delivery)
                async for _ in self._engine.generate(request):
                    continue
            computed_s = time.monotonic()
            with span("store"):
                readable_tokens = await self._readable(request)
            stored_s = time.monotonic()
        finally:
            renewing.cancel()
        whole = readable_tokens >= self._full_chunks(job)
        if whole:
            self._metrics.tokens.inc(len(job.token_ids))
            self._metrics.prefill_s.observe(computed_s - start_s)
            self._metrics.store_s.observe(stored_s - computed_s)
        return PrefillProgress(
            job.job_id,
            self._name,
            PrefillState.DONE if whole else PrefillState.FAILED,
            readable_tokens,
            queued_s,
            computed_s - start_s,
            stored_s - computed_s,
            None if whole else PenstockError("the KV did not become readable in LMCache").reply(),
        )

    async def _readable(self, request: GenerateRequest) -> int:
        """Return how much of a prompt can be loaded, as soon as that is all of it, or after a while."""
        wanted = len(request.token_ids) // self._chunk_tokens * self._chunk_tokens
        deadline_s, pause_s = time.monotonic() + _READABLE_TIMEOUT_S, _FIRST_PAUSE_S
        while (found := await self._engine.shared_tokens(request)) < wanted and time.monotonic() < deadline_s:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.1)
        return found

    def _full_chunks(self, job: PrefillJob) -> int:
        return len(job.token_ids) // self._chunk_tokens * self._chunk_tokens

    async def _renew(self, delivery: Delivery[PrefillJob]) -> None:
        """Keep the lease, for ever. One that is lost all the same costs a second computation; the job may end twice."""
        while True:
            await asyncio.sleep(self._settings.ack_wait_s / 3)
            try:
                await delivery.in_progress()
            except BusError as error:
                log.warning("cannot renew the lease on a job", extra={"job": delivery.id, "error": str(error)})

    def _request(self, job: PrefillJob, delivery: int) -> GenerateRequest:
        """Return the job as the engine takes it: one token, which nobody reads."""
        return GenerateRequest(
            f"{job.job_id}-{delivery}",
            processor="",
            model=self._model,
            token_ids=job.token_ids,
            sampling=Sampling(max_tokens=1, temperature=0.0),
            deadline_unix_s=job.deadline_unix_s,
            cache_salt=job.cache_salt,
            trace=carry(),
        )

    async def _fail(self, job: PrefillJob, why: str) -> None:
        error = PenstockError(why).reply()
        await self._tell(job, PrefillProgress(job.job_id, self._name, PrefillState.FAILED, error=error))

    async def _tell(self, job: PrefillJob, progress: PrefillProgress) -> None:
        try:
            await self._bus.publish(self._subjects.prefill_progress(job.worker), progress)
        except BusError as error:  # the decode worker computes the prompt itself when it hears nothing
            log.warning("a decode worker does not hear of its job", extra={"job": job.job_id, "error": str(error)})
