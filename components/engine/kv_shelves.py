"""What an engine's events say is held: one of its KV cache groups on one tier is a shelf. Pure; see `kv_translate`."""

from collections.abc import Sequence

EngineHash = int | bytes
Piece = tuple[int, ...]  # the blocks of ours in one of the engine's, in order

_MAX_GONE = 2**14


class Shelf:
    """What one group holds on one tier."""

    def __init__(self) -> None:
        self.pieces: dict[EngineHash, Piece] = {}
        self.copies: dict[EngineHash, int] = {}  # of blocks held more than once: how many more

    def put(self, block: EngineHash, piece: Piece) -> bool:
        """Take one copy; False if it is not the first."""
        if block in self.pieces:
            self.copies[block] = self.copies.get(block, 0) + 1
            return False
        self.pieces[block] = piece
        return True

    def get(self, block: EngineHash) -> Piece | None:
        """Return what a block is in ours; None if it is unknown."""
        return self.pieces.get(block)

    def put_new(self, blocks: Sequence[EngineHash], pieces: Sequence[Piece]) -> bool:
        """Take blocks of which none is held: the common case, done in C; False if they are not so or one repeats."""
        if not self.pieces.keys().isdisjoint(blocks):
            return False
        before = len(self.pieces)
        self.pieces.update(zip(blocks, pieces, strict=True))
        if len(self.pieces) - before == len(blocks):
            return True
        for block in set(blocks):
            del self.pieces[block]
        return False

    def drop(self, block: EngineHash) -> Piece:
        """Drop one copy; return what is no longer held."""
        more = self.copies.pop(block, 0)
        if more > 1:
            self.copies[block] = more - 1
        return () if more else self.pieces.pop(block, ())


class StoreShelf(Shelf):
    """What LMCache holds: nothing twice, and the newest last.

    Attributes:
        parents: our block before each chunk, also before those that are gone.
        gone: chunks that were held, the last gone last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parents: dict[EngineHash, int | None] = {}
        self.gone: dict[EngineHash, Piece] = {}

    def get(self, block: EngineHash) -> Piece | None:
        """Return what a chunk is in ours, also one that is gone: what follows it may still be held."""
        return self.pieces.get(block) or self.gone.get(block)

    def learn(self, blocks: Sequence[EngineHash], pieces: Sequence[Piece], parent: int | None) -> None:
        """Note what comes before each of these consecutive chunks, the first of which follows our block `parent`."""
        self.parents.update(zip(blocks, (parent, *(piece[-1] for piece in pieces)), strict=False))
        for block in blocks:
            self.gone.pop(block, None)

    def put(self, block: EngineHash, piece: Piece) -> bool:
        """Take a chunk, even if it is here already: who told of it may have withdrawn it meanwhile."""
        self.pieces.pop(block, None)
        self.pieces[block] = piece
        return True

    def drop(self, block: EngineHash) -> Piece:
        """Drop a chunk; return what is no longer held."""
        piece = super().drop(block)
        if piece:
            self.remember(block, piece)
        return piece

    def remember(self, block: EngineHash, piece: Piece) -> None:
        """Keep for a while what a chunk is in ours, though it is not held."""
        self.gone[block] = piece
        if len(self.gone) > _MAX_GONE:
            oldest = next(iter(self.gone))
            del self.gone[oldest], self.parents[oldest]
