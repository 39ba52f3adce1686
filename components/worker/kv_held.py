"""What a worker has told of its KV blocks, to be told again to whoever missed it; and long lists cut into messages. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from components.wire.kv import KvChange, KvCleared, KvRemoved, KvStored, Tier

_RUN_WEIGHT_BLOCKS = 5  # what a run takes on the wire beside its blocks, in blocks (9 bytes each)


class HeldBlocks:
    """All blocks held, by tier; a block's parent is kept, so that runs can be told again."""

    def __init__(self) -> None:
        self._tiers: dict[Tier, dict[int, int | None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._tiers.values()))

    def apply(self, change: KvChange) -> KvChange:
        """Follow one change, and return it as it is told; what is held already, or not held, changes nothing."""
        if isinstance(change, KvStored):
            held = self._tiers.setdefault(change.tier, {})
            held.update(zip(change.blocks, (change.parent, *change.blocks), strict=False))
        elif isinstance(change, KvRemoved):
            held = self._tiers.get(change.tier, {})
            return KvRemoved(change.blocks, change.tier, [held.pop(block, None) for block in change.blocks])
        elif isinstance(change, KvCleared):
            self._tiers.clear()
        return change

    def leading(self, blocks: Sequence[int]) -> int:
        """Return how many of a prompt's `blocks`, from the first on, lie in the engine's own cache."""
        held = self._tiers.get(Tier.DEVICE, {})
        return next((index for index, block in enumerate(blocks) if block not in held), len(blocks))

    def on(self, tier: Tier) -> list[int]:
        """Return what is held on one tier."""
        return list(self._tiers.get(tier, ()))

    def runs(self) -> Iterator[KvStored]:
        """Return what is held at this moment, as long runs; later changes do not show in it."""
        return _runs([(tier, held.copy()) for tier, held in self._tiers.items()])


def _runs(tiers: list[tuple[Tier, dict[int, int | None]]]) -> Iterator[KvStored]:
    """Join neighbours that follow one another in their prompt."""
    for tier, held in tiers:
        run: list[int] = []
        run_parent: int | None = None
        for block, parent in held.items():
            if run and parent != run[-1]:
                yield KvStored(run, run_parent, tier)
                run = []
            if not run:
                run_parent = parent
            run.append(block)
        if run:
            yield KvStored(run, run_parent, tier)


def portions(changes: Iterable[KvChange], max_blocks: int) -> Iterator[list[KvChange]]:
    """Cut `changes` into lists that hold about as much as `max_blocks` blocks in one run, in order; none is empty."""
    portion: list[KvChange] = []
    room = max_blocks
    for change in changes:
        for piece in _pieces(change, max_blocks):
            weight = _RUN_WEIGHT_BLOCKS + _blocks(piece)
            if portion and weight > room:
                yield portion
                portion, room = [], max_blocks
            portion.append(piece)
            room -= weight
    if portion:
        yield portion


def _blocks(change: KvChange) -> int:
    return 0 if isinstance(change, KvCleared) else len(change.blocks)


def _pieces(change: KvChange, max_blocks: int) -> Iterator[KvChange]:
    """Cut one change into pieces of at most `max_blocks` blocks."""
    if _blocks(change) <= max_blocks or isinstance(change, KvCleared):
        yield change
        return
    for start in range(0, len(change.blocks), max_blocks):
        blocks = change.blocks[start : start + max_blocks]
        if isinstance(change, KvRemoved):
            yield KvRemoved(blocks, change.tier)
        else:
            yield KvStored(blocks, change.blocks[start - 1] if start else change.parent, change.tier)
