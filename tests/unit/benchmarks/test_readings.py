"""What the pieces wrote down, read: the control plane, as the one with the most to it."""

from typing import Any

from benchmarks.readings import cache, control_plane


def runs(rate: float) -> list[dict[str, float]]:
    """Return two rounds of one system."""
    figures = {"requests_per_s": rate, "ttft_p50_ms": 1e3 / rate, "cpu_ms": 1.0, "worker_cpu_ms": 0.5, "failed": 0.0}
    return [figures, figures]


def raw(**rates: float) -> dict[str, Any]:
    """Return what the piece writes, each system at one rate everywhere."""
    cells = [f"{way} {concurrency}" for way in ("stream", "whole") for concurrency in (1, 16, 64)]
    return {
        "cells": {cell: {name.replace("_", "-"): runs(rate) for name, rate in rates.items()} for cell in cells},
        "missing": {"sglang-router": "pip could not"},
        "versions": {"dynamo": "1.6.1"},
    }


def test_the_control_plane_is_judged_round_by_round() -> None:
    """Level is enough against Dynamo, three times is needed against production-stack."""
    findings = control_plane(raw(penstock=900, dynamo=900, production_stack=400))
    verdicts = {goal.name: goal.reached for goal in findings.goals}
    assert verdicts["requests/s against Dynamo, streamed, 16 at a time"] is True
    assert verdicts["against production-stack, whole, 64 at a time"] is False
    assert verdicts["TTFT against Dynamo at 1, times as fast"] is True
    assert verdicts["TTFT against Dynamo with its mockers in one process at 1, times as fast"] is None
    assert "sglang-router was not measured: pip could not" in findings.notes
    assert all(goal.why_not for goal in findings.goals if not goal.reached)


def test_a_peer_that_is_missing_leaves_the_figures() -> None:
    """What could not be compared is not reached and not missed."""
    findings = control_plane(raw(penstock=900))
    assert {goal.reached for goal in findings.goals} == {None}
    assert findings.figures[0].samples == {"penstock": [900, 900]}


def test_cache_queries() -> None:
    """Both goals of the cache controller."""
    times = {"p50": 1.0, "p99": 12.0}
    calls = ("query_worker_info, all", "lookup, 8,000 tokens held")
    findings = cache({"ms": dict.fromkeys(calls, times)})
    assert [goal.reached for goal in findings.goals] == [True, True]
    assert len(findings.figures) == 4
