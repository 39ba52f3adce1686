"""The page that is made of what the benchmarks found."""

from pathlib import Path

import pytest

from benchmarks.document import page, plot, read_anew
from benchmarks.findings import Figure, Findings, Goal, Outcome

MACHINE = {"cpu": "C", "cores": 2, "python": "3.11", "commit": "abc", "versions": {"vllm": "1"}}
JOBS = Outcome(
    "jobs",
    "python -m benchmarks.jobs",
    61.4,
    Findings(
        [
            Figure("accepted", "jobs/s", {"penstock": [1000.0, 2000.0, 3000.0]}),
            Figure("both", "ms", {"b": [2.0], "penstock": [1.0]}),
        ],
        [
            Goal("accepted", 2000.0, "at least", 1500, "jobs/s"),
            Goal("through", 400.0, "at least", 500, "jobs/s", "the client"),
        ],
        ["peer 1.2"],
    ),
    machine=MACHINE,
)
ROUTED = Outcome("routed", "python -m benchmarks.routed", failure="not run: vLLM is not installed")


def test_the_page_tells_figures_goals_machine_and_reasons() -> None:
    """Everything a reader needs to judge a figure stands beside it."""
    text = page([JOBS, ROUTED], {"jobs": "benchmarks/jobs.svg"})
    assert "- 2 cores of C, Python 3.11, vllm 1; commit abc: jobs." in text
    assert "`python -m benchmarks.jobs`, 61 s." in text
    assert "| accepted | jobs/s | 2,000 (1,000 to 3,000) |" in text
    assert "| | unit | penstock | b |" in text
    assert "| jobs | accepted | at least 1,500 jobs/s | 2,000 jobs/s | reached |" in text
    assert "| jobs | through | at least 500 jobs/s | 400 jobs/s | **missed** |" in text
    assert "- jobs, through: the client." in text
    assert "![jobs](benchmarks/jobs.svg)" in text
    assert "No figures: not run: vLLM is not installed" in text
    assert "- peer 1.2" in text


def test_figures_are_read_as_they_are_read_now() -> None:
    """A goal that changed since the run counts; what failed stays failed."""
    times = {"query_worker_info, all": {"p50": 1.0}, "lookup, 8,000 tokens held": {"p50": 20.0}}
    old = Outcome("cache", "python -m benchmarks.cache_controller", findings=Findings([]), raw={"ms": times})
    findings = read_anew(old).findings
    assert findings is not None
    assert [goal.reached for goal in findings.goals] == [True, False]
    assert read_anew(ROUTED) is ROUTED


def test_a_plot_is_drawn_of_what_is_compared(tmp_path: Path) -> None:
    """The same figures give the same bytes, so that a page made anew differs where figures do."""
    pytest.importorskip("matplotlib")
    first, again = tmp_path / "first", tmp_path / "again"
    assert plot([JOBS, ROUTED], first) == {"jobs": "first/jobs.svg"}
    plot([JOBS, ROUTED], again)
    assert (first / "jobs.svg").read_bytes() == (again / "jobs.svg").read_bytes()
