"""What LMCache's multi-process server calls the chunks of a prompt, by LMCache's own hasher."""

from lmcache.v1.multiprocess.token_hasher import TokenHasher

from components.graph.schema import LMCache


class ChunkNames:
    """What a server calls chunks: the low 64 bits of their hashes, as its events name them.

    Attributes:
        chunk_tokens: tokens a chunk.
    """

    def __init__(self, settings: LMCache) -> None:
        """Hash as the server of these settings does."""
        options = {name.replace("_", "-"): value for name, value in settings.args.items()}
        self.chunk_tokens = settings.chunk_tokens
        self._hasher = TokenHasher(settings.chunk_tokens, options.get("hash-algorithm", "blake3"))

    def of(self, token_ids: list[int]) -> list[int]:
        """Return the names of a prompt's full chunks."""
        return [int.from_bytes(each[-8:]) for each in self._hasher.compute_chunk_hashes(token_ids)]
