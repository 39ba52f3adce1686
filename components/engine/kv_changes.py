"""Collects changes of an engine's KV cache, in order, joining neighbours. Pure; knows no engine's events."""

from collections.abc import Sequence

from components.wire.kv import KvChange, KvCleared, KvRemoved, KvStored, Tier


class KvChanges:
    """Changes since somebody last took them."""

    def __init__(self) -> None:
        self._changes: list[KvChange] = []

    def stored(self, blocks: Sequence[int], parent: int | None, tier: Tier = Tier.DEVICE) -> None:
        """Note that `blocks`, which follow the block `parent`, can be reused."""
        last = self._changes[-1] if self._changes else None
        if isinstance(last, KvStored) and parent is not None and last.blocks[-1] == parent and last.tier is tier:
            last.blocks.extend(blocks)
        elif blocks:
            self._changes.append(KvStored(list(blocks), parent, tier))

    def removed(self, blocks: Sequence[int], tier: Tier = Tier.DEVICE) -> None:
        """Note that `blocks` are gone."""
        last = self._changes[-1] if self._changes else None
        if isinstance(last, KvRemoved) and last.tier is tier:
            last.blocks.extend(blocks)
        elif blocks:
            self._changes.append(KvRemoved(list(blocks), tier))

    def cleared(self) -> None:
        """Note that everything is gone."""
        shared = [each for each in self._changes if isinstance(each, KvRemoved) and each.tier is Tier.SHARED]
        self._changes = [*shared, KvCleared()]  # nobody needs to hear what else came before: clearing says it

    def take(self) -> list[KvChange]:
        """Return all changes, and begin anew."""
        changes, self._changes = self._changes, []
        return changes
