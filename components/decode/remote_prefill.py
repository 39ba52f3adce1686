"""Has long prompts prefilled elsewhere before they are generated here: puts a job, waits for its end, gives up when late.

Whatever happens to a job, the request is generated here afterwards, once; KV that LMCache does not have is computed then.
What a decision depends on is gathered here, the decision is `placement`'s.
"""

import asyncio
import logging
import time

import msgspec

from components.bus.client import Bus, BusError
from components.bus.member import Nothing
from components.bus.work_queue import WorkQueue
from components.decode.placement import Situation, Speeds, given_up, place
from components.decode.prefill_crew import PrefillCrew
from components.decode.prefill_metrics import Metrics
from components.engine.protocol import Engine
from components.graph.load import GraphError, change_disagg
from components.graph.schema import Disagg, Graph
from components.telemetry.tracing import Span, carry, span
from components.wire.block_hash import block_hashes, root_hash
from components.wire.errors import InvalidRequestError
from components.wire.messages import GenerateRequest
from components.wire.prefill import DisaggChange, DisaggRules, PrefillCancel, PrefillJob, PrefillProgress, PrefillState
from components.wire.process import ProcessStatus
from components.wire.subjects import Subjects
from components.worker.kv_held import HeldBlocks

log = logging.getLogger(__name__)

QUEUE_LOOK_S = 0.25
_LOOK_S = 0.25


class _Waiting:
    """One job that somebody waits for."""

    def __init__(self) -> None:
        self.prefill_worker = ""
        self.progress: asyncio.Future[PrefillProgress] = asyncio.get_running_loop().create_future()


class RemotePrefill:
    """One decode worker's dealings with prefill workers.

    Attributes:
        rules: when a prompt goes elsewhere; may be changed while requests run.
        waiting_requests: requests whose prompts are elsewhere now.
    """

    def __init__(
        self,
        name: str,
        graph: Graph,
        engine: Engine,
        held: HeldBlocks,
        queue: WorkQueue[PrefillJob],
        bus: Bus,
        subjects: Subjects,
        metrics: Metrics,
    ) -> None:
        self.rules = graph.components.decode.disagg if graph.components.decode else Disagg()
        self._name = name
        self._model = graph.model_name
        self._block_size = graph.kv.block_size
        self._engine = engine
        self._held = held
        self._queue = queue
        self._bus = bus
        self._subjects = subjects
        self._metrics = metrics
        self._crew = PrefillCrew(graph.model_name, graph.process_name("lmcache", 0), graph.supervision.silence_timeout_s)
        self._speeds = Speeds()
        self._jobs: dict[str, _Waiting] = {}

    @property
    def waiting_requests(self) -> int:
        """Requests whose prompts are prefilled elsewhere now."""
        return len(self._jobs)

    async def listen(self) -> None:
        """From now on hear of prefill workers, of jobs, and of new rules."""
        bus, subjects = self._bus, self._subjects
        await bus.subscribe(subjects.every_status(), ProcessStatus, self._on_status)
        await bus.subscribe(subjects.prefill_progress(self._name), PrefillProgress, self._on_progress)
        await bus.serve(subjects.disagg(), DisaggChange, self._on_change)
        await bus.publish(subjects.ask_status(), Nothing())

    async def watch(self) -> None:
        """See how the queue stands, for ever."""
        await self._queue.watch(QUEUE_LOOK_S)

    async def prepare(self, request: GenerateRequest) -> int:
        """Return when `request` is to be generated here: at once, or when its prompt was prefilled elsewhere, or is late.

        Returns:
            How many tokens were prefilled elsewhere.
        """
        if len(request.token_ids) <= self.rules.max_local_prefill_tokens or not self.rules.enabled:
            return 0
        start_s = time.monotonic()
        now = await self._situation(request)
        placement = place(now, self.rules, self._speeds)
        self._metrics.placed.labels(placement.reason.value).inc()
        log.debug("placed", extra={"request_id": request.request_id, **msgspec.to_builtins(placement)})
        if not placement.remote:
            return 0
        with span("prefill elsewhere", uncached_tokens=now.uncached_tokens, reason=placement.reason.value) as traced:
            done = await self._leave_to_others(request, now, start_s, traced)
        return now.uncached_tokens if done else 0

    def loaded(self, tokens: int, seconds: float) -> None:
        """Take in how long the engine took to a first token after so many tokens were prefilled elsewhere."""
        self._metrics.load_s.observe(seconds)
        self._speeds.loaded(tokens, seconds)

    async def _situation(self, request: GenerateRequest) -> Situation:
        """Gather what the decision depends on; LMCache is asked only about prompts that are long without it."""
        prompt_tokens = len(request.token_ids)
        root = root_hash(request.model, None, request.cache_salt)
        blocks = block_hashes(request.token_ids, self._block_size, root)
        near_tokens = self._held.leading(blocks) * self._block_size
        if prompt_tokens - near_tokens > self.rules.max_local_prefill_tokens:
            near_tokens = max(near_tokens, await self._engine.shared_tokens(request))
        queue, load = self._queue.recent_state, self._engine.load()
        return Situation(
            prompt_tokens,
            near_tokens,
            prefill_workers=self._crew.ready(time.monotonic()),
            queue_depth=queue.waiting if queue else None,
            queue_age_s=queue.oldest_age_s if queue and queue.waiting else 0.0,
            running_requests=load.running_requests,
            waiting_requests=load.waiting_requests,
        )

    async def _leave_to_others(self, request: GenerateRequest, now: Situation, start_s: float, traced: Span) -> bool:
        """Put the job and wait for it, but not too long; then tidy up. Returns whether it was done."""
        job_id = request.request_id
        waiting = self._jobs[job_id] = _Waiting()
        outcome = "cancelled"
        try:
            outcome = await self._put_and_wait(request, waiting, start_s)
        finally:
            del self._jobs[job_id]
            self._metrics.outcomes.labels(outcome).inc()
            traced.set(outcome=outcome)
            if outcome not in {"done", "failed", "not_put"}:
                await self._call_off(job_id)
        if outcome == "done":
            self._learn(request, now, waiting.progress.result(), time.monotonic() - start_s)
        else:
            log.info("computing a prompt here after all", extra={"request_id": job_id, "reason": outcome})
        return outcome == "done"

    async def _put_and_wait(self, request: GenerateRequest, waiting: _Waiting, start_s: float) -> str:
        """Return how the job ended."""
        rules, now_unix_s = self.rules, time.time()
        job = PrefillJob(
            request.request_id,
            self._name,
            self._model,
            request.token_ids,
            now_unix_s,
            min(request.deadline_unix_s, now_unix_s + rules.max_wait_s),
            request.cache_salt,
            carry(),
        )
        try:
            await self._queue.put(job, job.job_id)
        except (BusError, ValueError) as error:
            log.warning("cannot put a prefill job", extra={"request_id": job.job_id, "error": str(error)})
            return "not_put"
        self._metrics.put_s.observe(time.monotonic() - start_s)
        while not waiting.progress.done():
            now_s = time.monotonic()
            if why := given_up(now_s - start_s, rules, taken=bool(waiting.prefill_worker)):
                return why
            if waiting.prefill_worker and not self._crew.lives(waiting.prefill_worker, now_s):
                return "worker_lost"
            await asyncio.wait([waiting.progress], timeout=_LOOK_S)
        return waiting.progress.result().state.value

    async def _call_off(self, job_id: str) -> None:
        try:
            await self._bus.publish(self._subjects.prefill_cancel(), PrefillCancel([job_id]))
        except BusError as error:  # it is computed for nobody, or expires
            log.debug("cannot call off a prefill job", extra={"request_id": job_id, "error": str(error)})

    def _learn(self, request: GenerateRequest, now: Situation, done: PrefillProgress, whole_s: float) -> None:
        """Take in what a remote prefill cost."""
        self._metrics.remote_s.observe(whole_s)
        self._metrics.overhead_s.observe(max(whole_s - done.prefill_s, 0.0))
        self._speeds.prefilled(now.uncached_tokens, done.prefill_s, done.queued_s, whole_s)
        log.debug(
            "prefilled elsewhere",
            extra={
                "request_id": request.request_id,
                "by": done.prefill_worker,
                "queued_ms": round(done.queued_s * 1e3, 2),
                "prefill_ms": round(done.prefill_s * 1e3, 2),
                "store_ms": round(done.store_s * 1e3, 2),
                "whole_ms": round(whole_s * 1e3, 2),
            },
        )

    async def _on_status(self, status: ProcessStatus) -> None:
        self._crew.hear(status, time.monotonic())

    async def _on_progress(self, progress: PrefillProgress) -> None:
        waiting = self._jobs.get(progress.job_id)
        if waiting is None:
            return
        if not waiting.prefill_worker:
            self._queue.taken_elsewhere()
        waiting.prefill_worker = progress.prefill_worker
        if progress.state is not PrefillState.STARTED and not waiting.progress.done():
            waiting.progress.set_result(progress)

    async def _on_change(self, change: DisaggChange) -> DisaggRules:
        """Go by new rules from now on; a change with any mistake in it changes nothing."""
        try:
            self.rules = changed(self.rules, change)
        except InvalidRequestError as error:
            return DisaggRules(self._name, msgspec.to_builtins(self.rules), error.reply())
        return DisaggRules(self._name, msgspec.to_builtins(self.rules))


def changed(rules: Disagg, change: DisaggChange) -> Disagg:
    """Return `rules` with `change` applied.

    Raises:
        InvalidRequestError: a name or value is wrong.
    """
    try:
        return change_disagg(rules, change.changes)
    except GraphError as error:
        raise InvalidRequestError(str(error)) from error
