"""What a calibration study found: ranks of the truths among posterior draws, and whether they are uniform."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from enkg_ppl._checks import check_share
from enkg_ppl.calibration._ecdf import Bands, bands, below, p_value
from enkg_ppl.calibration._plot import plot_ecdf_difference
from enkg_ppl.numpyro._renamed import new_names, renamed, what_was_renamed

LOG_LIKELIHOOD = "log_likelihood"


@dataclasses.dataclass(frozen=True)
class SBC:
    """Ranks of simulated truths among posterior draws; made by `sbc`. Prints as a table with a verdict.

    Attributes:
        ranks: number of draws below the truth, 0..num_draws, shape ``(num_datasets, num_scalars)``; -1 in the rows of
            data sets that failed.
        names: the scalars, as ``site`` or ``site[index]``, and ``log_likelihood`` where it was ranked.
        num_draws: posterior draws that each truth is ranked among.
        sites: shape of every ranked site.
        evaluations: forward evaluations of every run, -1 where the inference does not count them.
        seconds: wall-clock seconds of every run.
        failures: what a run that failed raised, by number of the data set.
        warnings: what a run warned of, by number of the data set.
        truths: the parameters that the data were simulated from, shape ``(num_datasets, dim)``.
        draws: the posterior draws, shape ``(num_datasets, num_draws, dim)``; None where they were not kept.
    """

    ranks: Int[np.ndarray, "datasets scalars"]
    names: list[str]
    num_draws: int
    sites: Mapping[str, tuple[int, ...]]
    evaluations: Int[np.ndarray, " datasets"]
    seconds: Float[np.ndarray, " datasets"]
    failures: Mapping[int, str]
    warnings: Mapping[int, list[str]]
    truths: Float[np.ndarray, "datasets dim"]
    draws: Float[np.ndarray, "datasets draws dim"] | None

    @property
    def num_datasets(self) -> int:
        """Data sets that were tried."""
        return len(self.ranks)

    @property
    def finished(self) -> Bool[np.ndarray, " datasets"]:
        """Which data sets have ranks."""
        return np.all(self.ranks >= 0, axis=1)

    @property
    def num_forward_evaluations(self) -> int | None:
        """Total of all runs; None where the inference does not count them."""
        counted = self.evaluations[self.evaluations >= 0]
        return int(counted.sum()) if len(counted) else None

    # -- are the ranks uniform? ----------------------------------------------------------------------------------

    def ecdf(self) -> Float[np.ndarray, "scalars points"]:
        """Share of ranks below each point of `ecdf_bands`; uniform ranks have the point itself in expectation."""
        ranks = self._ranks()
        return np.stack([below(column, self.num_draws) / len(ranks) for column in ranks.T])

    def ecdf_bands(self, level: float = 0.95) -> Bands:
        """The band that holds the whole ECDF of one scalar with probability `level` where the posterior is right.

        Args:
            level: the probability.

        Raises:
            ValueError: for a level outside (0, 1).
        """
        check_share("ecdf_bands", level=level)
        return bands(len(self._ranks()), self.num_draws, float(level))

    def inside(self, level: float = 0.95, *, jointly: bool = False) -> dict[str, bool]:
        """Whether the ECDF of each scalar is inside its band everywhere.

        With S scalars, a right posterior has one or more outside in up to ``S (1 - level)`` of all studies.

        Args:
            level: probability of the band.
            jointly: True widens the bands so that all are inside with probability `level` (Bonferroni).
        """
        band = self.ecdf_bands(1 - (1 - level) / len(self.names) if jointly else level)
        n = len(self._ranks())
        counts = np.round(self.ecdf() * n)
        ok = np.all((counts >= np.round(band.lower * n)) & (counts <= np.round(band.upper * n)), axis=1)
        return dict(zip(self.names, map(bool, ok), strict=True))

    def calibrated(self, level: float = 0.95, *, jointly: bool = True) -> bool:
        """Whether every scalar is inside its band.

        Args:
            level: probability of the bands.
            jointly: as for `inside`.
        """
        return all(self.inside(level, jointly=jointly).values())

    def p_values(self) -> dict[str, float]:
        """For each scalar, the probability of at least as large a worst deviation where the posterior is right."""
        return {name: p_value(column, self.num_draws) for name, column in zip(self.names, self._ranks().T, strict=True)}

    def _ranks(self) -> Int[np.ndarray, "finished scalars"]:
        ranks = self.ranks[self.finished]
        if not len(ranks):
            first = next(iter(self.failures.values()))
            raise ValueError(f"none of the {self.num_datasets} data sets has ranks; the first failed with {first}")
        return ranks

    # -- showing it ----------------------------------------------------------------------------------------------

    def pit(self, seed: int = 0) -> Float[np.ndarray, "finished scalars"]:
        """Ranks scaled to (0, 1), randomised within the width of one rank: uniform where the ranks are.

        Args:
            seed: of the randomisation.
        """
        ranks = self._ranks()
        return (ranks + np.random.default_rng(seed).uniform(size=ranks.shape)) / (self.num_draws + 1)

    def to_arviz(self):
        """The ranks as ArviZ reads them: a group ``prior_sbc`` with scaled ranks, one draw a data set.

        `InferenceData` (0.x) or `DataTree` (1.x, whose ``plot_ecdf_pit`` draws it).
        """
        from enkg_ppl._arviz import from_ranks  # importing ArviZ takes seconds

        pit, start = self.pit(), 0
        values: dict[str, np.ndarray] = {}
        for name, shape in self.sites.items():
            size = int(np.prod(shape))
            values[name] = pit[:, start : start + size].reshape(1, len(pit), *shape)
            start += size
        if start < len(self.names):
            values[LOG_LIKELIHOOD] = pit[:, start][None]
        names = new_names({name: np.ndim(value) - 2 for name, value in values.items()})
        if names:
            warnings.warn(what_was_renamed(names), stacklevel=2)
        return from_ranks(renamed(values, names) or {})

    def plot(self, file: str | Path | None = None, *, level: float = 0.95, names: list[str] | None = None):
        """Draw ECDF minus uniform with the simultaneous band, one panel a scalar; returns the matplotlib figure.

        Args:
            file: where to save it too.
            level: probability of the band.
            names: the scalars to draw (default: the first 24).

        Raises:
            ImportError: where matplotlib is not installed.
            ValueError: for a name that is no scalar.
        """
        ecdfs = dict(zip(self.names, self.ecdf(), strict=True))
        return plot_ecdf_difference(ecdfs, self.inside(level), self.ecdf_bands(level), level, names, file)

    def verdict(self, level: float = 0.95) -> str:
        """The result of the test in a sentence or two.

        Args:
            level: probability of the bands.
        """
        inside = self.inside(level)
        outside = [name for name, ok in inside.items() if not ok]
        joint = [name for name, ok in self.inside(level, jointly=True).items() if not ok]
        s = len(inside)
        if not outside:
            text = f"all {s} scalars are inside their {level:.0%} simultaneous bands"
        else:
            text = f"{len(outside)} of {s} scalars are outside their {level:.0%} simultaneous bands ({_some(outside)})"
        if s > 1 and outside:
            text += f"; of {s} scalars of a right posterior {s * (1 - level):.2g} are expected outside"
            text += f"; bands for all {s} together " + (f"exclude {_some(joint)}" if joint else "hold every one")
        if self.failures:
            share = f"{len(self.failures)} of {self.num_datasets} data sets"
            text += f". {share} failed and are left out, which may flatter"
        return text + "."

    def __str__(self) -> str:
        inside, p = self.inside(), self.p_values()
        width = max(len("scalar"), *(len(name) for name in self.names))
        lines = [f"{'scalar':<{width}}  {'mean rank':>9}  {'rank sd':>7}  {'p':>7}  95 % band  the draws are"]
        u = (self._ranks() + 0.5) / (self.num_draws + 1)
        for name, column in zip(self.names, u.T, strict=True):
            sd = column.std() * np.sqrt(12)
            shape = "" if inside[name] else _shape(column)
            lines.append(
                f"{name:<{width}}  {column.mean():>9.3f}  {sd:>7.3f}  {_number(p[name]):>7}  "
                f"{'inside' if inside[name] else 'OUTSIDE':<9}  {shape}".rstrip()
            )
        lines.append("mean rank: 0.5 is right; rank sd: in units of a uniform's, 1 is right.")
        lines.append(f"{int(self.finished.sum())} data sets, {self.num_draws} draws each: {self.verdict()}")
        evaluations = self.num_forward_evaluations
        cost = "" if evaluations is None else f", {evaluations:,} forward evaluations"
        lines.append(f"{self.seconds.sum():,.0f} s{cost}; {len(self.warnings)} runs warned")
        return "\n".join(lines)


def _number(p: float) -> str:
    return f"{p:.2g}" if p > 1e-9 else "< 1e-9"  # below, rounding is all there is


def _shape(u: Float[np.ndarray, " n"]) -> str:
    """In which way uniform ranks are missed: by location, by width, or in another way."""
    n = len(u)
    location = (u.mean() - 0.5) * np.sqrt(12 * n)  # standard normal under uniformity
    width = (np.mean((u - 0.5) ** 2) * 12 - 1) * np.sqrt(n * 5 / 4)  # (u - 1/2)^2 has mean 1/12, variance 1/180
    if max(abs(location), abs(width)) < 2:
        return "wrong in shape"
    if abs(location) > abs(width):
        return "too low" if location > 0 else "too high"
    return "too narrow" if width > 0 else "too wide"


def _some(names: list[str], at_most: int = 5) -> str:
    rest = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + rest
