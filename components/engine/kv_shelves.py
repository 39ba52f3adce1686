"""What an engine's events say is held: one of its KV cache groups on one tier is a shelf. Pure; see `kv_translate`."""

from collections import OrderedDict
from collections.abc import Sequence

EngineHash = int | bytes

_MAX_GONE = 2**14


class Shelf:
    """What one group holds on one tier.

    Attributes:
        ends: the engine's blocks, and the last block of ours in each, on which what follows is chained.
        starts: the blocks of ours before that one, in order, of blocks larger than ours.
        copies: of blocks held more than once: how many more.
    """

    def __init__(self) -> None:
        self.ends: dict[EngineHash, int] = {}
        self.starts: dict[EngineHash, Sequence[int]] = {}
        self.copies: dict[EngineHash, int] = {}

    def put(self, block: EngineHash, piece: Sequence[int]) -> bool:
        """Take one copy of a block that holds `piece` of ours; False if it is not the first."""
        if block in self.ends:
            self.copies[block] = self.copies.get(block, 0) + 1
            return False
        self._add(block, piece)
        return True

    def _add(self, block: EngineHash, piece: Sequence[int]) -> None:
        self.ends[block] = piece[-1]
        if len(piece) > 1:
            self.starts[block] = piece[:-1]

    def end(self, block: EngineHash) -> int | None:
        """Return the last block of ours in one of the engine's; None if it is unknown."""
        return self.ends.get(block)

    def put_new(self, blocks: Sequence[EngineHash], ours: Sequence[int]) -> bool:
        """Take blocks as large as ours, none of them held: the common case, done in C; False if that is not so."""
        if not self.ends.keys().isdisjoint(blocks):
            return False
        before = len(self.ends)
        self.ends.update(zip(blocks, ours, strict=True))
        if len(self.ends) - before == len(blocks):
            return True
        for block in set(blocks):
            del self.ends[block]
        return False

    def drop(self, block: EngineHash) -> Sequence[int]:
        """Drop one copy; return the blocks of ours that are no longer held."""
        more = self.copies.pop(block, 0)
        if more > 1:
            self.copies[block] = more - 1
        return () if more else self._take_out(block)

    def _take_out(self, block: EngineHash) -> Sequence[int]:
        end = self.ends.pop(block, None)
        return () if end is None else (*self.starts.pop(block, ()), end)

    def piece(self, block: EngineHash) -> Sequence[int]:
        """Return the blocks of ours in one that is held."""
        return (*self.starts.get(block, ()), self.ends[block])


class StoreShelf(Shelf):
    """What LMCache holds: nothing twice, and the newest last.

    Attributes:
        parents: our block before each chunk, also before those that are not held.
        gone: chunks that are known and not held, the last known last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parents: dict[EngineHash, int | None] = {}
        self.gone: OrderedDict[EngineHash, Sequence[int]] = (
            OrderedDict()
        )  # a dict takes long to find its first entry after many

    def end(self, block: EngineHash) -> int | None:
        """Return the last block of ours in a chunk, also in one that is gone: what follows it may still be held."""
        return self.gone[block][-1] if block in self.gone else self.ends.get(block)

    def learn(self, blocks: Sequence[EngineHash], pieces: Sequence[Sequence[int]], parent: int | None) -> None:
        """Note what comes before each of these consecutive chunks, the first of which follows our block `parent`."""
        self.parents.update(zip(blocks, (parent, *(piece[-1] for piece in pieces)), strict=False))
        for block in blocks:
            self.gone.pop(block, None)

    def put(self, block: EngineHash, piece: Sequence[int]) -> bool:
        """Take a chunk, even if it is here already: who told of it may have withdrawn it meanwhile."""
        self._take_out(block)
        self._add(block, piece)
        return True

    def drop(self, block: EngineHash) -> Sequence[int]:
        """Drop a chunk; return what is no longer held."""
        piece = super().drop(block)
        if piece:
            self.remember(block, piece)
        return piece

    def remember(self, block: EngineHash, piece: Sequence[int]) -> None:
        """Keep for a while what a chunk is in ours, though it is not held."""
        self.gone[block] = piece
        if len(self.gone) > _MAX_GONE:
            oldest, _ = self.gone.popitem(last=False)
            self.parents.pop(oldest, None)
