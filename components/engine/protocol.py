"""The one interface through which a worker uses an engine.

Both engines pass the same contract suite, `tests/support/engine_contract.py`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from components.wire.kv import KvChange
from components.wire.messages import FinishReason, GenerateRequest, Message, PositionLogprobs, ToolCallDelta
from components.wire.process import MetricFamily, WorkerLoad


class EngineInfo(Message, frozen=True):
    """What a started engine is.

    Attributes:
        version: engine kind and version, such as ``vllm 0.32.0`` or ``sim``.
        max_model_len: longest prompt plus output, in tokens.
        block_size: tokens a KV block.
        kv_blocks: KV blocks it holds in all.
        tool_parser: whether it can parse tool calls out of text.
        reasoning_parser: whether it can tell reasoning from the answer.
    """

    version: str
    max_model_len: int
    block_size: int
    kv_blocks: int
    tool_parser: bool = False
    reasoning_parser: bool = False


class EngineOutput(Message, frozen=True):
    """New output of one request since the last one; see `TokenDelta` for the fields."""

    token_ids: list[int] = []
    text: str = ""
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning: str = ""


class KvUpdate(Message, frozen=True):
    """What changed in an engine's KV cache since the last update.

    Attributes:
        changes: in the order they happened; block hashes are ours.
        events: how many events of the engine's own they come from.
        orphan_blocks: blocks left out because the block before them is unknown.
        gaps: how often events of the engine's own were lost for good; each time everything is cleared.
        complete: false after a gap: the engine may hold more than was told, never less.
    """

    changes: list[KvChange] = []
    events: int = 0
    orphan_blocks: int = 0
    gaps: int = 0
    complete: bool = True


class Engine(Protocol):
    """An engine; constructed without I/O, then started once and stopped once."""

    async def start(self, progress: Callable[[str], None]) -> EngineInfo:
        """Load the model; returns when requests can be served.

        Args:
            progress: told what is happening, in a few words for a person.

        Raises:
            EngineStartError: it cannot start; the text says why in one line.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        """Generate for `request`: outputs in order, the last one with a finish reason.

        Closing the iterator early aborts the request and frees what it held. Several outputs may be merged into one.

        Raises (at the first step):
            InvalidRequestError: the engine refuses the request.
        Raises (at any step):
            WorkerLostError: the engine died.
        """
        ...

    def kv_updates(self) -> AsyncIterator[KvUpdate]:
        """Tell what happens in the KV cache, from the engine's start on; to be iterated once, after `start`.

        All changes since the last update come in one. Ends when the engine is stopped, and at once when it was made without
        KV events.
        """
        ...

    async def shared_tokens(self, request: GenerateRequest) -> int:
        """Return how many leading tokens of a prompt any engine of this host can load from the shared cache (LMCache) now.

        A multiple of the cache's chunk; 0 without a shared cache, and when it does not answer in time.
        """
        ...

    def shared_changed(self, held: Sequence[int], gone: Sequence[int]) -> None:
        """Take in what the shared cache's server says of its chunks; `kv_updates` tells what that means.

        Args:
            held: chunks it can give now, by the low 64 bits of its own hashes; those this engine never stored say nothing.
            gone: chunks it cannot give any more.
        """
        ...

    def shared_lost(self) -> None:
        """Take in that the shared cache's server is another process now, or none; `kv_updates` tells what that means."""
        ...

    def load(self) -> WorkerLoad:
        """Return what the engine is doing; cheap, never blocks."""
        ...

    def metrics(self) -> list[MetricFamily]:
        """Return the engine's own Prometheus metrics (``vllm:…`` or the simulated equivalents under the same names)."""
        ...

    async def failed(self) -> str:
        """Wait until the engine is dead beyond repair, and return why."""
        ...

    async def stop(self) -> None:
        """Free everything; requests still running end with `WorkerLostError`. May be called at any time, also twice."""
        ...


class CacheServer(Protocol):
    """The server of a shared cache (LMCache) beside the engines of one host; started once, stopped once."""

    async def start(self, progress: Callable[[str], None]) -> str:
        """Start the server; return what it is, such as ``lmcache 0.5.6``, when it answers.

        Raises:
            EngineStartError: it died instead.
        """
        ...

    def metrics(self) -> list[MetricFamily]:
        """Return its own Prometheus metrics as last seen; never blocks."""
        ...

    async def failed(self) -> str:
        """Wait until it is dead, or has not answered for a while, and return why."""
        ...

    async def stop(self) -> None:
        """End it. May be called at any time, also twice."""
        ...


class EngineStartError(Exception):
    """The engine cannot start with these settings on this machine."""
