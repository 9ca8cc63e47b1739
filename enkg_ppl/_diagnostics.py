"""Signs that a posterior should not be trusted, each with a threshold, a sentence and a remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.scipy.special import gammaincc

from enkg_ppl._posterior import Posterior


class Diagnostics(dict[str, Any]):
    """Figures by name; `warnings` holds the sentences. Prints as a table."""

    @property
    def warnings(self) -> list[str]:
        return self["warnings"]

    def __str__(self) -> str:
        lines = []
        for name, value in self.items():
            if name == "warnings":
                continue
            text = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            lines.append(f"{name:>26}  {text}")
        lines += [f"{'warning':>26}  {sentence}" for sentence in self.warnings]
        return "\n".join(lines)


# Averaged over data and posterior, chi-square per datum is 1 where model and posterior are right, with at most the
# scatter of a chi-square variable with one degree of freedom a datum. Less likely than this is a sign.
TAIL = 1e-5


def diagnose(
    posteriors: list[Posterior], chi2_per_datum: float | None, num_data: int, ratio: float | None = None
) -> Diagnostics:
    """Look over one run: one posterior an ensemble, its misfit, and its `spread_ratio` where nothing made it exact."""
    first = posteriors[0]
    result = Diagnostics(
        method=first.method,
        num_ensembles=len(posteriors),
        num_particles=first.num_particles,
        num_forward_evaluations=sum(p.num_forward_evaluations for p in posteriors),
    )
    result.update({name: value for name, value in first.stats.items() if name != "levels"})
    warnings = [sentence for p in posteriors for sentence in p.messages]
    warnings += _correlation_warning(posteriors) + _failure_warning(posteriors)
    if not all(np.all(np.isfinite(np.asarray(p.draws))) for p in posteriors):
        warnings.append("some draws are not finite: the guided flow diverged; use the default refine='auto'")
    if chi2_per_datum is not None:
        result["chi2_per_datum"] = chi2_per_datum
        warnings += _misfit_warning(chi2_per_datum, num_data)
    if ratio is not None:
        result["spread_ratio"] = ratio
        warnings += _collapse_warning(ratio)
    result["warnings"] = warnings
    return result


def _correlation_warning(posteriors: list[Posterior]) -> list[str]:
    worst = max(p.stats.get("correlation", 0.0) - p.stats.get("correlation_limit", 1.0) for p in posteriors)
    if worst <= 0:
        return []
    correlation = max(p.stats["correlation"] for p in posteriors)
    return [
        f"the particles still remember where they were resampled (correlation {correlation:.2f}): raise num_particles, "
        "or pass refine=TemperedSMC(max_cycles=(8, 30))"
    ]


def _failure_warning(posteriors: list[Posterior]) -> list[str]:
    failed = sum(p.stats.get("num_failed", 0) for p in posteriors)
    total = sum(p.num_forward_evaluations for p in posteriors)
    if failed <= 0.05 * total:
        return []
    return [
        f"{failed:,} of {total:,} simulations gave a likelihood of zero or NaN: check the simulator at extreme "
        "parameters, or narrow the prior"
    ]


def _misfit_warning(chi2_per_datum: float, num_data: int) -> list[str]:
    total = chi2_per_datum * num_data
    if not np.isfinite(total) or gammaincc(num_data / 2, total / 2) < TAIL:
        return [
            f"the draws miss the data by more than the noise allows (chi-square per datum {chi2_per_datum:.3g}, where "
            "1 is due): the model cannot explain the data, or the run has not converged; raise num_particles"
        ]
    return []


def spread_ratio(z: np.ndarray, g: np.ndarray, noise: np.ndarray) -> float | None:
    """Smallest variance of an ensemble over what a linear-Gaussian posterior would have there; 1 where it is right.

    `z`: shape (particles, dim), prior N(0, I). `g`, `noise`: predictions and noise variances, shape (particles, data).
    The slope A of g on z is the ensemble's own; the posterior's precision would be ``I + A^T Gamma^-1 A``, and the
    smallest eigenvalue of its product with the sampled covariance is returned. None where particles are too few.
    """
    n, d = z.shape
    if n < 4 * d or not (np.isfinite(z).all() and np.isfinite(g).all()):
        return None
    z, g = (np.asarray(a, float) - np.mean(a, axis=0, dtype=float) for a in (z, g))
    slope = np.linalg.lstsq(z, g, rcond=None)[0]  # (dim, data)
    precision = np.eye(d) + (slope / np.median(noise, axis=0)) @ slope.T
    return float(np.linalg.eigvals(z.T @ z / n @ precision).real.min())


# Sampling alone takes the ratio down to (1 - sqrt(d / n))^2 >= 1/4 at 4 particles a dimension.
COLLAPSED = 0.1


def _collapse_warning(ratio: float | None) -> list[str]:
    if ratio is None or ratio >= COLLAPSED:
        return []
    return [
        f"the ensemble has collapsed (its variance is {ratio:.2g} of what the noise level asks for in some direction): "
        "use the default correction, and refine='auto'"
    ]
