"""Quantities over time: bands that hold the posterior predictive draws of two methods, and the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, MultipleLocator

from models.pictures import DASHES, INK, METHOD, PAPER, REFERENCE, style
from validation.figures import INNER, OUTER


class Panel(NamedTuple):
    """One quantity over time, with the posterior predictive draws of two methods.

    Attributes:
        title: what is shown.
        unit: label of the vertical axis.
        x: times of the data.
        y: data.
        grid: times of the draws.
        method: predictive draws of the method under test.
        reference: predictive draws of the reference.
    """

    title: str
    unit: str
    x: Float[np.ndarray, " data"]
    y: Float[np.ndarray, " data"]
    grid: Float[np.ndarray, " times"]
    method: Float[np.ndarray, "draws times"]
    reference: Float[np.ndarray, "draws times"]


def fit_panel(axes: Axes, panel: Panel, names: tuple[str, str]) -> None:
    """Draw predictive bands (50 and 90 %) of both methods and the data; `names` go into the legend."""
    levels = [(1 - OUTER) / 2, (1 - INNER) / 2, 0.5, (1 + INNER) / 2, (1 + OUTER) / 2]
    low, lower, middle, upper, high = np.quantile(panel.method, levels, axis=0)
    axes.fill_between(panel.grid, low, high, color=METHOD, alpha=0.16, linewidth=0, label=f"{names[0]} 90 %")
    axes.fill_between(panel.grid, lower, upper, color=METHOD, alpha=0.30, linewidth=0, label=f"{names[0]} 50 %")
    axes.plot(panel.grid, middle, color=METHOD, linewidth=1.6, label=f"{names[0]} median")

    edges = np.quantile(panel.reference, [levels[0], levels[1], levels[3], levels[4]], axis=0)
    for edge, width in zip(edges, (1.2, 0.8, 0.8, 1.2), strict=True):
        (line,) = axes.plot(panel.grid, edge, color=REFERENCE, linewidth=width, linestyle=DASHES)
    line.set_label(f"{names[1]} 50 and 90 %")
    axes.plot(
        panel.x,
        panel.y,
        "o",
        color=INK,
        markersize=4.6,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        label="data",
    )
    axes.set_title(panel.title, pad=10)
    axes.set_ylabel(panel.unit)
    margin = 0.02 * (panel.grid[-1] - panel.grid[0])
    axes.set_xlim(panel.grid[0] - margin, panel.grid[-1] + margin)
    axes.set_ylim(0, 1.06 * max(high.max(), edges.max(), panel.y.max()))
    # A label for every ten years where the panel is narrow: five are 30 points wide, and a tick is as much.
    axes.xaxis.set_major_locator(MultipleLocator(10 if _width(axes) < NARROW else 5))
    axes.xaxis.set_minor_locator(MultipleLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y")
    axes.tick_params(length=0, pad=6)
    axes.spines["left"].set_visible(False)


NARROW = 3.4  # inches


def _width(axes: Axes) -> float:
    """Of its share of the figure, in inches."""
    figure, place = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    assert place is not None
    return figure.get_figwidth() / place.get_gridspec().ncols


def fit_figure(
    panels: Sequence[Panel],
    names: tuple[str, str],
    size: tuple[float, float] = (8.0, 3.5),
    *,
    legend: bool = True,
) -> Figure:
    """All panels side by side under one legend; `size` in inches."""
    with style():
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12, wspace=0.02))
        all_axes = np.ravel(figure.subplots(1, len(panels)))
        for axes, panel in zip(all_axes, panels, strict=True):
            fit_panel(axes, panel, names)
        if legend:
            handles, labels = all_axes[0].get_legend_handles_labels()
            # The inner band lies on the outer one, and looks like both.
            handles[1] = (handles[0], handles[1])
            figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), columnspacing=1.8)
    return figure
