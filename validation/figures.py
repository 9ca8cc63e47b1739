"""Two posteriors in one picture: pairs of parameters, marginals, intervals.

The method under test is drawn filled in blue, its reference as dashed orange outlines, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from models.pictures import DASHES, INK, METHOD, PAPER, REFERENCE, style

OUTER, INNER = 0.9, 0.5  # what the two regions or intervals of a picture hold


class Scalar(NamedTuple):
    """One parameter of two posteriors.

    Attributes:
        label: short name, matplotlib's mathematics allowed.
        unit: empty when it has none.
        method: draws of the method under test.
        reference: draws of the reference.
    """

    label: str
    unit: str
    method: Float[np.ndarray, " draws"]
    reference: Float[np.ndarray, " reference_draws"]


def pair_figure(scalars: Sequence[Scalar], names: tuple[str, str], size: float = 9.6) -> Figure:
    """Joint posteriors: regions holding 50 and 90 % of every pair below, marginals on the diagonal."""
    count = len(scalars)
    with style(), mpl.rc_context({"xtick.labelsize": 8, "ytick.labelsize": 8}):
        figure = Figure(figsize=(size, size))
        grid = figure.subplots(count, count, gridspec_kw={"wspace": 0.09, "hspace": 0.09})
        figure.subplots_adjust(left=0.105, right=0.99, bottom=0.08, top=0.99)
        limits = [_limits(scalar) for scalar in scalars]
        for row, column in np.ndindex(count, count):
            axes = grid[row, column]
            if column > row:
                axes.remove()
                continue
            axes.set_xlim(limits[column])
            axes.set_xticks(_inner_ticks(limits[column]))
            axes.tick_params(length=2.5, width=0.6, labelbottom=row == count - 1, labelleft=column == 0 and row > 0)
            if row == column:
                _marginal(axes, scalars[row], limits[row])
            else:
                axes.set_ylim(limits[row])
                axes.set_yticks(_inner_ticks(limits[row]))
                _regions(axes, scalars[column], scalars[row], limits[column], limits[row])
            if row == count - 1:
                axes.set_xlabel(_axis_label(scalars[column]), color=INK)
            if column == 0 and row > 0:
                axes.set_ylabel(_axis_label(scalars[row]), color=INK)
        figure.align_labels()
        _pair_legend(figure, names)
    return figure


def marginals_figure(scalars: Sequence[Scalar], columns: int = 4) -> Figure:
    """Marginal posteriors, both methods in one panel for every parameter, `columns` panels a row."""
    rows = -(-len(scalars) // columns)
    with style():
        figure = Figure(figsize=(9.6, 1.9 * rows), layout="constrained")
        grid = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for axes, scalar in zip(grid, scalars, strict=False):
            limits = _limits(scalar)
            _marginal(axes, scalar, limits)
            axes.set_xlim(limits)
            axes.set_xticks(_inner_ticks(limits))
            axes.set_xlabel(_axis_label(scalar), color=INK)
        for axes in grid[len(scalars) :]:
            axes.remove()
    return figure


def _axis_label(scalar: Scalar) -> str:
    return f"{scalar.label}\n{scalar.unit}" if scalar.unit else scalar.label


def _limits(scalar: Scalar) -> tuple[float, float]:
    """Where both posteriors live, a few stragglers of either left out."""
    ends = np.quantile(scalar.reference, [0.002, 0.998]), np.quantile(scalar.method, [0.005, 0.995])
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


APART = 0.36  # of a panel's width: a label of five digits and a gap


def _inner_ticks(limits: tuple[float, float]) -> list[float]:
    """One to three round numbers, away from the corners and from each other, so that labels do not collide."""
    low, high = limits
    edge = 0.14 * (high - low)
    for bins in (2, 3, 4, 6):
        ticks = [tick for tick in MaxNLocator(bins).tick_values(low, high) if low + edge < tick < high - edge]
        if len(ticks) >= 2 and ticks[-1] - ticks[0] >= APART * (high - low):
            return ticks if ticks[1] - ticks[0] >= APART * (high - low) else [ticks[0], ticks[-1]]
    return ticks[len(ticks) // 2 :][:1]


def _marginal(axes: Axes, scalar: Scalar, limits: tuple[float, float]) -> None:
    for draws, is_method in ((scalar.method, True), (scalar.reference, False)):
        mass, edges = np.histogram(draws, bins=120, range=limits, density=True)
        density, centre = gaussian_filter(mass, 4.5, mode="nearest"), (edges[1:] + edges[:-1]) / 2
        if is_method:
            axes.fill_between(centre, density, color=METHOD, alpha=0.28, linewidth=0)
            axes.plot(centre, density, color=METHOD, linewidth=1.1)
        else:
            axes.plot(centre, density, color=REFERENCE, linewidth=1.2, linestyle=DASHES)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _regions(axes: Axes, x: Scalar, y: Scalar, x_limits: tuple[float, float], y_limits: tuple[float, float]) -> None:
    for draws, is_method in (((x.method, y.method), True), ((x.reference, y.reference), False)):
        mass, x_edges, y_edges = np.histogram2d(*draws, bins=64, range=(x_limits, y_limits))
        density = gaussian_filter(mass, 3.2, mode="constant").T
        centres = ((x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2)
        levels = highest_density_levels(density, (OUTER, INNER))
        if levels[0] >= levels[1]:
            continue
        if is_method:
            for level, alpha in zip(levels, (0.22, 0.34), strict=True):
                axes.contourf(*centres, density, levels=[level, density.max() * 1.01], colors=[METHOD], alpha=alpha)
        else:
            axes.contour(*centres, density, levels=levels, colors=[REFERENCE], linewidths=1.1, linestyles=[DASHES])


def highest_density_levels(
    density: Float[np.ndarray, "rows columns"], masses: Sequence[float]
) -> Float[np.ndarray, " masses"]:
    """Heights above which a gridded density holds the given shares of its mass."""
    heights = np.sort(density.ravel())[::-1]
    share = np.cumsum(heights) / heights.sum()
    return heights[np.minimum(np.searchsorted(share, masses), heights.size - 1)]


def _pair_legend(figure: Figure, names: tuple[str, str]) -> None:
    handles = [
        Patch(facecolor=METHOD, alpha=0.34, edgecolor="none"),
        Line2D([], [], color=REFERENCE, linewidth=1.3, linestyle=DASHES),
    ]
    figure.legend(
        handles,
        [f"{names[0]}: regions that hold 50 and 90 %", f"{names[1]}: the same, reference"],
        loc="upper right",
        bbox_to_anchor=(0.985, 0.985),
        fontsize=10.5,
        handlelength=2.4,
        labelspacing=0.8,
    )


def interval_figure(
    scalars: Sequence[Scalar], names: tuple[str, str], size: tuple[float, float] = (7.6, 3.4)
) -> Figure:
    """Marginals as 50 and 90 % intervals, centred and scaled by the reference's mean and sd."""
    with style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for row, scalar in enumerate(scalars):
            mean, sd = scalar.reference.mean(), scalar.reference.std()
            for draws, colour, offset in (
                (scalar.method, METHOD, -0.15),
                (scalar.reference, REFERENCE, 0.15),
            ):
                low, lower, middle, upper, high = np.quantile((draws - mean) / sd, [0.05, 0.25, 0.5, 0.75, 0.95])
                dashes = DASHES if colour == REFERENCE else "-"
                place = [row + offset] * 2
                axes.plot([low, high], place, color=colour, linewidth=1.4, linestyle=dashes, solid_capstyle="butt")
                if colour == REFERENCE:  # outlined, as everywhere
                    axes.barh(place[0], upper - lower, 0.13, lower, color=PAPER, edgecolor=colour, zorder=2)
                else:
                    axes.plot([lower, upper], place, color=colour, linewidth=4.2, solid_capstyle="butt")
                axes.plot(middle, row + offset, "o", color=PAPER, markersize=4.4, markeredgecolor=colour)
        axes.set_yticks(range(len(scalars)), [scalar.label for scalar in scalars], color=INK, fontsize=11)
        axes.set_ylim(len(scalars) - 0.45, -0.55)
        axes.set_xlabel(f"standard deviations of {names[1]} from its mean")
        axes.grid(axis="x")
        axes.tick_params(length=0, pad=6)
        axes.spines[["left", "bottom"]].set_visible(False)
        handles = [
            Line2D([], [], color=METHOD, linewidth=4.2),
            Line2D([], [], color=REFERENCE, linewidth=1.4, linestyle=DASHES),
        ]
        figure.legend(handles, names, loc="outside upper left", ncols=2, handlelength=2.4, columnspacing=1.6)
    return figure
