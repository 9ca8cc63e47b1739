"""The table of `EnKG.print_summary`: NumPyro's columns, with digits that tell and what the draws are worth."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpyro.diagnostics import summary

from enkg_ppl.diagnostics._diagnose import Diagnostics

SD_DIGITS = 3  # significant digits of the standard deviation; the others end at the same place
SCIENTIFIC = 1e7  # from here on, and where more decimals than these are needed, numbers have an exponent
LARGEST_FIXED = 1e12  # numbers that take as many digits with an exponent
MOST_DECIMALS, MOST_DIGITS = 6, 12
NO_VALUES = ("n_eff", "r_hat")
LEAST_WIDTH, NAME_WIDTH = 9, 10
WIDTH = 100  # of the sentences below, at most


def table(samples: Mapping[str, Any], prob: float, diagnostics: Diagnostics) -> list[str]:
    """One line a scalar under a line of titles; `samples` lead with (ensemble, particle)."""
    rows, titles = [], []
    for name, figures in worth(samples, prob, diagnostics).items():
        titles = list(figures)
        for index in product(*map(range, np.shape(figures["mean"]))):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            rows.append([label, *_row({title: float(value[index]) for title, value in figures.items()})])
    if not rows:
        return []
    cells = [["", *titles], *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles) + 1)]
    least = [NAME_WIDTH, *[LEAST_WIDTH] * len(titles)]
    return [" ".join(f"{cell:>{max(w, m)}}" for cell, w, m in zip(row, widths, least, strict=True)) for row in cells]


def worth(samples: Mapping[str, Any], prob: float, diagnostics: Diagnostics) -> dict[str, dict[str, np.ndarray]]:
    """NumPyro's summary, but for two figures.

        n_eff is never above what the draws are worth by the last weights and by the number of unique particles
    (`effective_draws`). r_hat compares ensembles, and of one there is none: its halves are no chains.
    """
    with np.errstate(all="ignore"):
        # In double precision: the mean of dates in single precision is off by more than they scatter.
        found = summary({name: np.asarray(value, float) for name, value in samples.items()}, prob, group_by_chain=True)
    for figures in found.values():
        most = diagnostics.get("effective_draws", np.inf)
        n_eff = np.asarray(figures["n_eff"], float)
        figures["n_eff"] = np.minimum(np.where(n_eff < 0, most, n_eff), most)
        if diagnostics["num_ensembles"] == 1:
            figures["r_hat"] = np.full_like(n_eff, np.nan)
    return found


def notes(diagnostics: Diagnostics) -> list[str]:
    """What stands under the table: what a store spared, and the warnings, sentence by sentence."""
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    lines = []
    if diagnostics.get("num_reused"):
        ran, reused = diagnostics["num_simulated"], diagnostics["num_reused"]
        lines.append(f"{reused:,} of {reused + ran:,} simulations were in the store, and were not run again")
    for sentence in diagnostics.warnings:
        lines += textwrap.wrap(f"warning: {sentence}", width, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _row(figures: dict[str, float]) -> list[str]:
    decimals = _decimals(figures["std"])
    largest = max((abs(x) for name, x in figures.items() if name not in NO_VALUES and math.isfinite(x)), default=0.0)
    long = largest > 0 and math.log10(largest) + decimals > MOST_DECIMALS  # an exponent would save nothing
    fixed = decimals <= MOST_DECIMALS and (largest < SCIENTIFIC or (long and largest < LARGEST_FIXED))
    shown = {name: _number(value, decimals, fixed) for name, value in figures.items()}
    shown["n_eff"] = f"{figures['n_eff']:.0f}" if figures["n_eff"] >= 10 else f"{figures['n_eff']:.2g}"
    shown["r_hat"] = "-" if math.isnan(figures["r_hat"]) else f"{figures['r_hat']:.3f}"
    return list(shown.values())


def _decimals(sd: float) -> int:
    """After the point (before it where negative), so that the sd has its digits; of a constant, the most shown."""
    if not (math.isfinite(sd) and sd > 0):
        return MOST_DECIMALS
    return SD_DIGITS - 1 - math.floor(math.log10(sd))


def _number(value: float, decimals: int, fixed: bool) -> str:
    if not math.isfinite(value):
        return str(value)
    if fixed:
        return f"{value:.{max(decimals, 0)}f}"
    if value == 0:
        return "0"
    digits = math.floor(math.log10(abs(value))) + decimals
    return f"{value:.{min(max(digits, SD_DIGITS - 1), MOST_DIGITS)}e}"
