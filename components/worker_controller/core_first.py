"""Starts an engine's core before its front end has read the tokenizer, not after it. Imports vLLM.

vLLM's front end reads the tokenizer, copies it for its threads, and starts the core then. With a vocabulary of 128,000
words that is a second or more in which no rank does anything, in a creation of a few. The front end has nothing else to do
while the core loads, so it also reads the chat template then, which its API server wants later.
"""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from vllm import envs
from vllm.renderers.params import ChatParams
from vllm.v1.engine import async_llm
from vllm.v1.engine.core_client import EngineCoreClient


class CoreFirstLLM(async_llm.AsyncLLM):  # type: ignore[misc] # vLLM is untyped here
    """vLLM's front end, but for the order in which it starts."""

    def __init__(self, vllm_config: Any, executor_class: Any, log_stats: bool, **rest: Any) -> None:
        if not log_stats or _wants_order(vllm_config):  # without statistics, vLLM decides later on them
            super().__init__(vllm_config, executor_class, log_stats, **rest)
            return
        core = _started(
            vllm_config=vllm_config,
            executor_class=executor_class,
            log_stats=log_stats,
            **{name: rest[name] for name in ("client_addresses", "client_count", "client_index") if name in rest},
        )

        class Started(EngineCoreClient):  # type: ignore[misc] # as above
            """Hands the core over instead of starting one."""

            @staticmethod
            def make_async_mp_client(**_: Any) -> Any:
                self._read_chat_template()
                return core.result()

        with _replaced("EngineCoreClient", Started):
            super().__init__(vllm_config, executor_class, log_stats, **rest)

    def _read_chat_template(self) -> None:
        """Read it now; vLLM keeps it, and says what is wrong with it when the API server asks."""
        with contextlib.suppress(Exception):
            self.renderer.warmup(ChatParams())


def _wants_order(vllm_config: Any) -> bool:
    """Whether the core wants what the front end does first: reads for multimodal models, says where traces go, forks."""
    multimodal = vllm_config.model_config.multimodal_config is not None
    traced = vllm_config.observability_config.otlp_traces_endpoint is not None
    return multimodal or traced or envs.VLLM_WORKER_MULTIPROC_METHOD == "fork"


@contextlib.contextmanager
def core_first() -> Iterator[None]:
    """Have vLLM's API server make such a front end."""
    with _replaced("AsyncLLM", CoreFirstLLM):
        yield


@contextlib.contextmanager
def _replaced(name: str, value: Any) -> Iterator[None]:
    """Put `value` in the place of a class that vLLM looks up by its name when it makes one."""
    before = getattr(async_llm, name)
    setattr(async_llm, name, value)
    try:
        yield
    finally:
        setattr(async_llm, name, before)


def _started(**arguments: Any) -> Future[Any]:
    """Start a core on a thread of its own, which ends with the process if nobody waits for it."""
    future: Future[Any] = Future()

    def start() -> None:
        try:
            future.set_result(EngineCoreClient.make_async_mp_client(**arguments))
        except BaseException as error:  # noqa: BLE001 whoever waits for the core raises it
            future.set_exception(error)

    threading.Thread(target=start, name="start-core", daemon=True).start()
    return future
