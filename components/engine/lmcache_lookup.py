"""Asks the LMCache server how much of a prompt any engine can load now: the question that an engine's connector asks.

Also knows what the server calls a prompt's chunks, for connectors that tell nothing themselves of what they store (0.5.3).

It is put through LMCache's own ``LMCacheMPSchedulerAdapter``, with the keys of this engine, so it needs vLLM's config. A
lookup locks what it finds for a reader that does not come; the locks are freed at once.
"""

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import zmq
from lmcache.integration.vllm import lmcache_mp_connector
from lmcache.integration.vllm.lmcache_mp_connector import build_parallel_strategy_from_vllm_config
from lmcache.integration.vllm.vllm_multi_process_adapter import LMCacheMPSchedulerAdapter

from components.engine.lmcache_config import connector_options
from components.engine.lmcache_names import ChunkNames
from components.graph.schema import LMCache

log = logging.getLogger(__name__)

_POLL_S = 0.0005


class Learner(Protocol):
    """Wants to know what LMCache calls the chunks of a prompt; see `KvTranslator.learn`."""

    def learn(self, chunks: Sequence[int], token_ids: Sequence[int]) -> None:
        """Take in the chunks' names and tokens."""
        ...


class LMCacheLookup:
    """One engine's way to ask.

    Args:
        settings: of the graph.
        vllm_config: of the engine.

    Raises:
        ConnectionError: the server cannot be reached.
    """

    def __init__(self, settings: LMCache, vllm_config: Any) -> None:
        self._timeout_s = settings.timeout_s
        self._numbers = itertools.count()
        self._mute = not hasattr(lmcache_mp_connector, "LMCacheMPKVEvents")
        self._names = ChunkNames(settings)
        self._thread = ThreadPoolExecutor(1, "lmcache-lookup")  # the adapter is not thread-safe
        self._adapter = LMCacheMPSchedulerAdapter(
            [f"tcp://{settings.host}:{settings.port}"],
            zmq.Context.instance(),
            vllm_config.model_config.model,
            vllm_config.cache_config.block_size,
            build_parallel_strategy_from_vllm_config(vllm_config, 1),
            extra_config=connector_options(settings),
        )

    async def tokens(self, token_ids: list[int], cache_salt: str | None) -> int:
        """Return how many leading tokens can be loaded, a multiple of the chunk; 0 when there is no answer in time."""
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._look_up, token_ids, cache_salt or "")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await work
        except TimeoutError:
            return 0

    def teach(self, learner: Learner, token_ids: list[int], cache_salt: str | None) -> None:
        """Tell what the server will call a prompt's chunks, unless the engine's connector tells when it stores them."""
        if self._mute and not cache_salt and (chunks := self._names.of(token_ids)):
            learner.learn(chunks, token_ids[: len(chunks) * self._names.chunk_tokens])

    def close(self) -> None:
        """Ask no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._adapter.shutdown()

    def _look_up(self, token_ids: list[int], cache_salt: str) -> int:
        adapter, request_id = self._adapter, f"penstock-{os.getpid()}-{next(self._numbers)}"
        deadline_s = time.monotonic() + self._timeout_s
        adapter.maybe_submit_lookup_request(request_id, token_ids, cache_salt)
        try:
            while (found := adapter.check_lookup_result(request_id)) is None:
                if time.monotonic() > deadline_s:
                    return 0
                time.sleep(_POLL_S)
            if found:
                adapter.free_lookup_locks(token_ids, 0, found, request_id, cache_salt)
            return int(found)
        finally:
            adapter.end_session(request_id)
            adapter.cleanup_lookup_result(request_id)
