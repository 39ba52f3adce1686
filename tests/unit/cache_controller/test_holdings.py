"""What a worker holds, whatever order its reports and its full sync come in."""

from hypothesis import given
from hypothesis import strategies as st

from components.cache_controller.holdings import Change, Holdings, Trust

HERE = "LocalCPUBackend"
ROOM = 1_000_000


def test_changes_apply_in_order() -> None:
    """The last word about a chunk counts."""
    holdings = Holdings(Trust.EXACT)
    holdings.change(HERE, [Change(True, 1, 0), Change(True, 2, 1), Change(False, 1, 2)], ROOM)
    assert (holdings.where(1), holdings.where(2), holdings.trust) == (None, HERE, Trust.EXACT)
    assert holdings.locations == {HERE: 1}


def test_a_left_out_number_is_a_gap() -> None:
    """Each location counts for itself."""
    holdings = Holdings(Trust.EXACT)
    holdings.change(HERE, [Change(True, 1, 0)], ROOM)
    holdings.change("LocalDiskBackend", [Change(True, 1, 0)], ROOM)
    assert holdings.trust is Trust.EXACT
    holdings.change(HERE, [Change(True, 2, 4)], ROOM)
    assert (holdings.trust, holdings.lost) == (Trust.GAP, 3)


def test_a_full_sync_replaces_what_was_known() -> None:
    """Only when all parts came; changes meanwhile go on top."""
    holdings = Holdings(Trust.UNKNOWN)
    holdings.change(HERE, [Change(True, 9, 50)], ROOM)
    assert holdings.wants_sync(0.0, 30.0)
    holdings.begin_sync("s", HERE, 2, 0.0)
    assert not holdings.wants_sync(1.0, 30.0)
    assert holdings.wants_sync(31.0, 30.0)
    assert holdings.add_batch("other", 0, [1], ROOM, 1.0) is None
    assert holdings.add_batch("s", 0, [1, 2], ROOM, 1.0) == 0
    assert not holdings.end_sync("s")
    holdings.change(HERE, [Change(False, 2, 51), Change(True, 3, 52)], ROOM)
    assert holdings.prefix([9]) == 1
    assert holdings.add_batch("s", 1, [4], ROOM, 2.0) == 0
    assert holdings.end_sync("s")
    assert (holdings.prefix([1, 3, 4]), holdings.where(2), holdings.where(9)) == (3, None, None)
    assert holdings.trust is Trust.EXACT
    assert holdings.synced("s")
    assert not holdings.wants_sync(100.0, 30.0)


def test_what_there_is_no_room_for_is_refused() -> None:
    """A worker that is known in part is not asked again and again."""
    holdings = Holdings(Trust.EXACT)
    changes = [Change(True, chunk, number) for number, chunk in enumerate([1, 2, 2, 3])]
    assert holdings.change(HERE, changes, 2) == 1
    assert (len(holdings), holdings.trust) == (2, Trust.FULL)
    assert not holdings.wants_sync(0.0, 30.0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60), st.integers(1, 7))
def test_batches_of_any_size_come_to_the_same(operations: list[tuple[bool, int]], size: int) -> None:
    """A set that was told one by one is what the operations make of it."""
    holdings, expected = Holdings(Trust.EXACT), set()
    changes = [Change(admitted, chunk, number) for number, (admitted, chunk) in enumerate(operations)]
    for start in range(0, len(changes), size):
        holdings.change(HERE, changes[start : start + size], ROOM)
    for admitted, chunk in operations:
        (expected.add if admitted else expected.discard)(chunk)
    assert {chunk for chunk in range(21) if holdings.where(chunk)} == expected
    assert len(holdings) == len(expected)
    assert holdings.trust is Trust.EXACT
