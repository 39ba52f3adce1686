"""The simulated twin of the LMCache server: owns the file through which simulated engines share what they computed.

It does nothing but live: engines read and write the file themselves, and believe it only while its owner lives.
"""

import asyncio
from collections.abc import Callable

from components.engine.protocol import EngineStartError
from components.engine.sim_shared import KV_BYTES_A_TOKEN, capacity_chunks
from components.engine.sim_table import TableFile, create_table, open_table, table_path
from components.graph.schema import LMCache
from components.wire.process import MetricFamily, MetricSample

_LOOK_S = 0.5


class SimCacheServer:
    """One server; only its memory's size, its chunk and its port count of the settings."""

    def __init__(self, settings: LMCache, graph_part: str) -> None:
        """Prepare a server for the engines of one `Graph.part`."""
        self._settings = settings
        self._path = table_path(graph_part, settings.port)
        self._file: TableFile | None = None

    async def start(self, progress: Callable[[str], None]) -> str:
        """Make an empty table; see `CacheServer.start`."""
        settings = self._settings
        progress("making a table of chunks")
        if (other := open_table(self._path, settings.chunk_tokens)) is not None:
            other.close()
            raise EngineStartError(f"lmcache.port: {settings.port} is taken by another process of a graph of this name")
        try:
            self._file = create_table(self._path, capacity_chunks(settings), settings.chunk_tokens)
        except OSError as error:
            raise EngineStartError(f"the simulated shared cache cannot write {self._path}: {error.strerror}") from error
        return "sim"

    def metrics(self) -> list[MetricFamily]:
        """Return the table's size and filling; under LMCache's own names where it has one."""
        if self._file is None:
            return []
        table = self._file.table
        chunk_bytes = self._settings.chunk_tokens * KV_BYTES_A_TOKEN
        values = {
            "lmcache_mp_l1_memory_usage_bytes": ("What the chunks held would take.", table.chunks * chunk_bytes),
            "lmcache_mp_l1_usage_ratio": (
                "Chunks held, as a share of those that fit.",
                table.chunks / table.capacity_chunks,
            ),
            "lmcache_mp_sim_chunks": ("Chunks held.", table.chunks),
            "lmcache_mp_sim_capacity_chunks": ("Chunks that fit.", table.capacity_chunks),
        }
        return [MetricFamily(name, "gauge", text, [MetricSample(name, {}, value)]) for name, (text, value) in values.items()]

    async def failed(self) -> str:
        """Wait until the file is gone, or another lies there; see `CacheServer.failed`."""
        while self._file is not None and self._file.in_place(self._path):  # noqa: ASYNC110 a file system tells nobody
            await asyncio.sleep(_LOOK_S)
        return f"the simulated shared cache's file {self._path} is gone"

    async def stop(self) -> None:
        """Remove the table; see `CacheServer.stop`."""
        file, self._file = self._file, None
        if file is None:
            return
        if file.in_place(self._path):
            self._path.unlink(missing_ok=True)
        file.close()
