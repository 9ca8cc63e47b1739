"""The picture of a calibration study: ECDF of the ranks minus the uniform one, inside its band or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from enkg_ppl.calibration._ecdf import Bands

MAX_PANELS = 24
NUM_COLUMNS = 4
INSIDE, OUTSIDE = "#2a6f97", "#c1121f"


def plot_ecdf_difference(
    ecdfs: Mapping[str, Float[np.ndarray, " points"]],
    inside: Mapping[str, bool],
    band: Bands,
    level: float,
    names: list[str] | None,
    file: str | Path | None,
):
    """See `SBC.plot`.

    `ecdfs`: of every scalar, at the points of the `band`, which is that of this `level`. `inside`: whether it is.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib, or use to_arviz() or ecdf()") from error
    chosen = list(ecdfs)[:MAX_PANELS] if names is None else list(names)
    for name in chosen:
        if name not in ecdfs:
            raise ValueError(f"plot needs names among {', '.join(list(ecdfs)[:10])}; got {name!r}")
    z = np.concatenate([[0.0], band.points, [1.0]])
    columns = min(NUM_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(3.0 * columns, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, name in zip(axes, chosen, strict=False):
        difference = np.concatenate([[0.0], ecdfs[name] - band.points, [0.0]])
        lower = np.concatenate([[0.0], band.lower - band.points, [0.0]])
        upper = np.concatenate([[0.0], band.upper - band.points, [0.0]])
        axis.fill_between(z, lower, upper, color="0.85", linewidth=0, label=f"{level:.0%} band")
        axis.axhline(0.0, color="0.6", linewidth=0.8)
        axis.plot(z, difference, color=INSIDE if inside[name] else OUTSIDE, linewidth=1.5)
        axis.set_title(name if inside[name] else f"{name}: outside", fontsize=10)
    for axis in axes[len(chosen) :]:
        axis.set_visible(False)
    figure.supxlabel("rank of the truth among the draws, scaled", fontsize=10)
    figure.supylabel("ECDF - uniform", fontsize=10)
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)
    return figure
