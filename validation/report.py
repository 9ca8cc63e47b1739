"""The page that shows how each method does on each posterior: ``validation.html``, with everything inside."""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from models.pictures import GRID, INK, METHOD, MUTED, REFERENCE, style
from validation.figures import Scalar, pair_figure
from validation.lines import GRADES, grade_all
from validation.methods import METHODS
from validation.page import Section, legend_html, page
from validation.store import Record, Store, atomic, group
from validation.target import Draws, Truth

# In the pair plots, and in the ECDF plots.
MAX_PAIRS, MAX_CURVES = 5, 12
# Okabe and Ito's colours.
COLOURS = (METHOD, REFERENCE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a6d3b")
MARKS = "osD^vPX*"


def look(i: int) -> dict[str, str]:
    """Marker and colour of the i-th method of a figure; no two of 64 have the same."""
    return {"marker": MARKS[(i + i // len(COLOURS)) % len(MARKS)], "color": COLOURS[i % len(COLOURS)]}


LEVEL = 0.95


def write_report(store: Store, path: Path | None = None) -> Path:
    """Write the page of all runs in a store, to ``validation.html`` there by default."""
    path = store.out / "validation.html" if path is None else path
    records = store.records()
    done = [r for r in records if r.status == "done"]
    methods = [name for name in METHODS if any(r.method == name for r in records)]
    groups = list(dict.fromkeys(group(r.target) for r in records))
    sections = [Section("Every target", _how_to_read(), _summary(records, groups, methods))]
    if _values(done, "c2st"):
        text = (
            "Each dot is a run: simulator evaluations against the classifier's score, 0.5 being perfect. The dashed "
            "line is 0.55."
        )
        picture = _picture(cost_figure(done, groups, methods), "Simulator evaluations against C2ST for each target")
        sections.append(Section("What accuracy costs", text, f"<figure>{picture}</figure>"))
    text = (
        "For each method the run with the largest error: where it puts the posterior, and by how much its "
        "distribution function departs from that of the truth, with the band that exact independent draws would "
        f"stay in with {LEVEL:.0%} probability as a whole."
    )
    sections.append(Section("Target by target", text, "".join(_details(store, records, name) for name in groups)))
    failed = [r for r in records if r.status == "failed"]
    if failed:
        rows = "".join(_row((r.target, r.method, str(r.seed), r.message)) for r in failed)
        sections.append(Section("Runs that failed", "Each is tried again by the next run of the command.", _table(
            ("target", "method", "seed", "what it said"), rows
        )))  # fmt: skip
    facts = {
        "runs": f"{len(done):,}",
        "posteriors": f"{len({r.target for r in records}):,}",
        "methods": f"{len(methods)}",
        "failed": f"{len(failed)}",
    }
    lead = "Posteriors whose truth is known, and what each method makes of them."
    text = page("Validation", lead, facts, sections).replace("</head>", f"<style>{STYLE}</style></head>", 1)
    atomic(path, lambda file: file.write(text.encode()))
    return path


# -- tables ------------------------------------------------------------------------------------------------------


def _how_to_read() -> str:
    lines = "; ".join(f'<span class="grade {g.name}">{g.mark} {g.name}</span> {html.escape(g.words)}' for g in GRADES)
    return (
        "Means over observations and seeds of C2ST (0.5 at best), largest error of a posterior mean in posterior sd, "
        "range of sd ratios, and evaluations a draw. Beyond 64 dimensions, sliced W2 (in brackets: of exact draws) or "
        f"the relative L2 error takes the place of C2ST. A dot alone: no run. Marks: {lines}."
    )


def _summary(records: Sequence[Record], groups: Iterable[str], methods: Sequence[str]) -> str:
    rows = ""
    for name in groups:
        cells = [html.escape(name)]
        for method in methods:
            mine = [r for r in records if group(r.target) == name and r.method == method]
            cells.append(_cell(mine))
        rows += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return _table(("target", *methods), rows)


def _cell(records: Sequence[Record]) -> str:
    if not records:
        return '<span class="muted">·</span>'
    done = [r for r in records if r.status == "done"]
    failed = len(records) - len(done)
    if not done:
        return f'<span class="grade poor">failed ({failed})</span>'
    worst = grade_all(done)
    head = _mean(done, "c2st", ".3f")
    if not head and _values(done, "l2_ratio"):
        head = f"L2 {_mean(done, 'l2_ratio', '.3f')}, SSR {_mean(done, 'ssr', '.2f')}"
    if not head and _values(done, "chi2"):
        figures = {"CRPS": ("crps", ".3g"), "SSR": ("ssr", ".2f"), "&chi;&sup2;": ("chi2", ".2f")}
        head = ", ".join(f"{word} {_median(done, name, form)}" for word, (name, form) in figures.items())
    head = head or f"W2 {_mean(done, 'sliced_w2', '.3g')} ({_mean(done, 'sliced_w2_floor', '.3g')})"
    low = _extreme(min, done, "sd_min")
    high = _extreme(max, done, "sd_max")
    cost = np.mean([r.num_forward_evaluations / r.num_draws for r in done])
    moments = f"{_mean(done, 'mean_worst', '.2f')} sd, {low}–{high}<br>" if low else ""
    tail = f"{moments}{cost:,.0f} a draw"
    lost = f", {failed} failed" if failed else ""
    return f'<span class="grade {worst.name}">{worst.mark} {head}</span><small>{tail}{lost}</small>'


def _mean(records: Iterable[Record], name: str, form: str) -> str:
    values = _values(records, name)
    return format(np.mean(values), form) if values else ""


def _median(records: Iterable[Record], name: str, form: str) -> str:
    values = _values(records, name)
    return format(np.median(values), form) if values else ""


def _values(records: Iterable[Record], name: str) -> list[float]:
    return [value for r in records if (value := r.figures.get(name)) is not None]


def _extreme(which: Callable, records: Iterable[Record], name: str) -> str:
    values = _values(records, name)
    return f"{which(values):.2f}" if values else ""


COLUMNS: dict[str, tuple[str, str]] = {
    "C2ST": ("c2st", ".3f"),
    "W2": ("sliced_w2", ".3g"),
    "exact": ("sliced_w2_floor", ".3g"),
    "mean err": ("mean_worst", ".3f"),
    "rms": ("mean_rms", ".3f"),
    "chance": ("mean_floor", ".3f"),
    "sd min": ("sd_min", ".2f"),
    "sd max": ("sd_max", ".2f"),
    "modes": ("mode_error", ".0%"),
    "L2 / exact": ("l2_ratio", ".3f"),
    "SSR": ("ssr", ".2f"),
    "CRPS": ("crps", ".3g"),
    "L2": ("l2", ".3f"),
    "chi2": ("chi2", ".2f"),
    "log Z err": ("log_evidence_error", "+.2f"),
}


def _runs_table(records: Sequence[Record]) -> str:
    shown = {head: column for head, column in COLUMNS.items() if _values(records, column[0])}
    rows = ""
    for r in records:
        figures = ["" if (f := r.figures.get(name)) is None else format(f, form) for name, form in shown.values()]
        number = r.target.removeprefix(group(r.target)).strip("/")
        cost = f"{r.num_forward_evaluations:,}"
        gradients = f"{r.num_gradients:,}" if r.num_gradients else ""
        rows += _row((r.method, number, str(r.seed), *figures, cost, gradients, f"{r.seconds:.0f}"))
    return _table(("method", "no.", "seed", *shown, "evaluations", "gradients", "seconds"), rows)


def _row(cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _table(header: Iterable[str], rows: str) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


# -- target by target --------------------------------------------------------------------------------------------


def _details(store: Store, records: Sequence[Record], name: str) -> str:
    mine = [r for r in records if group(r.target) == name and r.status == "done"]
    mine.sort(key=lambda r: list(METHODS).index(r.method) if r.method in METHODS else -1)
    if not mine:
        return ""
    parts = [_runs_table(mine)]
    for method in dict.fromkeys(r.method for r in mine):
        record = max((r for r in mine if r.method == method), key=_badness)
        parts.append(_pictures(store, record))
    said = sorted({f"{r.method}: {sentence}" for r in mine for sentence in r.warnings})
    if said:
        parts.append("<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in said) + "</ul>")
    sources = {truth.source for r in mine if (truth := store.cached_truth(r.target)) is not None}
    words = html.escape(f"Truth: {'; '.join(sorted(sources))}.") if sources else ""
    return f"<details><summary>{html.escape(name)}</summary><p>{words}</p>{''.join(parts)}</details>"


def _badness(record: Record) -> float:
    f = record.figures
    if f.get("c2st") is not None:
        return f["c2st"] or 0.0
    if f.get("chi2") is not None:
        return f["chi2"] or 0.0
    return (f.get("sliced_w2") or 0.0) / (f.get("sliced_w2_floor") or 1.0)


def _pictures(store: Store, record: Record) -> str:
    draws, truth = store.draws(record), store.cached_truth(record.target)
    words = html.escape(f"{record.method} on {record.target}, seed {record.seed}")
    caption = f"<figcaption>{words} &emsp; {legend_html((record.method, 'truth'))}</figcaption>"
    if draws is None or truth is None or not np.isfinite(draws).all():
        return f"<figure>No picture: the draws are not finite or not there.{caption}</figure>"
    if len(truth.draws) == 1:  # what the data come from: it is to be seen, and nothing to compare distributions with
        size = round(draws.shape[1] ** 0.5)
        if size**2 != draws.shape[1]:
            return ""
        picture = _picture(field_figure(draws, truth.draws[0], size), "Fields: truth, mean, a draw, and the spread")
        return f'<figure><div class="row">{picture}</div><figcaption>{words}</figcaption></figure>'
    names = record.names or [f"x[{i}]" for i in range(draws.shape[1])]
    pictures = [_picture(ecdf_figure(draws, truth, names, record.method), "ECDF differences")]
    some = [i for i in range(min(MAX_PAIRS, draws.shape[1])) if min(draws[:, i].std(), truth.draws[:, i].std()) > 0]
    if len(some) > 1:
        scalars = [Scalar(names[i], "", draws[:, i], truth.draws[:, i]) for i in some]
        figure = pair_figure(scalars, (record.method, "truth"), 3.4 + 0.7 * len(some))
        figure.legends.clear()  # the caption says it, and the picture is small
        figure.subplots_adjust(left=0.14, bottom=0.12)
        pictures.insert(0, _picture(figure, "Pairs of scalars"))
    return f'<figure><div class="row">{"".join(pictures)}</div>{caption}</figure>'


def _picture(figure: Figure, words: str) -> str:
    """An image element that holds its own PNG, in few colours, sharp on a fine screen and no larger than drawn."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=140)
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    data = base64.b64encode(small.getvalue()).decode()
    width = f"max-width: {figure.get_figwidth() * 96:.0f}px"
    return f'<img alt="{html.escape(words)}" style="{width}" src="data:image/png;base64,{data}">'


# -- pictures ----------------------------------------------------------------------------------------------------


def field_figure(draws: Draws, truth: Float[np.ndarray, " dim"], size: int) -> Figure:
    """What the data come from, the posterior's mean, a draw, and the standard deviation; x to the right."""
    bound = float(np.abs(truth).max())
    panels = {"truth": truth, "mean": draws.mean(axis=0), "a draw": draws[0], "standard deviation": draws.std(axis=0)}
    with style():
        figure = Figure(figsize=(10.5, 2.9), layout="constrained")
        for axes, (title, field) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            spread = title == "standard deviation"
            image = axes.imshow(
                field.reshape(size, size).T,
                origin="lower",
                cmap="viridis" if spread else "RdBu_r",
                vmin=0 if spread else -bound,
                vmax=None if spread else bound,
            )
            axes.set(title=title)
            axes.set_axis_off()
            if title in ("truth", "standard deviation"):
                figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def ecdf_figure(draws: Draws, truth: Truth, names: Sequence[str], method: str) -> Figure:
    """ECDF of the draws minus that of the truth, one curve a scalar, over the truth's quantile; with the band."""
    grid, band = ecdf_band(len(draws), len(truth.draws))
    with style():
        figure = Figure(figsize=(5.6, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(grid, -band, band, color=GRID, linewidth=0, label=f"exact draws, {LEVEL:.0%}")
        count = min(draws.shape[1], MAX_CURVES)
        for i in range(count):
            few = count <= MAX_PAIRS
            axes.plot(
                grid,
                ecdf_difference(draws[:, i], truth.draws[:, i], grid),
                color=COLOURS[i % len(COLOURS)] if few else METHOD,
                alpha=1.0 if few else 0.5,
                linewidth=1.3,
                label=names[i] if few else (f"{count} of {draws.shape[1]} scalars" if i == 0 else None),
            )
        axes.axhline(0, color=MUTED, linewidth=0.6)
        axes.set_xlabel("quantile of the truth")
        axes.set_ylabel(f"ECDF of {method}, minus that")
        axes.set_xlim(0, 1)
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def ecdf_difference(
    draws: Float[np.ndarray, " draws"], truth: Float[np.ndarray, " truth"], grid: Float[np.ndarray, " grid"]
) -> Float[np.ndarray, " grid"]:
    """Share of draws up to each quantile of the truth, minus the quantile."""
    thresholds = np.sort(truth)[np.ceil(grid * len(truth)).astype(int) - 1]
    return np.searchsorted(np.sort(draws), thresholds, side="right") / len(draws) - grid


@functools.lru_cache
def ecdf_band(num_draws: int, num_truth: int, num_simulations: int = 1000, seed: int = 0):
    """Grid in (0, 1), and the half-width of a band that holds the whole curve of `ecdf_difference` for exact draws.

    Its width is a multiple of the pointwise standard deviation; the multiple is found by simulation, in the manner of
    Säilynoja, Bürkner & Vehtari, Stat. Comput. 32 (2022) 32. Independent draws on both sides.
    """
    grid = np.linspace(0.01, 0.99, 99)
    rng = np.random.default_rng(seed)
    curves = np.stack(
        [ecdf_difference(rng.random(num_draws), rng.random(num_truth), grid) for _ in range(num_simulations)]
    )
    sd = np.sqrt(grid * (1 - grid) * (1 / num_draws + 1 / num_truth))
    return grid, np.quantile(np.max(np.abs(curves) / sd, axis=1), LEVEL) * sd


def cost_figure(records: Sequence[Record], groups: Sequence[str], methods: Sequence[str]) -> Figure:
    """Evaluations against C2ST, a panel a target, a colour a method."""
    shown = [g for g in groups if any(group(r.target) == g and r.figures.get("c2st") is not None for r in records)]
    columns = 4
    rows = -(-max(1, len(shown)) // columns)
    with style():
        figure = Figure(figsize=(11.5, 2.3 * rows + 0.6), layout="constrained")
        panels = np.ravel(figure.subplots(rows, columns, squeeze=False, sharey=True))
        for axes in panels[len(shown) :]:
            axes.remove()
        for axes, name in zip(panels, shown, strict=False):
            for i, method in enumerate(methods):
                mine = [r for r in records if group(r.target) == name and r.method == method]
                mine = [r for r in mine if r.figures.get("c2st") is not None]
                axes.plot(
                    [r.num_forward_evaluations for r in mine],
                    [r.figures["c2st"] for r in mine],
                    **look(i),
                    linestyle="none",
                    markersize=5,
                    alpha=0.75,
                    label=method,
                )
            axes.axhline(0.55, color=MUTED, linewidth=0.7, linestyle="--")
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_ylim(0.45, 1.02)
            axes.set_title(name, fontsize=9, color=INK)
            axes.tick_params(labelsize=8)
        figure.supxlabel("simulator evaluations", fontsize=9, color=MUTED)
        figure.supylabel("C2ST", fontsize=9, color=MUTED)
        if shown:
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=min(8, len(labels)))
    return figure


STYLE = """
main { max-width: 78rem; }
td small { display: block; color: var(--muted); font-size: .78rem; }
th, td { padding: .4rem .6rem; }
.grade { border-radius: .3rem; padding: .05rem .4rem; color: #10151b; white-space: nowrap; }
.good { background: #9fd3f2; } .fair { background: #f4e3a1; } .poor { background: #f3b08a; }
details th, details td { padding: .3rem .42rem; font-size: .82rem; }
.muted { color: var(--muted); }
details { border: 1px solid var(--grid); border-radius: .8rem; margin: .8rem 0; padding: .2rem 1rem;
  background: var(--card); }
summary { cursor: pointer; font-weight: 600; padding: .5rem 0; }
img { display: block; width: 100%; height: auto; border-radius: .4rem; }
"""
