"""Neighbouring changes become one, and only those."""

from components.engine.kv_changes import KvChanges
from components.wire.kv import KvCleared, KvRemoved, KvStored, Tier


def test_runs_are_joined_where_they_follow_one_another() -> None:
    """A run goes on when the next one's parent is its last block, on the same tier."""
    changes, mine = KvChanges(), [1, 2]
    changes.stored(mine, None)
    changes.stored([3], 2)
    changes.stored([4], 2)
    changes.stored([5], 4, Tier.HOST)
    changes.stored([6], None, Tier.HOST)
    changes.stored([], 6, Tier.HOST)
    assert mine == [1, 2]
    assert changes.take() == [
        KvStored([1, 2, 3], None),
        KvStored([4], 2),
        KvStored([5], 4, Tier.HOST),
        KvStored([6], None, Tier.HOST),
    ]
    assert changes.take() == []


def test_removals_keep_their_place() -> None:
    """A block that is removed and stored again is told in that order; clearing ends what came before."""
    changes = KvChanges()
    changes.removed([1])
    changes.removed([2])
    changes.stored([1], None)
    changes.removed([1])
    changes.removed([3], Tier.DISK)
    assert changes.take() == [KvRemoved([1, 2]), KvStored([1]), KvRemoved([1]), KvRemoved([3], Tier.DISK)]
    changes.stored([1], None)
    changes.cleared()
    changes.stored([2], None)
    assert changes.take() == [KvCleared(), KvStored([2])]
