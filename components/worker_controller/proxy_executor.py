"""The pool's side of an engine: owns vLLM's worker in a rank, runs the calls of the engine's `RemoteExecutor`, cleans up.

Imports vLLM. Lives on the rank's main thread, because OpenMP's threads belong to the thread that started them.
"""

import logging
import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from vllm.platforms import current_platform
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.worker.worker_base import WorkerWrapperBase

from components.engine.vllm_args import IPC_FOLDER
from components.worker_controller.calls import LOAD, Answer, Call, pack
from components.worker_controller.frames import Frames, StreamClosedError

log = logging.getLogger(__name__)

_PHASES = {
    "determine_available_memory": "kv_profiling",
    "initialize_from_config": "kv_cache",
    "compile_or_warm_up_model": "warm_up",
}

Tell = Callable[[str, float], None]
"""Called with a phase's name and the moment it began, once it has ended."""


class ProxyExecutor:
    """Serves one engine.

    Args:
        device_index: which of the machine's GPUs is this rank's; 0 on a CPU.
        calls: the stream to the engine's core.
        tell: hears of phases of the load.
    """

    def __init__(self, device_index: int, calls: Frames, tell: Tell) -> None:
        self._device_index = device_index
        self._calls = calls
        self._tell = tell
        self._worker: Any = None
        self._answers: queue.Queue[Any] | None = None
        self._answering: threading.Thread | None = None

    def run(self, call: Call) -> None:
        """Run `call`, and answer it if an answer is wanted."""
        try:
            output = self._run(call)
        except Exception as error:
            log.warning("a call failed", exc_info=True)
            output = Answer(ok=False, value=_describe(error))
        if not call.answered:
            return
        if self._answers is not None:
            self._answers.put(output)
        else:
            self._answer(output)

    def _run(self, call: Call) -> Any:
        began = time.monotonic()
        if call.method == LOAD:
            return self.load(*call.args)
        if isinstance(call.method, bytes):
            return cloudpickle.loads(call.method)(self._worker, *call.args, **call.kwargs)
        output = getattr(self._worker, call.method)(*call.args, **call.kwargs)
        if name := _PHASES.get(call.method):
            self._tell(name, began)
        return output

    def load(self, config: VllmConfig, rank: int, rendezvous: str) -> None:
        """Make vLLM's worker, join the engine's process groups, load the model. As vLLM's ``WorkerProc`` does.

        Args:
            config: of the engine.
            rank: this rank's place in the engine.
            rendezvous: file where the engine's ranks meet; vLLM makes their sockets beside it.
        """
        began = time.monotonic()
        os.environ[IPC_FOLDER] = str(Path(rendezvous).parent)
        worker = WorkerWrapperBase(rpc_rank=0, global_rank=rank)
        self._worker = worker
        kwargs = {
            "vllm_config": config,
            "local_rank": self._device_index,
            "rank": rank,
            "distributed_init_method": f"file://{rendezvous}",
            "is_driver_worker": rank % config.parallel_config.tensor_parallel_size == 0,
            "shared_worker_lock": multiprocessing.Lock(),
        }
        worker.init_worker([kwargs])
        worker.init_device()
        self._tell("device", began)
        began = time.monotonic()
        worker.load_model()
        current_platform.update_block_size_for_backend(config)
        self._tell("weights", began)
        if config.scheduler_config.async_scheduling:
            self._answers = queue.Queue()
            self._answering = threading.Thread(target=self._answer_all, name="answers", daemon=True)
            self._answering.start()

    def _answer_all(self) -> None:
        """Wait for each output on the device, while the main thread goes on with the next step."""
        if not current_platform.is_cpu():
            current_platform.set_device(torch.device("cuda", self._device_index))
        while (output := self._answers.get()) is not self:  # type: ignore[union-attr]
            self._answer(output)

    def _answer(self, output: Any) -> None:
        try:
            if isinstance(output, AsyncModelRunnerOutput):
                output = output.get_output()
            answer = output if isinstance(output, Answer) else Answer(ok=True, value=output)
            self._calls.send(pack(answer))
        except StreamClosedError:
            log.debug("the engine's core is gone; the main thread notices, too")
        except Exception as error:
            log.warning("an output failed", exc_info=True)
            self._answer(Answer(ok=False, value=_describe(error)))

    def close(self) -> None:
        """Give back what the engine used: groups, model, KV. The caller measures what is left."""
        if self._answers is not None and self._answering is not None:
            self._answers.put(self)
            self._answering.join()
        worker, self._worker, self._answers = getattr(self._worker, "worker", None), None, None
        if worker is not None:
            _quietly(worker.shutdown)
            worker.__dict__.clear()
        _quietly(destroy_model_parallel)
        _quietly(destroy_distributed_environment)
        torch._dynamo.reset()


def _quietly(clean_up: Callable[[], object]) -> None:
    """Run one step of cleaning up; after a failed load, any of them may find half of what it expects."""
    try:
        clean_up()
    except Exception:
        log.warning("a step of the clean-up failed", exc_info=True)


def _describe(error: BaseException) -> str:
    """Return one line about `error`, for whoever asked for the engine."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({frame.name})" for frame in place)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}{where}"
