"""Plots of the benchmark's figures, as SVG. The same figures give the same bytes."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.findings import Figure, spread_of

mpl.use("svg")
_STYLE = {
    "svg.hashsalt": "penstock",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_COLOURS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#8d96a3")


@mpl.rc_context(_STYLE)
def control_plane(figures: list[Figure], path: Path) -> None:
    """Draw requests a second, TTFT and CPU by concurrency, streamed and whole."""
    rows = ("requests", "TTFT p50", "CPU a request")
    plot, axes = plt.subplots(len(rows), 2, figsize=(9, 7.5))
    for row, what in enumerate(rows):
        for column, way in enumerate(("streamed", "whole")):
            cells = [figure for figure in figures if figure.name.startswith(f"{what}, {way}")]
            _bars(axes[row][column], cells, [figure.name.split(", ")[2] for figure in cells])
            axes[row][column].set_title(f"{what} ({cells[0].unit}), {way}")
            axes[row][column].set_yscale("log")
            axes[row][column].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes[row][column].yaxis.set_major_formatter("{x:g}")
            axes[row][column].yaxis.set_minor_locator(NullLocator())
    _save(plot, path, axes[0][0])


@mpl.rc_context(_STYLE)
def pairs(figures: list[Figure], path: Path) -> None:
    """Draw each figure by itself, its subjects beside one another."""
    columns = min(4, len(figures))
    rows = -(-len(figures) // columns)
    plot, axes = plt.subplots(rows, columns, figsize=(9, 2.2 * rows), squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index >= len(figures):
            axis.axis("off")
            continue
        figure = figures[index]
        _bars(axis, [figure], [""])
        axis.set_title(textwrap.fill(f"{figure.name} ({figure.unit})", 36), fontsize=7)
    _save(plot, path, axes[0][0])


@mpl.rc_context(_STYLE)
def by_load(parts: dict[str, list[Figure]], path: Path) -> None:
    """Draw each part, by its title, with one group of bars a load."""
    plot, axes = plt.subplots(-(-len(parts) // 2), 2, figsize=(9, 2.8 * -(-len(parts) // 2)), squeeze=False)
    for axis, (title, figures) in zip(axes.flat, parts.items(), strict=False):
        _bars(axis, figures, [figure.name for figure in figures])
        axis.set_title(title)
    _save(plot, path, axes[0][0])


def _bars(axis: Any, figures: list[Figure], labels: list[str]) -> None:
    subjects = list(dict.fromkeys(subject for figure in figures for subject in figure.samples))
    subjects.sort(key=lambda subject: subject != "penstock")
    width = 0.8 / len(subjects)
    for number, subject in enumerate(subjects):
        shown = [(at, spread_of(figure.samples[subject])) for at, figure in enumerate(figures) if subject in figure.samples]
        places = [at + (number - (len(subjects) - 1) / 2) * width for at, _ in shown]
        medians = [spread.median for _, spread in shown]
        errors = [[s.median - s.least for _, s in shown], [s.most - s.median for _, s in shown]]
        colour = _COLOURS[number % len(_COLOURS)]
        axis.bar(places, medians, width, yerr=errors, label=subject, color=colour, error_kw={"lw": 0.7})
    axis.set_xticks(range(len(labels)), labels)


def _save(plot: Any, path: Path, named: Any) -> None:
    """Write the plot, with one legend for all its parts, which are coloured as the `named` one."""
    handles, labels = named.get_legend_handles_labels()
    plot.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    plot.tight_layout(rect=(0, 0, 1, 0.95))
    plot.savefig(path, metadata={"Date": None})
    plt.close(plot)
