"""`penstock disagg`: what is made of the workers' answers, and which command lines are refused."""

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console
from typer.testing import CliRunner

from components.decode.prefill_metrics import Metrics
from components.graph.schema import Disagg
from components.launch.cli import app
from components.launch.disagg_cli import Overhead, overhead, prompts_table, rules_table, worker_views
from components.telemetry.metrics import collect, samples
from components.wire.errors import InvalidRequestError
from components.wire.prefill import DisaggRules
from components.wire.process import MetricsReply

RULES = msgspec.to_builtins(Disagg())


def scraped(worker: str, overheads_s: tuple[float, ...] = ()) -> MetricsReply:
    """Return what a decode worker's own metrics say after some long prompts."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for value in overheads_s:
        metrics.placed.labels("pays").inc()
        metrics.outcomes.labels("done").inc()
        metrics.overhead_s.observe(value)
    metrics.placed.labels("short").inc(3)
    return MetricsReply(worker, collect(registry))


def text(*tables: object) -> str:
    """Return what a terminal shows."""
    console = Console(width=200)
    with console.capture() as shown:
        console.print(*tables)
    return shown.get()


def test_rules_and_what_came_of_them() -> None:
    """The names of the metrics are those the decode worker counts under."""
    [view] = worker_views(["decode-0"], [DisaggRules("decode-0", RULES)], [scraped("decode-0", (0.003, 0.007, 0.008))])
    assert view.placements == {"pays": 3, "short": 3}
    assert view.remote_prefills == {"done": 3}
    assert view.overhead.count == 3
    assert view.overhead.mean_s == pytest.approx(0.006)
    assert 0.005 <= (view.overhead.p50_s or 0) <= 0.01
    assert "pays 3, short 3" in text(prompts_table([view]))
    assert "6.0 ms" in text(prompts_table([view]))
    shown = text(rules_table([view]))
    assert all(name in shown for name in RULES)
    assert "512" in shown


def test_who_does_not_answer_is_shown() -> None:
    """A worker of this machine that is silent is named; one of another machine that answers is too."""
    views = worker_views(["decode-0"], [DisaggRules("decode-b-0", RULES)], [])
    assert [(view.worker, view.error) for view in views] == [("decode-0", "did not answer"), ("decode-b-0", "")]
    assert views[0].rules is None
    assert "decode-b-0" in text(rules_table(views), prompts_table(views))


def test_a_refusal_keeps_the_rules_in_sight() -> None:
    """A worker that refuses a change says why, and by what it goes on."""
    refused = DisaggRules("decode-0", RULES, InvalidRequestError("max_wait_s: no").reply())
    [view] = worker_views([], [refused], [])
    assert (view.rules, view.error) == (RULES, "max_wait_s: no")


def test_the_median_lies_within_its_bucket() -> None:
    """As near as buckets tell; nothing for no prefills; the last bound for what lies beyond it."""
    assert overhead([]) == Overhead()
    name = "penstock_remote_prefill_overhead_seconds"
    mostly_one = overhead(samples(scraped("w", (0.0015, 0.0015, 0.0015, 3.0)), name))
    assert 0.001 <= (mostly_one.p50_s or 0) <= 0.002
    beyond = overhead(samples(scraped("w", (50.0, 60.0)), name))
    assert (beyond.p50_s, beyond.mean_s) == (10.0, 55.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["max_queue_depth=0"], "components.decode.disagg.max_queue_depth: must be at least 1, not 0"),
        (["max_wait_s=-1"], "components.decode.disagg.max_wait_s: must be more than 0, not -1.0"),
        (["g", "max_wait_s=soon"], "components.decode.disagg.max_wait_s: expected `float`, got `str`"),
        (["max_waits=1"], "components.decode.disagg.max_waits: unknown setting; did you mean `max_wait_s`?"),
        (["always=[", "g"], "always=[: the value is not YAML"),
        (["one", "two"], "one graph at a time, not one, two; a rule is RULE=VALUE"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Exit code 2, before any graph is asked."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path))
    done = CliRunner().invoke(app, ["disagg", *words])
    assert done.exit_code == 2
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["disagg"], ["queue", "show"], ["queue", "--json"], ["queue", "dead"], ["queue", "drop", "x"]]
)
def test_without_a_graph(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """One line, exit code 1."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path))
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stderr) == (1, "no graph is running\n")


def test_a_graph_by_name_is_shown_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """`penstock queue NAME` is `penstock queue show NAME`, also of a graph named like a command."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path))
    for words in (["queue", "mine"], ["queue", "show", "mine"], ["queue", "dead", "mine"]):
        assert CliRunner().invoke(app, words).stderr == "graph mine is not running\n"
    assert CliRunner().invoke(app, ["queue", "show", "dead"]).stderr == "graph dead is not running\n"
