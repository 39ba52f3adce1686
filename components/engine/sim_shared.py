"""The simulated shared cache as an engine uses it: prompts in whole chunks, found in a table that another process may own.

The stand-in for LMCache: what one engine of a host computed, all can load. Only hashes are shared, for there is no KV.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from components.engine.sim_table import ChunkTable, TableFile, open_table, table_path
from components.graph.schema import Graph, LMCache
from components.wire.kv import KvStored, Tier

KV_BYTES_A_TOKEN = 128 * 1024
"""What a token takes: Llama 3 8B in bfloat16 (32 layers, 8 KV heads of 128, keys and values), as in the timing tables."""


def capacity_chunks(settings: LMCache) -> int:
    """Return how many chunks the server's memory holds."""
    return max(1, int(settings.l1_gb * 2**30 / (KV_BYTES_A_TOKEN * settings.chunk_tokens)))


class Chunks(Protocol):
    """Chunks that engines share; see `ChunkTable`. The hash of a chunk is that of its last block.

    Attributes:
        chunk_tokens: tokens a chunk.
    """

    chunk_tokens: int

    def match(self, hashes: Sequence[int]) -> int:
        """Return how many of `hashes`, from the first on, are held."""
        ...

    def store(self, hashes: Sequence[int]) -> list[int]:
        """Hold `hashes`, the chunks of one prompt in order; return those that are new."""
        ...

    def holds(self, hashes: Sequence[int]) -> list[bool]:
        """Return for each of `hashes` whether it is held."""
        ...


class SharedFile:
    """The chunks in the file of whoever is the server now; without one, nothing is held and nothing is stored.

    Attributes:
        chunk_tokens: tokens a chunk.
    """

    def __init__(self, path: Path, chunk_tokens: int) -> None:
        self._path = path
        self.chunk_tokens = chunk_tokens
        self._file: TableFile | None = None

    def match(self, hashes: Sequence[int]) -> int:
        """See `Chunks.match`."""
        table = self._table()
        return 0 if table is None else table.match(hashes)

    def store(self, hashes: Sequence[int]) -> list[int]:
        """See `Chunks.store`."""
        table = self._table()
        return [] if table is None else table.store(hashes)

    def holds(self, hashes: Sequence[int]) -> list[bool]:
        """See `Chunks.holds`."""
        table = self._table()
        return [False] * len(hashes) if table is None else table.holds(hashes)

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _table(self) -> ChunkTable | None:
        """Return the table to use: the server may have died or begun anew since the last time."""
        if self._file is not None and not (self._file.in_place(self._path) and self._file.owned()):
            self.close()
        if self._file is None:
            self._file = open_table(self._path, self.chunk_tokens)
        return None if self._file is None else self._file.table


class SharedPrompts:
    """Prompts in a shared cache, named by the hashes of their full blocks. Pure, where its chunks are."""

    def __init__(self, chunks: Chunks, block_size: int) -> None:
        """Use `chunks`, each of several blocks of `block_size` tokens."""
        self._chunks = chunks
        self._blocks_a_chunk = chunks.chunk_tokens // block_size

    def tokens(self, blocks: Sequence[int]) -> int:
        """Return how many tokens of a prompt with these blocks are held, from its first on; whole chunks."""
        return self._chunks.match(self._hashes(blocks)) * self._chunks.chunk_tokens

    def store(self, blocks: Sequence[int]) -> list[KvStored]:
        """Hold a prompt's whole chunks; return the blocks of those that are new, chunk by chunk."""
        hashes = self._hashes(blocks)
        new, size = set(self._chunks.store(hashes)), self._blocks_a_chunk
        return [
            KvStored(list(blocks[start : start + size]), blocks[start - 1] if start else None, Tier.SHARED)
            for start, chunk in zip(range(0, len(blocks), size), hashes, strict=False)
            if chunk in new
        ]

    def _hashes(self, blocks: Sequence[int]) -> Sequence[int]:
        return blocks[self._blocks_a_chunk - 1 :: self._blocks_a_chunk]


def shared_file(graph: Graph) -> SharedFile | None:
    """Return what the engines of `graph` share; None when they share nothing."""
    if graph.lmcache is None:
        return None
    return SharedFile(table_path(graph.part, graph.lmcache.port), graph.lmcache.chunk_tokens)
