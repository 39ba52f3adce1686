"""Tests for recent choices: expiry, bounds, and equality with a plain model."""

import hypothesis.strategies as st
from hypothesis import given, settings

from components.router.recent import RecentChoices

TTL_S = 2.0
NOTE = st.tuples(
    st.sampled_from("ab"), st.integers(0, 2), st.integers(1, 12), st.sampled_from([0.0, 0.3, 1.0, 1.9, 2.1, 5.0])
)


def prompt(kind: int, length: int) -> list[int]:
    """Prompts of all kinds share four blocks; then each goes its own way."""
    return [1, 2, 3, 4, *(100 * (kind + 1) + at for at in range(8))][:length]


@settings(deadline=None)
@given(st.lists(NOTE, max_size=30))
def test_overlap_is_what_the_living_notes_cover(notes: list[tuple[str, int, int, float]]) -> None:
    """For every prompt and worker: the longest common start with a note younger than the time to live."""
    recent, made, now_s = RecentChoices(TTL_S), [], 100.0
    for worker, kind, length, pause_s in notes:
        now_s += pause_s
        recent.note(worker, prompt(kind, length), now_s)
        made.append((worker, prompt(kind, length), now_s))
        if pause_s < 1.0:
            recent.settle()
        for asked in range(3):
            blocks = prompt(asked, 12)
            expected: dict[str, int] = {}
            for noted_for, noted, at_s in made:
                common = next((i for i, (x, y) in enumerate(zip(noted, blocks, strict=False)) if x != y), len(noted))
                if at_s + TTL_S > now_s and common > expected.get(noted_for, 0):
                    expected[noted_for] = common
            assert recent.overlap(blocks, now_s) == expected


def test_memory_is_bounded_at_any_rate() -> None:
    """Too many prompts at once push out the oldest, never the one just noted."""
    recent = RecentChoices(1000.0, max_blocks=100)
    for start in range(0, 3000, 30):
        recent.note("a", list(range(start, start + 30)), 1.0)
        assert recent.blocks() <= 100
        assert recent.overlap(list(range(start, start + 30)), 1.0) == {"a": 30}
    recent.note("a", list(range(10_000)), 1.0)
    assert recent.blocks() <= 100


def test_a_forgotten_worker_is_gone_from_both_generations() -> None:
    """Whatever the age of its notes."""
    recent = RecentChoices(TTL_S)
    recent.note("a", [1], 0.5)
    recent.note("b", [1], 2.6)
    recent.note("a", [2], 2.6)
    recent.forget("a")
    assert recent.overlap([1], 2.6) == {"b": 1}
    assert recent.overlap([2], 2.6) == {}
    assert recent.overlap([], 2.6) == {}
