"""Report pages: one HTML file with everything inside, no script, nothing fetched.

Pictures are matplotlib's, inlined as SVG whose inks follow the page, so that they read in dark mode too.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from models.pictures import GRID, INK, METHOD, MUTED, PAPER, REFERENCE, style
from validation.compare import MomentsRow

# Inks that the page sets, so that pictures follow its light or dark scheme.
PAGE_INKS = {
    METHOD: "--method",
    REFERENCE: "--reference",
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--card",
}


class Section(NamedTuple):
    """A part of the page: heading, a sentence or two, then ready HTML."""

    heading: str
    text: str
    body: str


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
