"""vLLM's executor for engines of the pool: carries each call of the engine's core to its ranks, and their answers back.

Imports vLLM; given to it as ``distributed_executor_backend``. An `EngineJob` in the environment says all it needs.
"""

import contextlib
import logging
import os
import pickle
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
from vllm import envs
from vllm.platforms import current_platform
from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.v1.executor.abstract import Executor

from components.worker_controller.calls import LOAD, Answer, Call, NoCallError, pack, unpack_answer
from components.worker_controller.frames import Frames, FrameTooLongError, StreamClosedError
from components.worker_controller.messages import JOB_VARIABLE, Doing, EngineJob, Failed, Hello, encode, phase_since
from components.worker_controller.report import ErrorReporter, Report

log = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 where Linux shows the names of shared memory


class RankFailedError(RuntimeError):
    """A rank died, or a call failed in it; the text says which and why."""


class RemoteExecutor(Executor):  # type: ignore[misc] # vLLM is untyped here
    """One engine's ranks, from the side of its core.

    Calls go to all ranks in order, over one stream each; answers come back in the order of the calls, so the queue of
    unanswered ones is a plain deque, as in vLLM's ``MultiprocExecutor``.
    """

    supports_pp = True

    def _init_executor(self) -> None:
        began = time.monotonic()
        self._job = msgspec.json.decode(os.environ[JOB_VARIABLE], type=EngineJob)
        self._report = Report(self._job)
        logging.getLogger("vllm").addHandler(ErrorReporter(self._report))
        self._failure = ""
        self._closing = False
        self._on_failure: Callable[[], None] | None = None
        self._unanswered: deque[_Pending] = deque()
        self._tell_doing("connecting to its ranks")
        self._ranks = [self._connect(address.socket) for address in self._job.ranks]
        if len(self._ranks) != self.parallel_config.world_size:
            raise RankFailedError(f"{len(self._ranks)} ranks for a world of {self.parallel_config.world_size}")
        for position in range(len(self._ranks)):
            threading.Thread(target=self._watch, args=[position], name=f"watch-rank-{position}", daemon=True).start()
        self._report.tell(phase_since(self._job.engine, "core", began))
        self._load()
        # Only the first tensor rank of the last pipeline stage has a step's output.
        self._output_rank = self.parallel_config.world_size - self.parallel_config.tensor_parallel_size

    def _connect(self, path: str) -> Frames:
        try:
            calls = Frames.connect(Path(path), self._job.max_ipc_bytes)
            calls.send(encode_hello(self._job.key))
        except StreamClosedError as error:
            raise RankFailedError(f"a rank does not answer: {error}") from error
        return calls

    def _load(self) -> None:
        self._tell_doing("loading the model")
        for position in range(len(self._ranks)):
            args = (self.vllm_config, position, self._job.rendezvous)
            self._send(position, Call(LOAD, args, {}, answered=True))
        reading = threading.Thread(target=self._read_tokenizer, name="read-tokenizer", daemon=True)
        reading.start()
        try:
            self._wait_for_load()
        finally:
            self._forget_names()
            reading.join()

    def _wait_for_load(self) -> None:
        waiting = dict(enumerate(self._ranks))
        while waiting:
            ready, _, _ = select.select(list(waiting.values()), [], [])
            for position in [position for position, calls in waiting.items() if calls in ready]:
                self._answers([position], None)  # the first failure ends it: the others may wait for this rank for ever
                del waiting[position]

    def _read_tokenizer(self) -> None:
        """Read while the ranks load what the core wants afterwards; vLLM keeps it, and says later what is wrong with it."""
        if not self.model_config.skip_tokenizer_init:
            with contextlib.suppress(Exception):
                cached_tokenizer_from_config(self.model_config)

    def _forget_names(self) -> None:
        """Take the names off the memory that ranks on a CPU share: they have it by now, and killed ones would leave it."""
        for name in _SHARED_MEMORY.glob(f"{Path(self._job.rendezvous).name}-*"):
            with contextlib.suppress(OSError):
                name.unlink()

    def _tell_doing(self, what: str) -> None:
        self._report.tell(Doing(what))

    def _watch(self, position: int) -> None:
        """Notice a rank's death at once, also between two calls."""
        self._ranks[position].wait_closed()
        if not self._closing:
            self._fail(f"worker rank {self._job.ranks[position].rank} is gone")

    def _fail(self, reason: str) -> None:
        if not self._failure:
            self._failure = reason
            log.error("the executor failed: %s", reason)
            self._report.tell(Failed(reason))
        if callback := self._on_failure:
            self._on_failure = None
            callback()

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when a rank is gone; see `Executor.register_failure_callback`."""
        self._on_failure = callback
        if self._failure:
            self._fail(self._failure)

    def initialize_from_config(self, kv_cache_configs: list[Any]) -> None:
        """Make the ranks' KV caches; see `Executor.initialize_from_config`."""
        self._tell_doing("making the KV cache")
        super().initialize_from_config(kv_cache_configs)
        if current_platform.is_cpu() and self.parallel_config.pipeline_parallel_size > 1:
            # A stage makes room for what the stage before sends when it computes something made up, as every GPU worker does
            # on its way. A CPU worker that compiles nothing does not, and fails at the first request (docs/log.md).
            self.collective_rpc("execute_dummy_batch")

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Run one step; the result is that of the rank that has it. See `Executor.execute_model`."""
        return self._step("execute_model", (scheduler_output,), non_block=non_block)

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        """Sample after a step; see `Executor.sample_tokens`."""
        return self._step("sample_tokens", (grammar_output,), non_block=non_block)

    def execute_dummy_batch(self) -> None:
        """Run an empty step; see `Executor.execute_dummy_batch`."""
        self._step("execute_dummy_batch", (), non_block=False)

    def take_draft_token_ids(self) -> Any:
        """Return the draft tokens of the last step; see `Executor.take_draft_token_ids`."""
        return self._step("take_draft_token_ids", (), non_block=False)

    def _step(self, method: str, args: tuple[Any, ...], *, non_block: bool) -> Any:
        timeout_s = envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS
        aggregators = [a for a in (self.kv_output_aggregator, getattr(self, "ec_output_aggregator", None)) if a]
        if not aggregators or method not in {"execute_model", "sample_tokens"}:
            return self._call(method, args, {}, [self._output_rank], timeout_s, _only, non_block=non_block)

        def aggregate(outputs: list[Any]) -> Any:
            result = outputs[self._output_rank]
            for aggregator in aggregators:
                result = aggregator.aggregate(outputs, output_rank=self._output_rank)
            return result

        everyone = list(range(len(self._ranks)))
        return self._call(method, args, {}, everyone, timeout_s, aggregate, non_block=non_block)

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """Run `method` in all ranks and return their results in order; see `Executor.collective_rpc`."""
        everyone = list(range(len(self._ranks)))
        return self._call(method, args, kwargs or {}, everyone, timeout, _all, non_block=non_block)

    def _call(
        self,
        method: str | Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        answering: list[int],
        timeout_s: float | None,
        combine: Callable[[list[Any]], Any],
        *,
        non_block: bool,
    ) -> Any:
        if self._failure:
            raise RankFailedError(self._failure)
        name = method if isinstance(method, str) else cloudpickle.dumps(method, protocol=pickle.HIGHEST_PROTOCOL)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        frames = {wanted: pack(Call(name, args, kwargs, wanted)) for wanted in (True, False)}
        for position in range(len(self._ranks)):
            self._send_frame(position, frames[position in answering])
        pending = _Pending(self, answering, deadline_s, combine)
        self._unanswered.append(pending)
        return pending if non_block else pending.result()

    def _send(self, position: int, call: Call) -> None:
        self._send_frame(position, pack(call))

    def _send_frame(self, position: int, frame: bytes) -> None:
        try:
            self._ranks[position].send(frame)
        except StreamClosedError:
            raise self._lost(position, "is gone") from None
        except FrameTooLongError as error:
            self._report.tell(Failed(f"a call to its ranks is too long: {error}"))
            raise RankFailedError(str(error)) from None

    def _answers(self, positions: Any, deadline_s: float | None) -> list[Any]:
        """Read one answer of each of `positions`, in order.

        Raises:
            RankFailedError: a call failed, or a rank is gone.
            TimeoutError: an answer did not come in time.
        """
        found, failed = [], ""
        for position in positions:
            left_s = None if deadline_s is None else max(0.001, deadline_s - time.monotonic())
            try:
                answer: Answer = unpack_answer(self._ranks[position].receive(left_s))
            except StreamClosedError:
                raise self._lost(position, "is gone") from None
            except NoCallError as error:
                raise self._lost(position, f"sent {error}") from None
            if not answer.ok:
                failed = failed or f"worker rank {self._job.ranks[position].rank}: {answer.value}"
            found.append(answer.value)
        if failed:
            self._report.tell(Failed(failed))
            raise RankFailedError(failed)
        return found

    def _lost(self, position: int, why: str) -> RankFailedError:
        reason = f"worker rank {self._job.ranks[position].rank} {why}"
        self._report.tell(Failed(reason))
        self._failure = self._failure or reason
        return RankFailedError(reason)

    def check_health(self) -> None:
        """Raise if a rank is gone; see `Executor.check_health`."""
        if self._failure:
            raise RankFailedError(self._failure)

    def shutdown(self) -> None:
        """Leave the ranks; they clean up as soon as they notice."""
        self._closing = True
        for calls in self._ranks:
            calls.close()

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """Whether a step may be sent before the last one's output is read; it may."""
        return True


class _Pending(Future[Any]):
    """An answer that is still to be read; reading it reads all older ones first."""

    def __init__(
        self,
        executor: RemoteExecutor,
        answering: list[int],
        deadline_s: float | None,
        combine: Callable[[list[Any]], Any],
    ) -> None:
        super().__init__()
        self._executor = executor
        self._answering = answering
        self._deadline_s = deadline_s
        self._combine = combine

    def result(self, timeout: float | None = None) -> Any:
        """Return the combined result; `timeout` is not heeded, the call has its own."""
        while not self.done():
            self._executor._unanswered.popleft()._read()
        return super().result(timeout)

    def _read(self) -> None:
        try:
            self.set_result(self._combine(self._executor._answers(self._answering, self._deadline_s)))
        except Exception as error:  # noqa: BLE001 a future holds whatever happened for whoever asks
            self.set_exception(error)


def _only(results: list[Any]) -> Any:
    return results[0]


def _all(results: list[Any]) -> list[Any]:
    return results


def encode_hello(key: str) -> bytes:
    """Return the frame that a core shows to a rank."""
    return encode(Hello(key, "core", os.getpid()))
