"""Matplotlib's settings for pictures of models and of comparisons, and pictures as small files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's blue, for the method under test, and vermilion, for its reference: told apart with every common
# colour vision, and in grey.
METHOD, REFERENCE = "#0072b2", "#d55e00"
INK, MUTED, GRID, PAPER = "#1f2328", "#68707a", "#e3e6ea", "#fdfdfe"
DASHES = (0, (4.5, 2.0))  # of a reference's outlines


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for these pictures."""
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
