"""`penstock queue`: what people see of lanes and dead letters."""

from rich.console import Console
from rich.table import Table

from components.launch.queue_cli import LaneView, dead_table, dead_view, lanes_table
from components.wire.queueing import DeadLetter


def text(table: Table) -> str:
    """Return what a terminal shows."""
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table)
    return shown.get()


def test_lanes() -> None:
    """Each with its figures."""
    shown = text(lanes_table([LaneView("prefill", "a", 3, 2, 1.25, 0, 7), LaneView("prefill", "b", 0, 0, 0.0, 1, 7)]))
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["prefill", "a", "3", "2", "1.2", "s", "0", "7"],
        ["prefill", "b", "0", "0", "-", "1", "7"],
    ]


def test_a_dead_letter_without_its_prompt() -> None:
    """Ages by the clock given, never negative; the job's data is not shown."""
    letter = DeadLetter("job-1", "a", "taken 3 times and never finished", 4, 1000.0, 1060.0, b"secret")
    view = dead_view(letter, 1100.0)
    assert (view.age_s, view.dead_s, view.deliveries, view.lane) == (100.0, 40.0, 4, "a")
    assert dead_view(letter, 900.0).age_s == 0.0
    shown = text(dead_table([view]))
    assert "taken 3 times and never finished" in shown
    assert "secret" not in shown
