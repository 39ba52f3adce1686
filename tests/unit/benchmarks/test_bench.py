"""The benchmark's entry: the registry of pieces, and that a piece that fails or hangs costs only itself."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import bench
from benchmarks.bench import run_bounded, run_piece
from benchmarks.findings import Figure, Findings
from benchmarks.pieces import PIECES, Effort, Piece, missing

GOOD = "import json, sys; json.dump({'machine': {'cores': 2}, 'x': [1.5]}, open(sys.argv[-1], 'w'))"


def piece(code: str, tmp_path: Path, limit_s: float = 20, needs: str = "") -> Piece:
    """Return a piece that is `code`, in a module of its own."""
    (tmp_path / "made_up_piece.py").write_text(code)
    return Piece(
        "made-up",
        "this with that",
        limit_s,
        lambda _: ["made_up_piece"],
        lambda raw: Findings([Figure("x", "s", raw)]),
        needs,
    )


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def test_every_piece_has_a_name_of_its_own_a_module_and_a_bound() -> None:
    """What the registry promises to the entry."""
    assert len({piece.name for piece in PIECES}) == len(PIECES)
    for each in PIECES:
        module, *words = each.arguments(Effort())
        assert Path(module.replace(".", "/") + ".py").exists(), module
        assert all(isinstance(word, str) for word in words)
        assert 0 < each.limit_s <= 600
        assert each.compares


def test_effort_sets_the_rounds() -> None:
    """What was asked for goes before what is quick, and that before the usual."""
    assert [Effort().rounds_or(5), Effort(quick=True).rounds_or(5), Effort(7, quick=True).rounds_or(5)] == ["5", "1", "7"]


def test_a_piece_leaves_its_findings(tmp_path: Path) -> None:
    """The machine stands beside them, not in them."""
    outcome = run_piece(piece(GOOD, tmp_path), Effort(), tmp_path)
    assert outcome.failure == ""
    assert outcome.findings == Findings([Figure("x", "s", {"x": [1.5]})])
    assert outcome.machine == {"cores": 2}
    assert outcome.raw == {"x": [1.5]}
    assert outcome.command == "python -m made_up_piece"


def test_results_go_where_the_caller_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--json` is meant from where the caller stands; the pieces stand in the checkout, whose files they name."""
    in_checkout = f"import os; assert os.getcwd() == {str(bench.ROOT)!r}; {GOOD}"
    monkeypatch.setattr(bench, "PIECES", [piece(in_checkout, tmp_path)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--json", "some/where"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 0
    assert json.loads((tmp_path / "some" / "where" / "made-up.json").read_text())["piece"] == "made-up"


def test_a_piece_that_fails_says_why(tmp_path: Path) -> None:
    """Its last line stands for it; nothing is raised."""
    outcome = run_piece(piece("raise SystemExit('no water')", tmp_path), Effort(), tmp_path)
    assert outcome.findings is None
    assert outcome.failure == "ended with 1: no water"


def test_a_piece_that_takes_too_long_ends_with_all_it_started(tmp_path: Path) -> None:
    """Also a process it started in the background."""
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid))\n"
        "time.sleep(600)"
    )
    outcome = run_piece(piece(code, tmp_path, limit_s=1.5), Effort(), tmp_path)
    assert outcome.failure == "took longer than 1.5 s"
    until = time.monotonic() + 10
    while Path(f"/proc/{child.read_text()}").exists() and _state(child.read_text()) != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{child.read_text()}").exists() or _state(child.read_text()) == "Z"


def test_a_piece_that_cannot_run_here_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told apart from one that failed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing("gpu") == "there is no GPU"
    outcome = run_piece(piece(GOOD, tmp_path, needs="gpu"), Effort(), tmp_path)
    assert outcome.failure == "not run: there is no GPU"


def test_a_bounded_command_sees_quiet_settings(tmp_path: Path) -> None:
    """Nothing is reported to anybody from a benchmark."""
    argv = [sys.executable, "-c", "import os, json; print(json.dumps(dict(os.environ)))"]
    assert run_bounded(argv, 20, tmp_path / "log") == ""
    assert json.loads((tmp_path / "log").read_text())["DO_NOT_TRACK"] == "1"


def _state(pid: str) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
