"""Graphs for the scenarios: the same ones with simulated engines and with real vLLM."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launched import Commands, Launched

BOTH = [
    pytest.param("agg_sim", id="sim"),
    pytest.param("agg", id="vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(300)]),
]
# The random model would put blanks between the tokens of its JSON until its tokens are spent.
TERSE_JSON = "decode.engine.structured_outputs_config={backend: xgrammar, disable_any_whitespace: true}"


@pytest.fixture(scope="session", params=BOTH)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A graph with two workers, launched once for all scenarios that leave it as they found it."""
    settings = (TERSE_JSON,) if request.param == "agg" else ()
    launched = Launched.up(tmp_path_factory.mktemp("state"), f"graphs/{request.param}.yaml", *settings)
    try:
        yield launched.wait_ready(240)
    finally:
        launched.close()
    assert launched.left_over(wait_s=0) == []


@pytest.fixture(params=BOTH)
def own_graph(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launched]:
    """A graph of the test's own, to be ended by it."""
    launched = Launched.up(tmp_path, f"graphs/{request.param}.yaml")
    try:
        yield launched.wait_ready(240)
    finally:
        launched.close()


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """The command line with an empty state folder."""
    return Commands(tmp_path)
