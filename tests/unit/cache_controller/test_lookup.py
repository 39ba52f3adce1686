"""Who holds the beginning of a prompt, also when it is hashed otherwise than expected."""

from components.cache_controller.hashing import Root, Scheme, chunk_hashes
from components.cache_controller.holdings import Change, Holdings, Trust
from components.cache_controller.lookup import Lookup, Match

EXPECTED = Scheme(Root("builtin", 5, "PYTHONHASHSEED=0"), 256)
OTHER = Root("builtin", 6, "PYTHONHASHSEED=1")
PROMPT = list(range(1000))


def holding(scheme: Scheme, tokens: int, trust: Trust = Trust.EXACT) -> Holdings:
    """Return a worker that holds the beginning of the prompt."""
    holdings = Holdings(Trust.EXACT)
    hashes = chunk_hashes(PROMPT[:tokens], scheme)
    holdings.change("here", [Change(True, chunk, number) for number, chunk in enumerate(hashes)], 10_000)
    holdings.trust = trust
    return holdings


def test_the_longest_comes_first_and_the_least_rank_counts() -> None:
    """An instance holds as much as each of its ranks does."""
    instances = {
        "short": [holding(EXPECTED, 256)],
        "ranks": [holding(EXPECTED, 1000), holding(EXPECTED, 512)],
        "long": [holding(EXPECTED, 768)],
    }
    found = Lookup(EXPECTED, [OTHER]).find(PROMPT, instances)
    assert found.matches == [Match("long", "here", 768), Match("ranks", "here", 512), Match("short", "here", 256)]
    assert found.warnings == []


def test_another_scheme_is_proven_by_one_hash_and_remembered() -> None:
    """Until the instance is a new one."""
    lookup, other = Lookup(EXPECTED, [OTHER]), Scheme(OTHER, 64)
    instances = {"a": [holding(other, 640)]}
    assert lookup.find(PROMPT, instances).matches == [Match("a", "here", 640)]
    assert lookup.scheme("a") == other
    assert lookup.differs("a")
    lookup.forget("a")
    assert not lookup.differs("a")


def test_never_silently_nothing() -> None:
    """An instance of which nothing was ever found is named, as are those that are not known exactly."""
    lookup = Lookup(EXPECTED, [])
    instances = {
        "strange": [holding(Scheme(Root("builtin", 77, "?"), 256), 512)],
        "unknown": [holding(EXPECTED, 256, Trust.UNKNOWN)],
        "empty": [Holdings(Trust.EXACT)],
    }
    found = lookup.find(PROMPT, instances)
    assert [match.instance_id for match in found.matches] == ["unknown"]
    assert [warning.split(":")[0] for warning in found.warnings] == ["strange", "unknown"]
    assert lookup.find([1, 2, 3], {"unknown": instances["unknown"]}).matches == []
    assert lookup.find([], instances).matches == []
