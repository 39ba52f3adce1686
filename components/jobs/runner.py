"""A job worker's work: takes what the queue pushes, runs it on the engine, renews leases, and delivers every outcome.

Outcomes are kept until the queue has acknowledged them; jobs run on while the connection is lost. When the engine is away,
the worker gives its jobs back and asks for none until it is there again.
"""

import asyncio
import logging
import random
from dataclasses import dataclass, field

import msgspec

from components.jobs.assemble import Assembly
from components.jobs.engine_client import Engine, EngineAwayError, EngineBusyError, EngineError
from components.jobs.fetch import Fetcher, FetchError, ForbiddenUrlError
from components.jobs.frames import (
    MAX_INLINE_BYTES,
    AssignedJob,
    Drain,
    Error,
    Fence,
    FromQueue,
    JobAck,
    JobChunk,
    JobError,
    JobProgress,
    JobRelease,
    JobResult,
    JobResultRef,
    JobRevoked,
    Pause,
    Register,
    Registered,
    Resume,
    Running,
)
from components.jobs.link import Link
from components.jobs.payload import ChatJob, PayloadError, read_payload, result_of
from components.jobs.undelivered import Outcome, Undelivered
from components.jobs.worker_settings import WorkerSettings
from components.telemetry.logs import trail

log = logging.getLogger(__name__)

_WATCH_S = 1.0
_UPLOAD_TRIES = 3
_ENGINE_TRIES = 8
_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_UNACKNOWLEDGED_S = 2.0


@dataclass
class _Job:
    """A job under way.

    Attributes:
        frame: as it came.
        fence: of the last assignment; the queue may give a job again to who runs it.
        assembly: what came of it so far.
        chunks: on their way to the queue, None after the last.
        most_tokens: it may generate; 0 while unknown.
    """

    frame: AssignedJob
    fence: Fence
    assembly: Assembly = field(default_factory=Assembly)
    chunks: "asyncio.Queue[bytes | None]" = field(default_factory=asyncio.Queue)
    most_tokens: int = 0
    task: "asyncio.Task[None] | None" = None


class JobWorker:
    """One worker.

    Attributes:
        engine_away: whether the engine has failed and is not back.
        link: its connection to the queue; to be run.
    """

    def __init__(
        self, settings: WorkerSettings, engine: Engine, fetcher: Fetcher, undelivered: Undelivered, tasks: asyncio.TaskGroup
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._fetcher = fetcher
        self._undelivered = undelivered
        self._tasks = tasks
        self._jobs: dict[str, _Job] = {}
        self.engine_away = False
        self._model = settings.model
        self._renew_after_s = settings.renew_after_s
        self._acknowledges = False
        self._paused = False
        self._draining = False
        self._changed = asyncio.Event()
        self.link = Link(settings, self._register, self._opened, self._hear)

    async def watch_engine(self) -> None:
        """Pause while the engine is away or has enough to do, and resume after; for ever."""
        self._model = await self._engine.served_model()
        while True:
            if self.engine_away:
                self.engine_away = not await self._engine.ready()
            waiting = None if self.engine_away else await self._engine.waiting()
            await self._pause(paused=self.engine_away or (waiting is not None and waiting > self._settings.pause_above))
            await asyncio.sleep(_WATCH_S)

    async def drain(self) -> None:
        """Take no more, let running jobs end within the grace, give back the others, and deliver what is done."""
        self._draining = True
        await self.link.send(Drain())
        try:
            async with asyncio.timeout(self._settings.grace_s):
                while self._jobs or (self._acknowledges and len(self._undelivered) and self.link.connected):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.info("the grace is over", extra={"jobs": len(self._jobs), "undelivered": len(self._undelivered)})
        for job in list(self._jobs.values()):
            await self.link.send(JobRelease(job.frame.job_id, job.fence, "the worker stops"))
            if job.task is not None:
                job.task.cancel()
        await self.link.close()

    # -- what the queue says

    def _register(self) -> Register:
        running = [Running(job.frame.job_id, job.fence) for job in self._jobs.values()]
        return Register(self._settings.worker_id, self._settings.config_id, self._settings.max_jobs, running)

    async def _hear(self, frame: FromQueue) -> None:
        match frame:
            case Registered():
                self._acknowledges = True
                self._renew_after_s = min(self._settings.renew_after_s, 0.8 * frame.lease_s)
            case AssignedJob():
                await self._accept(frame)
            case JobRevoked():
                self._drop(frame.job_id, frame.reason)
            case JobAck() | JobResultRef():
                self._undelivered.drop(frame.job_id)
                self._changed.set()
            case Error():
                log.warning("the queue reports an error", extra={"error": frame.message[:500]})

    async def _opened(self) -> None:
        """Say again what a new connection does not know."""
        if self._draining:
            await self.link.send(Drain())
        if self._paused:
            await self.link.send(Pause())
        for outcome in self._undelivered:
            self._tasks.create_task(self._deliver(outcome))

    async def _accept(self, frame: AssignedJob) -> None:
        if (running := self._jobs.get(frame.job_id)) is not None:
            running.frame, running.fence = frame, frame.fence_token
            return
        # The queue knows our capacity, but may count a job as ended that lingers here.
        over = len(self._jobs) >= 2 * self._settings.max_jobs
        if over or self._draining or self.engine_away:
            await self.link.send(JobRelease(frame.job_id, frame.fence_token, "the worker takes no job now"))
            return
        job = self._jobs[frame.job_id] = _Job(frame, frame.fence_token)
        job.task = self._tasks.create_task(self._run(job))

    def _drop(self, job_id: str, reason: str) -> None:
        log.info("a job was revoked", extra={"job": job_id, "reason": reason})
        self._undelivered.drop(job_id)
        if (job := self._jobs.pop(job_id, None)) is not None and job.task is not None:
            job.task.cancel()
        self._changed.set()

    # -- a job's life

    async def _run(self, job: _Job) -> None:
        """Do a job to its end, whatever the end is."""
        outcome: Outcome | None = None
        helpers = [self._tasks.create_task(self._renew(job))]
        if job.frame.stream:
            helpers.append(self._tasks.create_task(self._send_chunks(job)))
        try:
            outcome = await self._attempt(job)
            job.chunks.put_nowait(None)
            if job.frame.stream:
                await helpers[-1]
        except EngineAwayError as error:
            log.warning("the engine fails", extra={"job": job.frame.job_id, "error": str(error)[:300]})
            self.engine_away = True
            await self._pause(paused=True)
            await self.link.send(JobRelease(job.frame.job_id, job.fence, "the engine fails"))
        finally:
            for helper in helpers:
                helper.cancel()
            if self._jobs.get(job.frame.job_id) is job:
                del self._jobs[job.frame.job_id]
            self._changed.set()
        if outcome is not None:
            self._undelivered.add(outcome)
            await self._deliver(outcome)

    async def _attempt(self, job: _Job) -> Outcome:
        frame = job.frame
        try:
            chat = read_payload(await self._payload(frame))
            job.most_tokens = int(chat.request.get("max_tokens") or chat.request.get("max_completion_tokens") or 0)
            completion = await self._complete(job, chat)
            result = result_of(chat.job_type, completion)
        except (PayloadError, ForbiddenUrlError, FetchError, EngineError) as error:
            return Outcome(frame.job_id, job.fence, error=str(error))
        except EngineAwayError:
            raise
        except Exception as error:  # noqa: BLE001 a bug costs this job, not the worker
            log.error("a job failed", extra={"job": frame.job_id, "error": trail(error)})  # noqa: TRY400
            return Outcome(frame.job_id, job.fence, error="the worker failed; its log says why")
        return Outcome(frame.job_id, job.fence, result, upload_url=frame.result_upload_url)

    async def _payload(self, frame: AssignedJob) -> bytes | msgspec.Raw:
        if frame.payload_url is not None and bytes(frame.payload) == b"null":
            return await self._fetcher.get(frame.payload_url)
        return frame.payload

    async def _complete(self, job: _Job, chat: ChatJob) -> dict[str, object]:
        """Return the completion; an engine that is there but too busy is asked again for a while.

        Raises:
            EngineError: it refuses the job.
            EngineAwayError: it is not there, broke off, or stays busy.
        """
        for tries in range(_ENGINE_TRIES):
            try:
                await self._engine.chat(chat, self._model, job.assembly, job.chunks.put_nowait if job.frame.stream else None)
                return job.assembly.completion()
            except EngineBusyError as error:
                if tries == _ENGINE_TRIES - 1:
                    raise
                log.info("the engine is busy", extra={"job": job.frame.job_id, "error": str(error)[:300]})
                await asyncio.sleep(min(_LONGEST_PAUSE_S, _PAUSE_S * 2**tries) * random.uniform(0.5, 1.0))
        raise AssertionError

    async def _renew(self, job: _Job) -> None:
        """Tell the queue in time that the job goes on, with the tokens so far."""
        while True:
            await asyncio.sleep(self._renew_after_s)
            tokens = job.assembly.tokens
            progress = min(1.0, tokens / job.most_tokens) if job.most_tokens else None
            await self.link.send(JobProgress(job.frame.job_id, job.fence, progress, f"{tokens} tokens"))

    async def _send_chunks(self, job: _Job) -> None:
        while (chunk := await job.chunks.get()) is not None:
            await self.link.send(JobChunk(job.frame.job_id, job.fence, msgspec.Raw(chunk)))

    # -- outcomes

    async def _deliver(self, outcome: Outcome) -> None:
        """Send an outcome; it stays on disk until the queue says that it has it."""
        job_id, fence = outcome.job_id, outcome.fence_token
        sent = False
        if outcome.result is None:
            sent = await self.link.send(JobError(job_id, fence, outcome.error))
        elif len(outcome.result) <= MAX_INLINE_BYTES or outcome.upload_url is None:
            sent = await self.link.send(JobResult(job_id, fence, msgspec.Raw(outcome.result)))
        elif await self._upload(outcome.upload_url, outcome.result, job_id):
            sent = await self.link.send(JobResultRef(job_id, fence))
        if sent and not self._acknowledges:
            asyncio.get_running_loop().call_later(_UNACKNOWLEDGED_S, self._forget, job_id)

    def _forget(self, job_id: str) -> None:
        """Drop an outcome that was sent to a queue which acknowledges nothing."""
        if not self._acknowledges and self.link.connected:
            self._undelivered.drop(job_id)

    async def _upload(self, url: str, result: bytes, job_id: str) -> bool:
        for tries in range(_UPLOAD_TRIES):
            try:
                await self._fetcher.put(url, result)
            except ForbiddenUrlError as error:
                log.warning("may not upload a result there", extra={"job": job_id, "error": str(error)})
                return False
            except FetchError as error:
                log.warning("cannot upload a result", extra={"job": job_id, "error": str(error)})
                await asyncio.sleep(2**tries * random.uniform(0.5, 1.0))
            else:
                return True
        return False

    async def _pause(self, *, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            log.info("paused" if paused else "resumed")
            await self.link.send(Pause() if paused else Resume())
