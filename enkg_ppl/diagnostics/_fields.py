"""Is a guided ensemble the posterior that its own slope implies? Checks for particles fewer than unknowns.

In a linear-Gaussian problem with slope A the posterior covariance of ``A^T x`` is known from the prior's:
``P = C_gg (C_gg + Gamma)^-1 Gamma`` with ``C_gg = A^T C A``, and that of x itself is
``C - C A (C_gg + Gamma)^-1 A^T C``. Averaged over data sets and draws, chi-square per datum is 1 exactly, of which the
spread of the draws makes ``tr(P Gamma^-1) / m``. An ensemble in which these do not hold is not that posterior; a
simulator that the slope does not explain is not that problem.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from enkg_ppl._special import gammainc, gammaincc
from enkg_ppl.diagnostics._finding import Finding
from enkg_ppl.linearise._noise import typical_noise
from enkg_ppl.linearise._penalty import LeaveOneOut
from enkg_ppl.linearise._ridge import ridge
from enkg_ppl.posterior import Statistics

# Spread of the draws over what the slope implies, as variances. Sampling and a slope that bends move it by a third.
TOO_NARROW, TOO_WIDE = 0.5, 2.0
# The same for the predictions above 1, beside this many of its standard errors: on linear fields it stays below 1.03,
# and a simulator like exp, whose posterior means are half a standard deviation off in places, has 1.3.
DATA_TOO_WIDE, ERRORS = 0.15, 4.0
# Output variance over the draws that the slope leaves unexplained, in units of the noise variance.
UNEXPLAINED = 0.2
# Spread of the log noise variance over the draws, above which the noise is an unknown like others. Counts, whose
# noise follows their mean, stay below it where the data tell the mean to within a third.
NOISE_UNKNOWN = 0.5
# Latents drawn from the prior for the comparison; they cost no simulation.
NUM_PRIOR_DRAWS = 1024
# Chance of a chi-square this far out, at either end, where everything is right.
TAIL = 1e-5


class EnsembleCheck(NamedTuple):
    """Result of `check_ensemble`; each number is 1 (`unexplained`: 0) where the posterior is linear-Gaussian.

    Attributes:
        chi2_per_datum: mean of (observation - prediction)^2 / noise.
        chi2_tail: probability of a value at least as far from 1.
        data_spread: variance of the predictions over the value that the slope implies, in units of the noise, summed
            over data.
        latent_spread: total variance of the draws over the value that the slope and the prior imply.
        unexplained: output variance that the slope leaves, over the noise variance, mean over the data.
        noise_spread: standard deviation over the draws of the log noise variance, the largest of the data.
        data_spread_error: standard error of `data_spread` from the number of draws.
        has_spreads: whether both spreads are known.
    """

    chi2_per_datum: float
    chi2_tail: float
    data_spread: float
    latent_spread: float
    unexplained: float
    noise_spread: float = 0.0
    data_spread_error: float = 0.0
    has_spreads: bool = True

    def stats(self) -> Statistics:
        """The entries for the table of diagnostics."""
        found: Statistics = {"chi2_per_datum": self.chi2_per_datum}
        if self.has_spreads:
            found |= {"data_spread": self.data_spread, "latent_spread": self.latent_spread}
        found |= {"unexplained": self.unexplained, "noise_spread": self.noise_spread}
        return found

    def warnings(self) -> list[str]:
        """A sentence with a remedy for every number beyond its threshold."""
        return [finding.advice for finding in self.findings()]

    def findings(self) -> list[Finding]:
        """Every number beyond its threshold."""
        return [*self._of_chi_square(), *self._of_spreads(), *self._of_the_slope()]

    def _of_chi_square(self) -> list[Finding]:
        chi2 = self.chi2_per_datum
        if not np.isfinite(chi2) or (not self.chi2_tail >= TAIL and chi2 > 1):
            advice = (
                f"the draws miss the data by more than the noise allows (chi-square per datum {chi2:.3g}, where 1 is "
                "due): the run has not converged or the model cannot explain the data; use a refinement"
            )
        elif not self.chi2_tail >= TAIL:
            advice = (
                "the draws follow the data more closely than the noise allows (chi-square per datum "
                f"{chi2:.3g}, where 1 is due): the ensemble has collapsed, or the noise is overstated"
            )
        else:
            return []
        return [Finding("chi2_per_datum", chi2, 1.0, advice)]

    def _of_spreads(self) -> list[Finding]:
        if not self.has_spreads:
            return []
        findings = []
        widest = min(TOO_WIDE, 1 + DATA_TOO_WIDE + ERRORS * self.data_spread_error)
        for name, of, ratio, most in (
            ("data_spread", "predictions", self.data_spread, widest),
            ("latent_spread", "draws", self.latent_spread, TOO_WIDE),
        ):
            if np.isnan(ratio) and np.isfinite(self.chi2_per_datum):
                advice = (
                    f"whether the {of} vary as much as noise and prior ask for cannot be told, as neither they nor "
                    "draws of the prior vary: check the prior and the simulator, or use a refinement"
                )
                findings.append(Finding(name, ratio, most, advice))
            elif ratio < TOO_NARROW:
                advice = (
                    f"the {of} vary too little (variance {ratio:.2g} of what noise and prior ask for): the ensemble "
                    "has collapsed; use the default correction, or a refinement"
                )
                findings.append(Finding(name, ratio, TOO_NARROW, advice))
            elif ratio > most:
                advice = (
                    f"the {of} vary too much (variance {ratio:.2g} times what noise and prior ask for): the guided "
                    "flow has not converged; use more noise levels, or a refinement"
                )
                findings.append(Finding(name, ratio, most, advice))
        return findings

    def _of_the_slope(self) -> list[Finding]:
        findings = []
        if not self.unexplained <= UNEXPLAINED:
            advice = (
                f"the simulator bends within the posterior (a straight line leaves {self.unexplained:.2g} noise "
                "variances of its output unexplained): the guided draws are approximate; use a refinement"
            )
            findings.append(Finding("unexplained", self.unexplained, UNEXPLAINED, advice))
        if not self.noise_spread <= NOISE_UNKNOWN:
            advice = (
                "the noise level is among the unknowns, which the guided flow cannot learn (its logarithm varies by "
                f"{self.noise_spread:.2g} over the draws): use a refinement"
            )
            findings.append(Finding("noise_spread", self.noise_spread, NOISE_UNKNOWN, advice))
        return findings


# Figures that are right at 1, and what belongs to each.
RATIOS = {"chi2_per_datum": "chi2_tail", "data_spread": "data_spread_error", "latent_spread": "latent_spread"}


def worst(checks: list[EnsembleCheck]) -> EnsembleCheck:
    """Of several ensembles the worst figure each: the farthest from 1, the largest where 0 is right, NaN before all."""
    figures: dict = {name: float(np.max([getattr(check, name) for check in checks])) for name in EnsembleCheck._fields}
    figures["has_spreads"] = all(check.has_spreads for check in checks)
    for name, beside in RATIOS.items():
        chosen = checks[int(np.argmax([_distance(getattr(check, name)) for check in checks]))]
        figures |= {name: getattr(chosen, name), beside: getattr(chosen, beside)}
    return EnsembleCheck(**figures)


def findings_of(checks: list[EnsembleCheck]) -> list[Finding]:
    """Of several ensembles: one finding for every number and side of its limit, with the worst value."""
    found: dict[tuple[str, str], tuple[float, Finding]] = {}
    for finding in (finding for check in checks for finding in check.findings()):
        low = finding.value < finding.limit
        far = -finding.value if low else np.inf if np.isnan(finding.value) else finding.value
        key = finding.name, "unknown" if np.isnan(finding.value) else "low" if low else "high"
        if key not in found or far > found[key][0]:
            found[key] = far, finding
    return [finding for _, finding in found.values()]


def _distance(ratio: float) -> float:
    """From 1, on a logarithmic scale; without bound for NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = abs(np.log(ratio))
    return np.inf if np.isnan(distance) else float(distance)


def _noise_spread(noise: np.ndarray) -> float:
    """Largest sd of the log noise variance; noise that is the same in all draws, infinite too, does not spread."""
    with np.errstate(all="ignore"):
        spread = np.std(np.log(noise), axis=0)
    spread = np.where(np.all(noise == noise[0], axis=0), 0.0, spread)
    return float(np.max(np.where(np.isnan(spread), np.inf, spread), initial=0.0))


def check_ensemble(
    x: ArrayLike,
    prediction: ArrayLike,
    observation: ArrayLike,
    noise: ArrayLike,
    prior_draws: ArrayLike | None,
    slope: ArrayLike | None = None,
) -> EnsembleCheck:
    """Compare an equally weighted ensemble with the linear-Gaussian posterior of its slope.

    Particles whose simulation is not finite make every number NaN or infinite, and so give a warning.

    Args:
        x: the draws, shape (particles, dim).
        prediction: of the working responses, shape (particles, m).
        observation: of the working responses, shape (particles, m).
        noise: variances of the working responses, shape (particles, m).
        prior_draws: latents drawn from the prior, a few hundred at least, shape (draws, dim); they cost no simulation.
            None leaves the spreads out: under a prior far from Gaussian, as networks are, the posterior may be many
            times narrower than a Gaussian prior of the same covariance would make it.
        slope: shape (dim, m), the flow's own (`Posterior.slope`), fitted to all levels; without it one is fitted to
            these draws, which is unreliable where they are fewer than unknowns.
    """
    root = np.sqrt(typical_noise(np.asarray(noise)))
    x, prediction, observation, noise = (np.asarray(a, float) for a in (x, prediction, observation, noise))
    m = prediction.shape[1]
    noise_spread = _noise_spread(noise)
    chi2 = float(np.mean((observation - prediction) ** 2 / noise))
    if not (np.isfinite(chi2) and np.isfinite(x).all()):
        noise_spread = noise_spread if np.isfinite(noise_spread) else 0.0
        return EnsembleCheck(np.inf, 0.0, np.nan, np.nan, np.inf, noise_spread, has_spreads=prior_draws is not None)
    tail = float(min(gammainc(m / 2, chi2 * m / 2), gammaincc(m / 2, chi2 * m / 2)))
    r, q = (a - a.mean(axis=0) for a in (x, prediction / root))
    A = (
        np.asarray(ridge(jnp.asarray(r), jnp.asarray(q), LeaveOneOut(1 / len(r))))
        if slope is None
        else np.asarray(slope, float) / root
    )
    n, explained = len(x) - 1, r @ A
    unexplained = float(np.mean(np.sum((q - explained) ** 2, axis=0) / n))
    if prior_draws is None:
        return EnsembleCheck(chi2, tail, 1.0, 1.0, unexplained, noise_spread, has_spreads=False)
    draws = np.asarray(prior_draws, float)
    draws = draws - draws.mean(axis=0)
    g = draws @ A
    C_gg, C_xg = g.T @ g / (len(draws) - 1), draws.T @ g / (len(draws) - 1)
    total = C_gg + (1 + unexplained) * np.eye(m)
    P = (1 + unexplained) * np.linalg.solve(total, C_gg)  # its eigenvalues are the variances implied
    implied_data, squares = np.trace(P), np.sum(P * P.T)
    implied_latent = np.sum(draws**2) / (len(draws) - 1) - np.sum(C_xg.T * np.linalg.solve(total, C_xg.T))
    data_spread = np.sum(explained**2) / n / implied_data if implied_data > 0 else 1.0
    latent_spread = np.sum(r**2) / n / implied_latent
    # A sum of independent variances v, each from n draws: 2 v^2 / n.
    error = (2 / n * squares) ** 0.5 / implied_data if implied_data > 0 else 0.0
    return EnsembleCheck(chi2, tail, float(data_spread), float(latent_spread), unexplained, noise_spread, float(error))
