"""The picture of a table."""

from pathlib import Path

import pytest

from components.simulate import plots
from components.simulate.plots import PlotError, plot
from components.simulate.scenario import Scenario, grid
from components.simulate.simulation import simulate
from components.simulate.table import Row
from components.simulate.trace import Request

REQUESTS = [Request(timestamp=number * 100, input_length=900, output_length=3, hash_ids=[0, number]) for number in range(9)]


def rows() -> list[Row]:
    """Return a small table."""
    fleets = grid(Scenario(), {"workers": ["1", "2"], "policy": ["kv", "random"]})
    return [Row("made up", fleet, simulate(REQUESTS, fleet).figures()) for fleet in fleets]


def test_a_line_for_each_policy(tmp_path: Path) -> None:
    """Over the setting that varies in numbers."""
    pytest.importorskip("matplotlib")
    plot(rows(), tmp_path / "table.svg")
    picture = (tmp_path / "table.svg").read_text()
    assert "<svg" in picture
    plot(rows(), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == picture
    assert all(f"<!-- {word} -->" in picture for word in ("kv", "random", "workers", "TTFT mean (ms)"))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """Is named, as is a kind of file that matplotlib does not know."""
    pytest.importorskip("matplotlib")
    with pytest.raises(PlotError, match="none"):
        plot(rows(), tmp_path / "none" / "table.svg")
    with pytest.raises(PlotError, match="xyz"):
        plot(rows(), tmp_path / "table.xyz")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One is told how to get it, and nothing else needs it."""
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(PlotError, match=r"pip install 'penstock\[bench\]'"):
        plot(rows(), tmp_path / "table.svg")
