"""What a coordinator's directory says about servers."""

from components.cache_controller.placements import DirectoryAnswer, KeyPlacements, ObjectKey, Placement, prefixes


def chunk(name: str, *servers: str, group: int = 0, tier: str = "l1") -> KeyPlacements:
    """Return one rank's part of a chunk."""
    return KeyPlacements(ObjectKey(name, group), [Placement(server, tier) for server in servers])


def test_a_prefix_ends_at_the_first_hole() -> None:
    """Later chunks do not count."""
    answer = DirectoryAnswer(3, [chunk("x", "a", "b"), chunk("y", "a"), chunk("z", "a", "b")])
    assert prefixes(answer, 1) == {"a": ("l1", 3), "b": ("l1", 1)}


def test_all_ranks_of_a_chunk_are_needed_and_the_slowest_names_the_place() -> None:
    """Two ranks, of which one lies further away, or nowhere."""
    answer = DirectoryAnswer(2, [chunk("x", "a"), chunk("x", "a", tier="l2"), chunk("y", "a"), chunk("y")])
    assert prefixes(answer, 2) == {"a": ("l2", 1)}


def test_windows_may_miss_chunks() -> None:
    """Layers with a sliding window need only the last ones."""
    answer = DirectoryAnswer(1, [chunk("x", "a"), chunk("x", group=1)])
    assert prefixes(answer, 1) == {"a": ("l1", 1)}
