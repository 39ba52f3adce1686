"""The page that is made of what the benchmarks found."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.document import gpu_section, page, plot, read_anew
from benchmarks.findings import Figure, Findings, Goal, Outcome
from benchmarks.gpu import published

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


RUN: dict[str, Any] = {
    "requests": 10,
    "failed": 0,
    "ttft_ms": {"mean": 120.0, "p50": 90.0, "p99": 400.0},
    "itl_ms": {"p50": 5.0, "p99": 30.0},
    "tpot_ms": {"mean": 9.0},
    "output_tokens_per_s": 900.0,
    "goodput_per_s": 8.0,
    "longest_pause_ms": 50.0,
}


def gpu_results(mean_ms: float) -> dict[str, Any]:
    """What `benchmarks.gpu.many` writes, in small."""
    one = {**RUN, "ttft_ms": {**RUN["ttft_ms"], "mean": mean_ms}}
    routed = {"all": one, "hit_rate": 0.25, "best_hit_rate": 0.3, "answers": [["trace", 1, 2]]}
    mixed = {"all": RUN, "short": RUN, "long": RUN, "hit_rate": 0.0, "answers": []}
    pieces = {"routing/8 a GPU/kv": routed, "routing/8 a GPU/vllm-router/kv_aware": routed, "disagg/apart": mixed}
    return {"machine": {**MACHINE, "gpus": ["NVIDIA H200, 143771, 580"] * 2}, "gpus": 2, "results": pieces}


def test_results_of_gpus_are_kept_without_raw_answers_and_shown(tmp_path: Path) -> None:
    """Two runs of one load become one row with its spread; the page ends with them."""
    pytest.importorskip("matplotlib")
    folder = tmp_path / "benchmarks"
    (folder / "gpu").mkdir(parents=True)
    for name, mean_ms in (("many-2", 100.0), ("many-2-again", 200.0)):
        kept = published.keep(gpu_results(mean_ms))
        assert "answers" not in kept["results"]["routing/8 a GPU/kv"]
        (folder / "gpu" / f"{name}.json").write_text(json.dumps(kept | {"note": " Told."}))
    text = page([ROUTED], {}, "", gpu_section(folder))
    assert "- many-2: 2 of 2 NVIDIA H200, 2 cores, Python 3.11, vllm 1; commit abc. Told." in text
    assert "| 2 | 8 | penstock kv | 150 (100 to 200) | 90.0" in text
    assert "| 2 | 8 | vllm-router/kv_aware | 150 (100 to 200) | 90.0" in text
    assert "| 2 | prefill workers | short | 120 | 90.0 | 400 | 5.00 | 30.0 | 50.0 | 8.00 |" in text
    assert "![routers](benchmarks/gpu.svg)" in text
    assert (folder / "gpu.svg").exists()


def test_a_page_without_gpus_says_nothing_of_them(tmp_path: Path) -> None:
    """Nothing is kept, nothing is drawn."""
    assert gpu_section(tmp_path) == ""
    assert not list(tmp_path.iterdir())
