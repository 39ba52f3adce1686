"""A what-if table as a picture: four figures over the first setting that varies in numbers, one line for each of the rest.

Needs matplotlib (the extra `bench`), which is imported when a plot is asked for.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from components.simulate.outcome import Figures
from components.simulate.scenario import value_at
from components.simulate.table import Row, fields, labels

_PANELS: list[tuple[str, Callable[[Figures], float], bool]] = [
    ("TTFT mean (ms)", lambda figures: figures.ttft_mean_ms, True),
    ("TTFT p99 (ms)", lambda figures: figures.ttft_p99_ms, True),
    ("output tokens/s", lambda figures: figures.output_tokens_per_s, False),
    ("prefix reuse", lambda figures: figures.reuse_ratio, False),
]


class PlotError(Exception):
    """There is no plot to be had; the text says why."""


def check() -> None:
    """Find out whether plots can be made, before hours of simulation.

    Raises:
        PlotError: matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise PlotError("plots need matplotlib: pip install 'penstock[bench]'")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write the picture of `rows`, as SVG unless the path ends otherwise.

    Raises:
        PlotError: matplotlib is missing, or cannot write such a file.
    """
    check()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    axis, lines = _lines(rows)
    numbers = sorted({x for line in lines.values() for x, _ in line if not isinstance(x, str)})
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, value, logarithmic) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for name, line in lines.items():
            axes.plot([x for x, _ in line], [value(row.figures) for _, row in line], marker="o", label=name)
        axes.set(title=title, xlabel=axis)
        if numbers:
            axes.set_xticks(numbers)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_minor_formatter("{x:,.0f}")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
    if any(lines):
        figure.axes[0].legend()
    try:
        with rc_context({"svg.hashsalt": "penstock"}):  # the same table, the same file
            figure.savefig(path, format=path.suffix[1:] or "svg", metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise PlotError(f"{path}: {error}") from error


def _lines(rows: Sequence[Row]) -> tuple[str, dict[str, list[tuple[Any, Row]]]]:
    """Return what the horizontal axis shows, and the points of each line by its name."""
    paths = fields(rows)
    axis = next((path for path in paths if isinstance(value_at(rows[0].scenario, path), int | float)), "policy")
    rest = [path for path in paths if path != axis]
    several = len({row.trace for row in rows}) > 1
    lines: dict[str, list[tuple[Any, Row]]] = {}
    for row in rows:
        name = ", ".join([*([row.trace] if several else []), *labels(row, rest)])
        lines.setdefault(name, []).append((value_at(row.scenario, axis), row))
    return axis.replace("_", " "), lines
