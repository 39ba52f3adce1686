"""The real engine: vLLM's `AsyncLLM`, whose core runs in processes of its own.

Knows the life of an engine and of a request in it. What vLLM's objects look like is in `vllm_convert`, `vllm_compat` and
`vllm_parsers`; those import vLLM, as `lmcache_lookup` imports LMCache, and are themselves imported when the engine starts.
"""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from components.engine import vllm_modules as modules
from components.engine.lmcache_config import connector_config, server_is_up
from components.engine.protocol import EngineInfo, EngineOutput, EngineStartError, KvUpdate
from components.engine.vllm_args import chosen_args, mistaken_arg
from components.engine.vllm_modules import import_vllm, one_line
from components.graph.schema import LMCache
from components.graph.schema import VllmEngine as VllmSettings
from components.model.folder import ModelError, model_folder
from components.telemetry.metrics import collect
from components.wire.errors import (
    ContextLengthExceededError,
    EngineDiedError,
    InvalidRequestError,
    OverloadedError,
    WorkerLostError,
)
from components.wire.kv import Tier
from components.wire.messages import GenerateRequest, Sampling
from components.wire.process import MetricFamily, WorkerLoad

_DEATH_POLL_S = 0.1


@dataclass(frozen=True)
class _Opened:
    """A running engine.

    Attributes:
        llm: vLLM's `AsyncLLM`.
        info: what it is.
        vocabulary_size: how many token ids it knows.
        parsers: an `OutputParsers`, when the graph names a parser.
        stats: a `vllm_compat.Stats`, kept up to date by vLLM.
        lookup: a `lmcache_lookup.LMCacheLookup`, when KV is shared.
    """

    llm: Any
    info: EngineInfo
    vocabulary_size: int
    parsers: Any
    stats: Any
    lookup: Any


class VllmEngine:
    """A vLLM engine in this process and its inner ones.

    Args:
        model: ``demo``, a folder, or a Hugging Face model id.
        served_name: what clients call it; vLLM's metrics carry it.
        settings: engine arguments, and the CPU's KV memory.
        block_size: tokens a KV block.
        kv_events: tell of KV blocks, see `Engine.kv_updates`.
        lmcache: share KV through this server.
    """

    def __init__(
        self,
        model: str,
        served_name: str,
        settings: VllmSettings,
        block_size: int,
        *,
        kv_events: bool = False,
        lmcache: LMCache | None = None,
    ) -> None:
        self._model = model
        self._served_name = served_name
        self._settings = settings
        self._block_size = block_size
        self._opening: asyncio.Future[_Opened] | None = None
        self._opened: _Opened | None = None
        self._kv_events = kv_events
        self._lmcache = lmcache
        self._kv: Any = None  # a `vllm_kv.KvStream`, when asked for
        self._unfinished: set[str] = set()
        self._stopped = False

    async def start(self, progress: Callable[[str], None]) -> EngineInfo:
        """Load the model; see `Engine.start`."""
        if mistake := mistaken_arg(self._settings.args, kv_events=self._kv_events, lmcache=self._lmcache is not None):
            raise EngineStartError(f"engine.{mistake}")
        progress("importing vLLM")
        await asyncio.to_thread(import_vllm)
        if self._lmcache:
            progress("waiting for the LMCache server")
            await server_is_up(self._lmcache)
        progress(f"loading {self._served_name}")
        if self._kv_events:
            self._kv = self._listen()
        self._opening = asyncio.get_running_loop().run_in_executor(None, self._open)
        opened = await asyncio.shield(self._opening)  # a thread cannot be cancelled; `stop` ends it
        await opened.llm.get_supported_tasks()  # vLLM asks its core once, at the latest before the first request
        if modules.compat().on_cpu():
            progress("computing a first prompt")
            await modules.compat().compute_first_prompt(opened.llm)
            opened.stats.forget()
        self._opened = opened
        return opened.info

    def _open(self) -> _Opened:
        """Start vLLM; runs in a thread because it blocks."""
        compat = modules.compat()
        stats = compat.Stats()
        try:
            arguments = compat.engine_args(self._engine_args(on_cpu=compat.on_cpu()))
            parser = modules.parsers().parser_class(self._settings.args, self._model)
            llm = compat.open_engine(arguments, stats)
            parsers = modules.parsers().OutputParsers(parser, llm) if parser is not None else None
            lookup = modules.lookup().LMCacheLookup(self._lmcache, llm.vllm_config) if self._lmcache else None
        except ModelError as error:
            raise EngineStartError(str(error)) from error
        except compat.START_FAILURES as error:
            raise EngineStartError(f"vLLM cannot start: {one_line(error)}") from error
        wanted = [bool(self._settings.args.get(name)) for name in ("tool_call_parser", "reasoning_parser")]
        info = compat.describe(llm, tool_parser=wanted[0], reasoning_parser=wanted[1])
        return _Opened(llm, info, compat.vocabulary_size(llm), parsers, stats, lookup)

    def _engine_args(self, *, on_cpu: bool) -> dict[str, Any]:
        """Return vLLM's engine arguments: what the graph says, and where it says nothing what suits a CPU."""
        chosen = chosen_args(self._settings.args, self._settings.kv_cache_gb, on_cpu=on_cpu)
        events = {"kv_events_config": self._kv.config} if self._kv is not None else {}
        sharing = {"kv_transfer_config": connector_config(self._lmcache)} if self._lmcache else {}
        fixed = {
            "model": _where(self._model),
            "served_model_name": [self._served_name],
            "block_size": self._block_size,
        }
        return chosen | events | sharing | fixed

    def _listen(self) -> Any:
        """Return the stream of this engine's KV events, opened before the engine.

        Raises:
            EngineStartError: there is no place for its sockets.
        """
        cpu_tier = Tier.SHARED if self._lmcache else Tier.HOST
        stream = modules.kv().KvStream(
            self._served_name, self._block_size, partial(modules.compat().kv_events, cpu_tier=cpu_tier)
        )
        stream.open()
        return stream

    async def kv_updates(self) -> AsyncGenerator[KvUpdate, None]:
        """Tell what happens in the KV cache; see `Engine.kv_updates`."""
        if self._kv is not None:
            async for update in self._kv.updates():
                yield update

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EngineOutput, None]:
        """Generate for `request`; see `Engine.generate`."""
        opened = self._opened
        if opened is None or self._stopped:
            raise WorkerLostError("the engine is not running")
        _check(request, opened)
        if self._kv is not None and opened.lookup is not None:
            opened.lookup.teach(self._kv, request.token_ids, request.cache_salt)
        if opened.parsers is None and request.parsing is not None and request.parsing.tools:
            raise InvalidRequestError("tools: this worker has no tool parser", param="tools")
        if opened.parsers is None or request.parsing is None:
            outputs = self._outputs(opened, request, request.sampling, {})
        else:
            parser = opened.parsers.begin(request.parsing)
            sampling, reasoning = parser.sampling(request.sampling), parser.reasoning(request.token_ids)
            outputs = parser.parse(request.token_ids, self._outputs(opened, request, sampling, reasoning))
        async with aclosing(outputs):
            async for output in outputs:
                yield output

    async def _outputs(
        self, opened: _Opened, request: GenerateRequest, sampling: Sampling, reasoning: Mapping[str, Any]
    ) -> AsyncGenerator[EngineOutput, None]:
        """Run `request` through vLLM, and turn its errors into ours."""
        compat = modules.compat()
        self._unfinished.add(request.request_id)
        first = True
        try:
            async with aclosing(compat.submit(opened.llm, request, sampling, reasoning)) as stream:
                async for output in stream:
                    if output.finished:
                        self._unfinished.discard(request.request_id)
                    yield compat.to_engine_output(output, sampling.logprobs, first=first)
                    first = False
        except compat.EngineDeadError as error:
            raise EngineDiedError("the engine died") from error
        except compat.EngineGenerateError as error:
            if isinstance(error.__cause__, compat.REFUSALS):
                raise InvalidRequestError(one_line(error.__cause__)) from error
            raise WorkerLostError("the engine failed") from error
        except compat.REFUSALS as error:
            raise InvalidRequestError(one_line(error), param=getattr(error, "parameter", None)) from error
        except compat.QueueFullError as error:
            raise OverloadedError("the engine's queue is full", retry_after_s=1.0) from error
        finally:
            if request.request_id in self._unfinished:
                self._unfinished.discard(request.request_id)
                # vLLM aborts a request whose stream is closed, but not one that is cancelled while it is being added.
                await opened.llm.abort(request.request_id)

    def shared_changed(self, held: Sequence[int], gone: Sequence[int]) -> None:
        """Take in what LMCache's server holds; see `Engine.shared_changed`."""
        if self._kv is not None:
            self._kv.shared_changed(held, gone)

    def shared_lost(self) -> None:
        """Take in that LMCache's server lost everything; see `Engine.shared_lost`."""
        if self._kv is not None:
            self._kv.shared_lost()

    async def shared_tokens(self, request: GenerateRequest) -> int:
        """Return how much of a prompt LMCache can give to any engine; see `Engine.shared_tokens`."""
        if self._opened is None or self._opened.lookup is None:
            return 0
        return int(await self._opened.lookup.tokens(request.token_ids, request.cache_salt))

    def load(self) -> WorkerLoad:
        """Return what the engine is doing; vLLM's own numbers are those of its last step."""
        if self._opened is None:
            return WorkerLoad()
        stats, unfinished = self._opened.stats, len(self._unfinished)
        running = min(stats.running_requests, unfinished)
        return WorkerLoad(
            running_requests=running,
            waiting_requests=unfinished - running,
            kv_usage=stats.kv_usage if unfinished else 0.0,
            prompt_tokens=stats.prompt_tokens,
            cached_tokens=stats.cached_tokens,
            output_tokens=stats.output_tokens,
        )

    def metrics(self) -> list[MetricFamily]:
        """Return vLLM's own metric families."""
        return [family for family in collect(REGISTRY) if family.name.startswith("vllm:")]

    async def failed(self) -> str:
        """Wait until vLLM's core is dead, and return why."""
        while True:
            if self._opened is not None and not self._stopped and (reason := modules.compat().death(self._opened.llm)):
                return str(reason)
            await asyncio.sleep(_DEATH_POLL_S)

    async def stop(self) -> None:
        """End vLLM and all its processes; see `Engine.stop`."""
        if self._stopped:
            return
        self._stopped = True
        if self._kv is not None:
            self._kv.close()
        if self._opening is None:
            return
        while not self._opening.done():  # its core is loading the model; without a core it gives up
            modules.compat().kill_inner_processes()
            await asyncio.wait([self._opening], timeout=0.2)
        if self._opening.exception() is None:
            opened = self._opening.result()
            if opened.lookup is not None:
                opened.lookup.close()
            await self._close(opened.llm)
        self._opening = self._opened = None
        gc.collect()  # vLLM cleans up again when it is collected, and fails to when that is at the interpreter's very end

    async def _close(self, llm: Any) -> None:
        modules.compat().give_up_requests(llm)
        await asyncio.to_thread(modules.compat().close_engine, llm)


def _where(model: str) -> str:
    """Return a folder, or a Hugging Face id, whose weights vLLM fetches itself.

    Raises:
        ModelError: there is no such model.
    """
    folder = model_folder(model)
    return folder if model == "demo" or Path(model).expanduser().is_dir() else model


def _check(request: GenerateRequest, opened: _Opened) -> None:
    """Refuse what would hurt the engine; vLLM itself checks the rest."""
    tokens, limit = len(request.token_ids), opened.info.max_model_len
    if tokens == 0:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    if tokens >= limit:
        raise ContextLengthExceededError(
            f"the prompt has {tokens} tokens, which leaves no room for output in a context of {limit} tokens"
        )
    for token_id in (min(request.token_ids), max(request.token_ids), *request.sampling.stop_token_ids):
        if not 0 <= token_id < opened.vocabulary_size:
            raise InvalidRequestError(f"token id {token_id} is none of the model's {opened.vocabulary_size}")
