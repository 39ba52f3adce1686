"""The script for several GPUs, on simulated engines: a fleet whose router is exchanged, and a graph with prefill workers."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.budget import Budget, Journal
from benchmarks.gpu.engines import Stand
from benchmarks.gpu.host import Host
from benchmarks.gpu.many import measure, plan, report
from benchmarks.gpu.sizes import CPU
from benchmarks.gpu.traffic import Writer
from components.model.demo import demo_model
from components.simulate.trace import Request as Arrival

WANTED = ("routing/2 a GPU/kv", "routing/2 a GPU/round_robin", "disagg/apart")


@pytest.mark.timeout(300)
def test_routing_and_disaggregation_are_measured(tmp_path: Path) -> None:
    """Each piece has its figures, from the router it names, and nothing failed."""
    conversations = [
        Arrival(
            timestamp=100 * turn + 10 * number,
            input_length=2048 * (turn + 1),
            output_length=50,
            hash_ids=[0, *range(10 * number + 1, 10 * number + 4 + 4 * turn)],
        )
        for number in range(6)
        for turn in range(2)
    ]
    host = Host((), demo_model(), {"kind": "sim", "speed": 3})
    stand = Stand(host, replace(CPU, window_s=2.0), Writer(host.model), tmp_path, None, 90)
    journal = Journal(tmp_path / "results.json", {})
    pieces = [piece for piece in plan(stand, conversations, 2) if piece.name in WANTED]
    measure(stand, pieces, 2, Budget(280), journal, at_once=True)
    report(journal)
    assert journal.not_measured == {}
    assert set(journal.results) == set(WANTED)
    for name, found in journal.results.items():
        assert found["all"]["failed"] == 0, found["all"]["errors"]
        assert found["all"]["ttft_ms"]["p50"] > 0
        assert found["all"]["chosen_by"].keys() == {"round_robin" if "robin" in name else "kv"}
    assert sum(journal.results["disagg/apart"]["placements"].values()) > 0
