"""Report pages of the worked problems: one HTML file with everything inside, no script, nothing fetched.

Pictures are matplotlib's, inlined as SVG whose inks follow the page, so that they read in dark mode too. The
method under test is drawn filled in blue, its reference as dashed orange outlines, everywhere.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, MultipleLocator
from PIL import Image
from scipy.ndimage import gaussian_filter

from validation.compare import MomentsRow

# Okabe and Ito's blue and vermilion: told apart with every common colour vision, and in grey.
METHOD, REFERENCE = "#0072b2", "#d55e00"
INK, MUTED, GRID, PAPER = "#1f2328", "#68707a", "#e3e6ea", "#fdfdfe"
# Inks that the page sets, so that pictures follow its light or dark scheme.
PAGE_INKS = {
    METHOD: "--method",
    REFERENCE: "--reference",
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--card",
}

OUTER, INNER = 0.9, 0.5
DASHES = (0, (4.5, 2.0))


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


class Scalar(NamedTuple):
    """One parameter in the pair plot.

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


class Section(NamedTuple):
    """A part of the page: heading, a sentence or two, then ready HTML."""

    heading: str
    text: str
    body: str


# Pictures


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for these pages."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    preferred = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")
    settings: dict[Any, Any] = {
        "font.family": [name for name in preferred if name in installed],
        "font.size": 10,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "figure.facecolor": PAPER,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "mathtext.fontset": "dejavusans",
        "svg.fonttype": "none",
        "svg.hashsalt": "page",
    }
    with mpl.rc_context(settings):
        yield


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


def save_png(figure: Figure, path: str | Path, width: int = 1600, *, few_colours: bool = True) -> Path:
    """Write a figure `width` pixels wide, in few colours, so that a README loads quickly; colour scales need all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=width / figure.get_figwidth())
    image = Image.open(buffer).convert("RGB")
    image = image.quantize(128, dither=Image.Dither.NONE) if few_colours else image
    image.save(path, optimize=True)
    return path


def svg(figure: Figure, description: str) -> str:
    """A figure as inline SVG: page fonts, page inks, scalable, with a description for screen readers."""
    buffer = io.StringIO()
    with style(), mpl.rc_context({"svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"(?<=[\s\"'])font: (?:(\w+) )?([\d.]+px) [^;\"]*", _page_font, text)
    for colour, variable in PAGE_INKS.items():
        text = text.replace(colour, f"var({variable})")
    width, height = figure.get_size_inches() * 72
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(description)}">'
    return re.sub(r"<svg[^>]*>", opening, text, count=1)


def _page_font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}; font-family: inherit"


# Page


def figure_block(pictures: Iterable[str], caption: str, *, wide: bool = False) -> str:
    """Pictures side by side (below one another on a phone), or `wide` and scrolling; `caption` is HTML."""
    cells = "".join(f'<div class="picture">{picture}</div>' for picture in pictures)
    kind = "wide" if wide else "row"
    return f'<figure><div class="{kind}">{cells}</div><figcaption>{caption}</figcaption></figure>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table: first column text, the others numbers."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


LONG = 24  # letters: what is longer is text, which is wrapped, and no number


def _cell(text: str) -> str:
    return f"<td{' class=text' if len(text) > LONG else ''}>{html.escape(text)}</td>"


def legend_html(names: tuple[str, str]) -> str:
    """What filled blue and dashed orange mean, as HTML for a caption."""
    return (
        f'<span class="swatch"></span> {html.escape(names[0])} &emsp; '
        f'<span class="swatch reference"></span> {html.escape(names[1])}'
    )


def moments_block(rows: Iterable[MomentsRow], names: tuple[str, str]) -> str:
    """The comparison of two posteriors as an HTML table."""
    header = ("parameter", f"{names[0]} mean", "sd", f"{names[1]} mean", "sd", "difference / sd", "sd ratio")
    return table(
        header,
        (
            (
                row.name,
                _digits(row.mean, 3),
                _digits(row.sd, 2),
                _digits(row.reference_mean, 3),
                _digits(row.reference_sd, 2),
                f"{row.shift:+.2f}".replace("-", "\N{MINUS SIGN}"),
                f"{row.sd_ratio:.2f}",
            )
            for row in rows
        ),
    )


def _digits(number: float, significant: int) -> str:
    """So many significant digits, zeros kept: columns of numbers line up."""
    return f"{number:#.{significant}g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


def facts_block(facts: Mapping[str, str]) -> str:
    """A few large numbers, each above what it counts."""
    tiles = "".join(
        f"<div><strong>{html.escape(value)}</strong><span>{html.escape(name)}</span></div>"
        for name, value in facts.items()
    )
    return f'<div class="facts">{tiles}</div>'


def diagnostics_block(diagnostics: Any) -> str:
    """Whatever diagnostics there are: named values as a table, anything else as the text it prints."""
    if not isinstance(diagnostics, Mapping):
        return f'<div class="scroll"><pre>{html.escape(str(diagnostics))}</pre></div>'
    rows = ((str(name).replace("_", " "), _value(value)) for name, value in diagnostics.items())
    return table(("diagnostic", "value"), rows)


def _value(value: Any) -> str:
    """A diagnostic in a few words: numbers rounded, long arrays by their range."""
    if isinstance(value, str | bool | None):
        return str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return "; ".join(value) or "none"
    try:
        numbers = np.asarray(value, float)
    except (TypeError, ValueError):
        return str(value)
    if numbers.ndim == 0:
        return f"{numbers:,.0f}" if numbers == np.round(numbers) else f"{numbers:.4g}"
    if numbers.size > 8:
        return f"{numbers.size} values, {np.nanmin(numbers):.3g} to {np.nanmax(numbers):.3g}"
    return ", ".join(f"{number:.3g}" for number in numbers.ravel())


def code_block(code: str) -> str:
    """Program text."""
    return f'<div class="scroll"><pre>{html.escape(code)}</pre></div>'


def page(title: str, lead: str, facts: Mapping[str, str], sections: Iterable[Section]) -> str:
    """The whole page. `lead` and each section's `text` and `body` are HTML, the titles plain text."""
    parts = "".join(
        f"<section><h2>{html.escape(section.heading)}</h2><p>{section.text}</p>{section.body}</section>"
        for section in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><h1>{html.escape(title)}</h1><p class="lead">{lead}</p></header>'
        f"{facts_block(facts)}{parts}</main></body></html>\n"
    )


STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --muted: #5f6772; --grid: #e3e6ea; --card: #ffffff;
  --paper: #f6f7f9; --method: #0072b2; --reference: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --muted: #a0a8b2; --grid: #343a42;
  --card: #1b1f24; --paper: #121519; --method: #56b4e9; --reference: #f0914a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.6; font-size: 1.03rem;
  font-family: Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: clamp(1.2rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2rem) 4rem; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.5rem); line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; margin: 3rem 0 .4rem; }
p { max-width: 44rem; margin: .4rem 0 1rem; }
.lead { font-size: 1.15rem; color: var(--muted); }
.lead b, .lead strong { color: var(--ink); font-weight: 600; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
  margin: 1.8rem 0; }
.facts div { background: var(--card); border: 1px solid var(--grid); border-radius: .7rem;
  padding: .8rem 1rem; }
.facts strong { display: block; font-size: 1.45rem; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; }
.facts span { display: block; color: var(--muted); font-size: .85rem; line-height: 1.35; }
figure { margin: 1.2rem 0; background: var(--card); border: 1px solid var(--grid); border-radius: .8rem;
  padding: 1rem; }
figcaption { color: var(--muted); font-size: .88rem; margin: .7rem .2rem 0; max-width: 48rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.wide { overflow-x: auto; } .wide .picture { min-width: 44rem; }
svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; margin: 1rem 0; background: var(--card); border: 1px solid var(--grid);
  border-radius: .8rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .48rem 1rem; text-align: right; white-space: nowrap; }
td.text { white-space: normal; text-align: left; min-width: 11rem; overflow-wrap: anywhere; }
td { border-top: 1px solid var(--grid); }
th { color: var(--muted); font-weight: 600; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
pre { margin: 0; padding: 1rem; overflow-x: auto;
  font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .9em; }
.formula { display: block; margin: .8rem 0; padding: .8rem 1.1rem; border-left: 3px solid var(--method);
  background: var(--card); font-family: "STIX Two Text", Cambria, Georgia, serif; font-size: 1.1rem;
  line-height: 1.8; overflow-x: auto; }
.swatch { display: inline-block; width: 1.6em; height: .75em; border-radius: 2px;
  background: color-mix(in srgb, var(--method) 42%, transparent); border: 1px solid var(--method); }
.swatch.reference { border: 0; border-radius: 0; height: 2px; vertical-align: .25em; width: 2em;
  background: repeating-linear-gradient(90deg, var(--reference) 0 6px, transparent 6px 9px); }
@media (max-width: 40rem) { figure { padding: .6rem; } th, td { padding: .45rem .6rem; } }
"""
