"""What an LMCache server's events say about what engines can load from it."""

import msgspec

from components.graph.schema import LMCache
from components.lmcache.contents import Change, Contents, Entry, EntryKey, EventBatch, Events
from components.lmcache.reporting import coordinator_url, messages
from components.wire.kv import ChunksChanged


def batch(kind: str, tier: str, *chunks: int, rank: int = 0, salt: str = "", backend: str = "b") -> EventBatch:
    """Return events about chunks; LMCache's hashes are 256 bits long."""
    entries = [Entry(EntryKey(f"{2**200 + chunk:064x}", rank, salt)) for chunk in chunks]
    return EventBatch(kind, tier, backend, entries)


def test_what_is_evicted_is_gone() -> None:
    """The last word of one report counts; reads and settings say nothing."""
    contents = Contents()
    report = [batch("store", "l1", 1, 2), batch("access", "l1", 3), batch("config", "l1"), batch("delete", "l1", 1)]
    assert contents.apply(report) == Change([2], [1])
    assert contents.apply([batch("delete", "l1", 2), batch("store", "l1", 2)]) == Change([2], [])


def test_a_chunk_goes_with_its_first_part() -> None:
    """Ranks evict on their own; nobody can load what is not whole."""
    contents = Contents()
    contents.apply([batch("store", "l1", 1), batch("store", "l1", 1, rank=1)])
    assert contents.apply([batch("delete", "l1", 1, rank=1)]) == Change([], [1])


def test_salted_chunks_are_left_out() -> None:
    """Engines tell of them without their salt, so nothing can be said of them."""
    assert Contents().apply([batch("store", "l1", 1, salt="s"), batch("delete", "l1", 1, salt="s")]) == Change([], [])


def test_a_slower_level_keeps_a_chunk() -> None:
    """Gone is what no level has, in whichever order they lose it."""
    contents = Contents()
    contents.apply([batch("store", "l1", 1, 2), batch("store", "l2", 1, 2), batch("store", "l2", 1, backend="other")])
    assert contents.apply([batch("delete", "l1", 1)]) == Change([], [])
    assert contents.apply([batch("delete", "l2", 1)]) == Change([], [])
    assert contents.apply([batch("delete", "l2", 1, backend="other")]) == Change([], [1])
    assert contents.apply([batch("delete", "l2", 2)]) == Change([], [])
    assert contents.apply([batch("delete", "l1", 2)]) == Change([], [2])
    assert contents.apply([batch("store", "l2", 3), batch("delete", "l1", 3), batch("store", "l1", 3)]) == Change([3], [])
    assert contents.apply([batch("delete", "l2", 3)]) == Change([], [])


def test_what_is_remembered_of_slower_levels_is_bounded() -> None:
    """The oldest is forgotten first."""
    contents = Contents(max_slower=2)
    contents.apply([batch("store", "l2", 1, 2, 3)])
    assert contents.apply([batch("delete", "l1", 1, 2, 3)]) == Change([], [1])


def test_events_are_read_as_lmcache_posts_them() -> None:
    """What is not needed is not looked at."""
    posted = {
        "batches": [
            {
                "instance_id": "kv",
                "incarnation": 7,
                "seq": 1,
                "event_type": "delete",
                "tier": "l1",
                "backend": "dram",
                "entries": [{"key": {"chunk_hash_hex": "ff" * 32, "model_name": "m", "kv_rank": 0}, "token_ids": [1]}],
            }
        ]
    }
    events = msgspec.json.decode(msgspec.json.encode(posted), type=Events)
    assert Contents().apply(events.batches) == Change([], [2**64 - 1])


def test_long_reports_are_several_messages() -> None:
    """None is too long for a NATS server; what is gone is told first."""
    told = messages("lmcache-0", [7], list(range(50_001)))
    assert [(len(each.held), len(each.gone)) for each in told] == [(0, 50_000), (0, 1), (1, 0)]
    assert told[-1] == ChunksChanged("lmcache-0", [7])


def test_where_a_coordinator_is() -> None:
    """Nowhere, when it is turned off or has no port yet."""
    assert coordinator_url(LMCache(coordinator_port=9300)) == "http://127.0.0.1:9300"
    assert coordinator_url(LMCache()) == coordinator_url(LMCache(coordinator=False, coordinator_port=9300)) == ""
