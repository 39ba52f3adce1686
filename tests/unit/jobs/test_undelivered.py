"""Outcomes on disk: what one process leaves, the next one finds."""

from pathlib import Path

from components.jobs.undelivered import Outcome, Undelivered


def test_outcomes_survive_their_process(tmp_path: Path) -> None:
    """Until they are dropped; hostile ids stay in the folder; garbage is passed over."""
    first = Undelivered(tmp_path)
    first.open()
    for outcome in (Outcome("../../x", 1, b"{}"), Outcome("b", "f", error="no"), Outcome("c", "f")):
        first.add(outcome)
    first.drop("c")
    first.drop("c")
    (tmp_path / "bad.outcome").write_bytes(b"garbage")
    assert all(file.parent == tmp_path for file in tmp_path.rglob("*"))
    second = Undelivered(tmp_path)
    second.open()
    assert {(each.job_id, each.fence_token, each.result, each.error) for each in second} == {
        ("../../x", 1, b"{}", ""),
        ("b", "f", None, "no"),
    }
    assert "b" in second


def test_a_disk_that_takes_nothing_costs_the_copy_only(tmp_path: Path) -> None:
    """The outcome is still delivered from memory."""
    folder = tmp_path / "gone"
    undelivered = Undelivered(folder)
    undelivered.open()
    folder.rmdir()
    undelivered.add(Outcome("a", "f", b"{}"))
    assert len(undelivered) == 1
    undelivered.drop("a")
    assert len(undelivered) == 0
