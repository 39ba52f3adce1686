"""`penstock simulate` as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_TIMEOUT_S = 120


def penstock(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    argv = [sys.executable, "-m", "components.launch", "simulate", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)


def rows(answer: subprocess.CompletedProcess[str]) -> Any:
    """Return the JSON rows without wall times."""
    assert answer.returncode == 0, answer.stderr
    table = json.loads(answer.stdout)
    for row in table:
        del row["figures"]["wall_s"]
    return table


def test_made_up_traffic_is_the_trace_it_is_saved_as(tmp_path: Path) -> None:
    """The same figures from the command that makes it up and from the file; two policies, two sizes."""
    trace = tmp_path / "trace.jsonl"
    fleets = ["--workers", "2,3", "--policy", "kv,round_robin", "--json", "-"]
    made = rows(penstock("--generate", "sessions", "--requests", "150", "--save-trace", str(trace), *fleets))
    read = rows(penstock(str(trace), *fleets))
    assert len(trace.read_text().splitlines()) == 150
    assert [row["figures"] for row in made] == [row["figures"] for row in read]
    assert [(row["scenario"]["workers"], row["scenario"]["policy"]) for row in read] == [
        (2, "kv"),
        (2, "round_robin"),
        (3, "kv"),
        (3, "round_robin"),
    ]
    assert all(row["figures"]["requests"] == 150 for row in read)


def test_a_table_of_splits_and_its_picture(tmp_path: Path) -> None:
    """What tells the fleets apart, how many prompts went elsewhere, how many requests were served well."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "splits.svg"
    answer = penstock(
        *("--generate", "bursts", "--requests", "60", "--rate", "5", "--workers", "3,2+1", "--lmcache-gb", "8"),
        *("--slo-ttft-ms", "1000", "--plot", str(picture)),
    )
    assert answer.returncode == 0, answer.stderr
    assert all(word in answer.stdout for word in ("prefill workers", "remote prefills", "within SLO", "bursts, 5/s"))
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        ([], "name a trace, or --generate one"),
        (["none.jsonl"], "none.jsonl: No such file"),
        (["--generate", "bursts", "--policy", "best"], "policy: there is no 'best'"),
        (["--generate", "bursts", "--speed", "fast"], "--speed: must be numbers"),
        (["--generate", "bursts", "--set", "seed"], "--set: must be SETTING=VALUE"),
        (["--generate", "bursts", "--workers", "1+1"], "lmcache_gb must be more than 0"),
        (["--generate", "bursts", "--set", "delay_s=-1"], "delay_s: must be a number of at least 0"),
        (["--generate", "bursts", "--lmcache-gb", "inf"], "lmcache_gb: must be a number of at least 0"),
        (["--generate", "bursts", "--timing", "h200-8b,none"], "timing: none is neither a file nor one of"),
        (["--generate", "bursts", "--json", "/no/such/folder/x"], "there is no folder /no/such/folder"),
    ],
)
def test_mistakes(words: list[str], mistake: str) -> None:
    """One line on standard error, and no traceback."""
    answer = penstock(*words)
    assert answer.returncode == 2
    assert answer.stderr.startswith(mistake) or mistake in answer.stderr.splitlines()[0]
    assert "Traceback" not in answer.stderr


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    """With its file and number."""
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [0]}\nnonsense\n')
    answer = penstock(str(trace))
    assert answer.returncode == 2
    assert f"{trace}, line 2: " in answer.stderr
