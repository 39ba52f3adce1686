"""`penstock bench`: it hands over to a checkout's benchmarks, or says that there is none."""

import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import components
from components.launch.bench_cli import checkout
from components.launch.cli import app


def test_it_hands_over_with_all_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """From whatever folder, which it stays in, --help included; the benchmarks read their own words."""
    called: list[list[str]] = []
    folders: list[str] = []

    def execve(path: str, argv: list[str], environment: dict[str, str]) -> None:
        called.append([path, *argv])
        folders.append(environment["PYTHONPATH"].split(os.pathsep)[0])
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(os, "chdir", lambda folder: folders.append(str(folder)))
    result = CliRunner().invoke(app, ["bench", "jobs", "--rounds", "2", "--help"])
    assert result.exit_code == 0, result.output
    root = str(checkout())
    assert called == [[sys.executable, sys.executable, "-P", "-m", "benchmarks.bench", "jobs", "--rounds", "2", "--help"]]
    assert folders == [root]


def test_it_says_when_there_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package has no benchmarks beside it."""
    monkeypatch.setattr(components, "__file__", str(tmp_path / "components" / "__init__.py"))
    result = CliRunner().invoke(app, ["bench", "--list"])
    assert result.exit_code != 0
    assert "needs a checkout" in result.output
