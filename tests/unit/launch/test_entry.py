"""The commands end quietly at Ctrl-C, and check what only files can tell."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from components.graph.load import graph_from_raw
from components.launch import cli, dynamo_llm, entry
from components.launch.launch import LaunchError, prepare
from components.launch.state import GraphPhase, GraphState, StateFolder


@pytest.mark.parametrize(("module", "command"), [(cli, entry.penstock), (dynamo_llm, entry.dynamo_llm)])
def test_ctrl_c_is_quiet(
    module: object, command: Callable[[], NoReturn], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 130 and not a word, wherever it comes."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "main", interrupted)
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_a_timing_table_must_be_there(tmp_path: Path) -> None:
    """Neither a built-in name nor a file: refused with the path of the setting and the names there are."""
    engine = {"kind": "sim", "timing": str(tmp_path / "none.json")}
    graph = graph_from_raw({"model": "demo", "components": {"decode": {"engine": engine}}})
    with pytest.raises(LaunchError, match=r"^components\.decode\.engine\.timing: .* neither a file nor one of .*h200-8b"):
        prepare(graph)


def test_down_of_a_stopped_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what was wanted: exit code 0. A name never seen is a mistake."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path))
    folder = StateFolder("agg")
    folder.make()
    folder.write(GraphState("agg", "r", 1, 1.0, GraphPhase.STOPPED, "", "demo", 1.0))
    monkeypatch.setattr(sys, "argv", ["penstock", "down", "agg"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert capsys.readouterr().out == "graph agg is not running\n"
    monkeypatch.setattr(sys, "argv", ["penstock", "down", "other"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
