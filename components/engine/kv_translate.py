"""From an engine's own KV events, in its own hashes, to changes in ours. Pure; knows neither vLLM nor sockets.

Each block's hash is computed again from the event's token ids, chained to its parent's, so engines whose own hashes differ
agree. What this file decides:

- A **shelf** is one of the engine's KV cache groups on one tier. A block is held on a tier when all its shelves hold it. The
  caller leaves out groups that keep only part of a prompt (sliding window, state space): for models that have some, overlap
  says what the full-attention layers hold.
- The engine may hold a block several times; it is gone when the last copy is. LMCache holds a chunk once: each time it is
  stored it is told again, because nobody may have told of its eviction, or of the server's restart, in between.
- Once LMCache's server tells what it holds (`shared_changed`), only that counts: it may have had no room for what an engine
  says it stored, and either may overtake the other. The engine says what a chunk means, before it is held or after.
- Blocks that are no whole number of ours (a partial block) are ignored. Larger ones, such as LMCache's chunks, are several.
- Blocks whose parent is unknown are left out and counted.
- LMCache's chunks are kept, 0.5 kB each, as parents of later ones, and where evictions are not told they only get more. So
  the oldest are forgotten, and withdrawn, beyond 2^18: of an 8B model's KV that is 2 TB in chunks of 64 tokens.
- When events were lost for good, everything is withdrawn: from then on no more is told than is held.
"""

from collections.abc import Container, Iterable, Sequence
from itertools import islice

import msgspec

from components.engine.kv_changes import KvChanges
from components.engine.kv_shelves import EngineHash, Shelf, StoreShelf
from components.engine.protocol import KvUpdate
from components.wire.block_hash import extend, root_hash
from components.wire.kv import Tier

_MAX_CHUNKS = 2**18


class EngineStored(msgspec.Struct, frozen=True, gc=False):
    """Consecutive blocks of one prompt were stored.

    Attributes:
        hashes: one a block.
        parent: of the block before the first; None if that begins a prompt.
        token_ids: of all blocks.
        block_size: tokens a block, as the engine counts.
        adapter: LoRA adapter's name.
        cache_salt: known only where a prompt begins.
        tier: where they lie.
        group: the engine's KV cache group.
    """

    hashes: list[EngineHash]
    parent: EngineHash | None
    token_ids: list[int]
    block_size: int
    adapter: str | None = None
    cache_salt: str | None = None
    tier: Tier = Tier.DEVICE
    group: int = 0


class EngineRemoved(msgspec.Struct, frozen=True, gc=False):
    """One copy of each of these blocks is gone."""

    hashes: list[EngineHash]
    tier: Tier = Tier.DEVICE
    group: int = 0


class EngineCleared(msgspec.Struct, frozen=True):
    """The engine's own cache is empty; other tiers are not touched."""


EngineEvent = EngineStored | EngineRemoved | EngineCleared


class KvTranslator:
    """Follows one engine."""

    def __init__(self, model: str, block_size: int, max_chunks: int = _MAX_CHUNKS) -> None:
        """Begin with an empty engine.

        Args:
            model: the served model's name.
            block_size: tokens in a block of ours.
            max_chunks: most of LMCache's chunks to remember, for each of the engine's groups.
        """
        self._model = model
        self._block_size = block_size
        self._max_chunks = max_chunks
        self._shelves: dict[tuple[Tier, int], Shelf] = {}
        self._server: dict[EngineHash, None] | None = None  # what LMCache's server says it holds; None: it has said nothing
        self._changes = KvChanges()
        self._events = self._orphan_blocks = self._gaps = 0
        self._complete = True

    def apply(self, events: Iterable[EngineEvent]) -> None:
        """Follow `events`, in order."""
        for event in events:
            self._events += 1
            if isinstance(event, EngineStored):
                self._store(event)
                self._forget_old_chunks(event.tier, event.group)
            elif isinstance(event, EngineRemoved):
                self._remove(event)
            else:
                self._clear()

    def shared_changed(self, held: Iterable[EngineHash], gone: Sequence[EngineHash]) -> None:
        """Follow what LMCache's server says of its chunks, by the hashes engines know them by; unknown ones say nothing."""
        server = self._server = {} if self._server is None else self._server
        held = list(held)
        server.update(dict.fromkeys(held))
        for chunk in gone:
            server.pop(chunk, None)
        for chunk in list(islice(server, max(0, len(server) - self._max_chunks))):
            del server[chunk]
        for (tier, group), shelf in self._shelves.items():
            if not isinstance(shelf, StoreShelf):
                continue
            lost = [chunk for chunk in gone if chunk in shelf.ends]
            back = [chunk for chunk in held if chunk in shelf.gone]
            if not lost and not back:
                continue
            self._events += 1
            self._remove(EngineRemoved(lost, tier, group))
            for chunk in back:
                if piece := shelf.gone.pop(chunk, None):
                    shelf.put(chunk, piece)
                    if all(chunk in other.ends for other in self._others(shelf, tier)):
                        self._changes.stored(piece, shelf.parents[chunk], tier)
            self._forget_old_chunks(tier, group)

    def shared_lost(self) -> None:
        """LMCache's server is another process now, or none: it holds nothing."""
        self._server = None
        for (tier, group), shelf in self._shelves.items():
            if isinstance(shelf, StoreShelf) and shelf.ends:
                self._events += 1
                self._remove(EngineRemoved(list(shelf.ends), tier, group))

    def learn(self, chunks: Sequence[EngineHash], token_ids: Sequence[int]) -> None:
        """Note what LMCache's chunks of a prompt are in ours; whether they are held `shared_changed` says.

        Args:
            chunks: consecutive ones, from the prompt's first on.
            token_ids: theirs.
        """
        shelf = self._shelves.get((Tier.SHARED, 0))
        if not isinstance(shelf, StoreShelf):
            shelf = self._shelves[Tier.SHARED, 0] = StoreShelf()
        if shelf.parents.keys() >= set(chunks):
            return
        blocks = extend(root_hash(self._model, None, None), token_ids, self._block_size)
        pieces = _pieces(blocks, len(blocks) // len(chunks))
        shelf.parents.update(zip(chunks, (None, *(piece[-1] for piece in pieces)), strict=False))
        for chunk, piece in zip(chunks, pieces, strict=True):
            if chunk not in shelf.ends:
                shelf.gone.pop(chunk, None)  # the newest last
                shelf.remember(chunk, piece)

    def lose(self) -> None:
        """Events were lost for good: withdraw everything, for some of it may be gone."""
        self._drop_all()
        self._gaps += 1
        self._complete = False

    def restart(self) -> None:
        """The engine began anew, empty."""
        self._drop_all()
        self._complete = True

    def take(self) -> KvUpdate | None:
        """Return what happened since the last call; None if nothing did."""
        if not (self._events or self._gaps):
            return None
        update = KvUpdate(self._changes.take(), self._events, self._orphan_blocks, self._gaps, self._complete)
        self._events = self._orphan_blocks = self._gaps = 0
        return update

    def _store(self, event: EngineStored) -> None:
        if event.block_size % self._block_size or len(event.token_ids) != len(event.hashes) * event.block_size:
            return
        shelf = self._shelves.get((event.tier, event.group))
        if shelf is None:
            shelf = self._shelves[event.tier, event.group] = StoreShelf() if event.tier is Tier.SHARED else Shelf()
        parent = None
        if event.parent is not None:
            parent = shelf.end(event.parent)
            if parent is None:
                self._orphan_blocks += len(event.token_ids) // self._block_size
                return
        chained_to = root_hash(self._model, event.adapter, event.cache_salt) if parent is None else parent
        blocks = extend(chained_to, event.token_ids, self._block_size)
        if isinstance(shelf, StoreShelf):
            pieces = _pieces(blocks, event.block_size // self._block_size)
            shelf.learn(event.hashes, pieces, parent)
            if self._server is not None:
                self._store_what_is_held(shelf, event, pieces, self._server)
                return
        others = self._others(shelf, event.tier)
        if not others and len(blocks) == len(event.hashes) and shelf.put_new(event.hashes, blocks):
            self._changes.stored(blocks, parent, event.tier)
            return
        pieces = _pieces(blocks, event.block_size // self._block_size)
        new = [shelf.put(block, piece) for block, piece in zip(event.hashes, pieces, strict=True)]
        for block, piece, is_new in zip(event.hashes, pieces, new, strict=True):
            if is_new and all(block in other.ends for other in others):
                self._changes.stored(piece, parent, event.tier)
            parent = piece[-1]

    def _store_what_is_held(
        self, shelf: StoreShelf, event: EngineStored, pieces: Sequence[Sequence[int]], server: Container[EngineHash]
    ) -> None:
        """Take those of an engine's chunks that the server has, too; the others when it says so."""
        others = self._others(shelf, event.tier)
        for chunk, piece in zip(event.hashes, pieces, strict=True):
            if chunk not in server and chunk not in shelf.ends:
                shelf.remember(chunk, piece)
                continue
            shelf.put(chunk, piece)
            if all(chunk in other.ends for other in others):
                self._changes.stored(piece, shelf.parents[chunk], event.tier)

    def _remove(self, event: EngineRemoved) -> None:
        shelf = self._shelves.get((event.tier, event.group))
        if shelf is None:
            return
        others = self._others(shelf, event.tier)
        for block in event.hashes:
            gone = shelf.drop(block)
            if all(block in other.ends for other in others):
                self._changes.removed(gone, event.tier)

    def _forget_old_chunks(self, tier: Tier, group: int) -> None:
        """Drop the oldest sixteenth of LMCache's chunks when there are too many."""
        shelf = self._shelves.get((tier, group))
        if tier is Tier.SHARED and shelf is not None and len(shelf.ends) > self._max_chunks:
            too_many = len(shelf.ends) - self._max_chunks * 15 // 16
            self._remove(EngineRemoved(list(islice(shelf.ends, too_many)), tier, group))

    def _clear(self) -> None:
        elsewhere = {place: shelf for place, shelf in self._shelves.items() if place[0] is not Tier.DEVICE}
        if elsewhere:
            self._withdraw(Tier.DEVICE)
            self._shelves = elsewhere
        else:
            self._drop_all()
            self._complete = True

    def _drop_all(self) -> None:
        """Withdraw everything; what is shared by name, since clearing says nothing of it."""
        self._changes.cleared()
        self._withdraw(Tier.SHARED)
        self._shelves.clear()

    def _withdraw(self, tier: Tier) -> None:
        shelves = [shelf for place, shelf in self._shelves.items() if place[0] is tier]
        if shelves:
            held = set(shelves[0].ends).intersection(*(shelf.ends for shelf in shelves[1:]))
            blocks = [block for engine_hash in held for block in shelves[0].piece(engine_hash)]
            self._changes.removed(blocks, tier)

    def _others(self, shelf: Shelf, tier: Tier) -> Sequence[Shelf]:
        if len(self._shelves) == 1:
            return ()
        return [other for place, other in self._shelves.items() if place[0] is tier and other is not shelf]


def _pieces(blocks: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Cut blocks of ours into pieces of `size` blocks."""
    return list(zip(*[iter(blocks)] * size, strict=True))
