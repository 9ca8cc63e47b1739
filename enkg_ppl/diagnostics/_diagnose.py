"""Signs that a posterior should not be trusted, each with a threshold, a sentence and a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from enkg_ppl._special import gammaincc
from enkg_ppl.diagnostics._agreement import Agreement, agreement
from enkg_ppl.diagnostics._fields import EnsembleCheck, warnings_of, worst
from enkg_ppl.diagnostics._weights import LEAST_POSITIVE, effective_size, equal, num_positive, pareto_khat
from enkg_ppl.posterior import Posterior


class Diagnostics(dict[str, Any]):
    """Diagnostics by name; `warnings` holds the sentences. Prints as a table.

    With several ensembles every entry is of all of them:

    - the worst one's: `chi2_per_datum`, `data_spread`, `latent_spread` (the farthest from 1), `effective_rank`,
      `unique_particles`, `weight_ess`, `jump_acceptance`, `independence_acceptance`, `acceptance`, `drift_p` (the
      smallest), `pareto_khat`, `unexplained`, `noise_spread`, and any other number (the largest); `correlation` with
      the `correlation_limit` of its ensemble, where it is exceeded most;
    - sums: `num_forward_evaluations`, `num_failed`, and `effective_draws`, which adds the effective draws of each
      ensemble: as many as there are unique particles, and no more than the effective size of its last weights where
      these cannot be trusted or the moves had not decorrelated the particles from them;
    - of the ensembles together: `r_hat`, `ess_across_ensembles`, `num_modes`, `mode_balance_p`, `log_evidence` (of the
      mean evidence) and its error.

    NaN counts as the worst, except for `pareto_khat`: equal weights have no tail, and too few of them give a warning.
    """

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
# Above this k-hat an average under importance weights may be wrong by any amount (Vehtari et al. 2024).
LARGEST_KHAT = 0.7
# Effective size of the last weights, as a share of the particles. One weight above all others has no tail to show.
LEAST_WEIGHT_SHARE = 0.02
# Unique particles, as a share of the draws; resampling repeats some, and moves must part them again.
LEAST_DISTINCT = 0.5
# R-hat of independent draws exceeds 1 by about 1 / J for each ensemble; the usual limit holds from 1,200 particles on.
LARGEST_R_HAT, R_HAT_TIMES_PARTICLES = 1.01, 12.0
# Simulations that fail, as a share.
LARGEST_FAILED = 0.05
# Chance that ensembles of one posterior share their particles among the modes as unequally.
LEAST_BALANCE_P = 1e-4


def diagnose(
    posteriors: list[Posterior],
    chi2_per_datum: ArrayLike | None,
    num_data: int,
    log_likelihood: np.ndarray,
    checks: list[EnsembleCheck] | None = None,
) -> Diagnostics:
    """Compute the diagnostics of one run.

    Args:
        posteriors: one an ensemble.
        chi2_per_datum: misfit of every ensemble, where the data have a working response.
        num_data: number of data.
        log_likelihood: in nats, shape (ensembles, particles).
        checks: of guided ensembles that were not refined.
    """
    first = posteriors[0]
    result = Diagnostics(
        method=first.method,
        num_ensembles=len(posteriors),
        num_particles=first.num_particles,
        num_forward_evaluations=sum(p.num_forward_evaluations for p in posteriors),
    )
    result.update(combined_stats([p.stats for p in posteriors]))
    warnings = [sentence for p in posteriors for sentence in p.messages]
    warnings += _correlation_warning(posteriors) + _failure_warning(posteriors)
    draws = [np.asarray(p.draws) for p in posteriors]
    finite = all(np.isfinite(a).all() for a in draws)
    weights = [None if p.log_weights is None else np.asarray(p.log_weights) for p in posteriors]
    if not finite:
        warnings.append("some draws are not finite: the guided flow diverged; use the default refine='auto'")
    else:
        shares = [unique_share(a) for a in draws]
        result["effective_rank"] = min(effective_rank(a) for a in draws)
        result["unique_particles"] = min(shares)
        result["effective_draws"] = sum(
            _effective_draws(share, p, w) for share, p, w in zip(shares, posteriors, weights, strict=True)
        )
        warnings += _unique_warning(min(shares))
    known = [w for w in weights if w is not None]
    if known:
        khats = [khat for khat in map(pareto_khat, known) if not np.isnan(khat)]
        result["pareto_khat"] = khat = max(khats, default=float("nan"))
        warnings += _khat_warning(khat) or _small_weights_warning(known)
        warnings += _few_weights_warning(known)
    if checks:
        result.update(worst(checks).stats())
        warnings += warnings_of(checks)
    elif chi2_per_datum is not None:
        result["chi2_per_datum"] = chi2 = float(np.max(chi2_per_datum))  # NaN where any is
        warnings += _chi_square_warning(chi2, num_data)
    if len(posteriors) > 1 and finite:
        found = agreement(np.random.default_rng(0), np.stack(draws), log_likelihood)
        result.update(r_hat=found.r_hat, ess_across_ensembles=found.ess, num_modes=found.num_modes)
        result["mode_balance_p"] = found.balance_p
        warnings += _agreement_warnings(found, len(posteriors), first.num_particles)
    result["warnings"] = list(dict.fromkeys(warnings))
    return result


# How figures of several ensembles become one, where it is not the largest that is the worst.
SMALLEST = ("jump_acceptance", "independence_acceptance", "acceptance", "drift_p", "weight_ess")
SUMS = ("num_failed",)
UNLISTED = ("levels",)


def combined_stats(stats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of all ensembles as those of one; see `Diagnostics`."""
    names = dict.fromkeys(name for one in stats for name in one if name not in UNLISTED)
    found = {name: _combined(name, [one[name] for one in stats if one.get(name) is not None]) for name in names}
    if "correlation" in found:
        exceeding = max(stats, key=_excess_correlation)
        found.update({name: exceeding[name] for name in ("correlation", "correlation_limit") if name in exceeding})
    return found


def _combined(name: str, values: list[Any]) -> Any:
    if len(values) < 2:
        return values[0] if values else None
    if any(isinstance(value, str) for value in values):
        return "; ".join(dict.fromkeys(map(str, values)))
    combine = np.sum if name in SUMS else np.min if name in SMALLEST else np.max  # each is NaN where one is
    return combine(values).item()


def _excess_correlation(stats: Mapping[str, Any]) -> float:
    """By how much the correlation exceeds its limit; without bound where it is NaN."""
    excess = stats.get("correlation", 0.0) - stats.get("correlation_limit", 1.0)
    return np.inf if np.isnan(excess) else excess


def _effective_draws(share: float, posterior: Posterior, log_weights: np.ndarray | None) -> float:
    distinct = share * posterior.num_particles
    if log_weights is None:
        return distinct
    # Moves that have forgotten where the particles were resampled made new draws of them, where the weights were sound.
    forgotten = "correlation" in posterior.stats and _excess_correlation(posterior.stats) <= 0
    sound = not pareto_khat(log_weights) > LARGEST_KHAT and effective_size(log_weights) > LEAST_WEIGHT_SHARE * len(
        log_weights
    )
    return distinct if forgotten and sound else min(distinct, effective_size(log_weights))


def effective_rank(z: np.ndarray) -> float:
    """Directions in which an ensemble spreads: ``(sum v)^2 / sum v^2`` over the eigenvalues of its covariance.

    At most the smaller of unknowns and particles less one; 1 where all particles lie on a line.

    Args:
        z: the ensemble, shape (particles, dim).
    """
    v = np.linalg.svd(np.asarray(z, float) - z.mean(axis=0), compute_uv=False) ** 2
    total = v.sum()
    return float(total**2 / (v**2).sum()) if total > 0 else 0.0


def unique_share(z: np.ndarray) -> float:
    """Unique particles as a share of the draws.

    Args:
        z: the ensemble, shape (particles, dim).
    """
    return len(np.unique(z, axis=0)) / len(z)


def _unique_warning(share: float) -> list[str]:
    if share >= LEAST_DISTINCT:
        return []
    return [
        f"only {share:.0%} of the draws are unique particles, so they say less than their number: raise "
        "max_forward_evaluations, or num_particles"
    ]


def _few_weights_warning(log_weights: list[np.ndarray]) -> list[str]:
    """`log_weights`: of every ensemble. Weights that are equal need no tail to be judged by."""
    n = len(log_weights[0])
    positive = [num_positive(w) for w in log_weights if not (equal(w) and num_positive(w) == n)]
    if min(positive, default=LEAST_POSITIVE) >= LEAST_POSITIVE:
        return []
    return [
        f"only {min(positive)} of the {n} last importance weights{_worst_of(log_weights)} are not zero, too few to "
        "tell whether they can be trusted: raise num_particles, or narrow the prior"
    ]


def _small_weights_warning(log_weights: list[np.ndarray]) -> list[str]:
    n, size = len(log_weights[0]), min(map(effective_size, log_weights))
    if size >= LEAST_WEIGHT_SHARE * n:
        return []
    return [
        f"the {n} last importance weights{_worst_of(log_weights)} are worth {size:.2g} equal ones, so a few particles "
        "stand for the whole posterior: raise num_particles or max_forward_evaluations, or narrow the prior"
    ]


def _worst_of(ensembles: list) -> str:
    return "" if len(ensembles) == 1 else " of the worst ensemble"


def _khat_warning(khat: float) -> list[str]:
    if np.isnan(khat) or khat <= LARGEST_KHAT:
        return []
    return [
        f"the last importance weights have a heavy tail (k-hat {khat:.2f}, above {LARGEST_KHAT}): the log evidence "
        "and shares of far modes may be off; raise num_particles, or TemperedSMC(pilot_size=...)"
    ]


def _agreement_warnings(found: Agreement, num_ensembles: int, num_particles: int) -> list[str]:
    warnings = []
    limit = max(LARGEST_R_HAT, 1 + R_HAT_TIMES_PARTICLES / num_particles)
    if not found.r_hat <= limit:
        warnings.append(
            f"the {num_ensembles} ensembles disagree (R-hat {found.r_hat:.3f}, above {limit:.3f}): raise num_particles"
        )
    if not found.balance_p >= LEAST_BALANCE_P:
        warnings.append(
            f"the ensembles divide their particles differently among {found.num_modes} modes (p-value "
            f"{found.balance_p:.1g}): the masses of modes are uncertain; raise num_particles"
        )
    return warnings


# What refinements say in their own words of moves that have not settled, in place of the sentence below.
UNSETTLED = ("forgotten", "remember", "settled", "drift", "budget")


def _correlation_warning(posteriors: list[Posterior]) -> list[str]:
    silent = [p.stats for p in posteriors if not any(word in text for text in p.messages for word in UNSETTLED)]
    remembering = [stats for stats in silent if _excess_correlation(stats) > 0]
    if not remembering:
        return []
    correlation = max(remembering, key=_excess_correlation).get("correlation", 0.0)
    return [
        f"the particles still remember where they were resampled (correlation {correlation:.2f}): raise num_particles, "
        "or pass refine=TemperedSMC(max_cycles=(8, 30))"
    ]


def _failure_warning(posteriors: list[Posterior]) -> list[str]:
    failed = sum(p.stats.get("num_failed", 0) for p in posteriors)
    total = sum(p.num_forward_evaluations for p in posteriors)
    if failed <= LARGEST_FAILED * total:
        return []
    return [
        f"{failed:,} of {total:,} simulations failed (NaN or infinite likelihood): check the simulator at extreme "
        "parameters, or narrow the prior"
    ]


def _chi_square_warning(chi2_per_datum: float, num_data: int) -> list[str]:
    total = chi2_per_datum * num_data
    if not np.isfinite(total) or not gammaincc(num_data / 2, total / 2) >= TAIL:
        return [
            f"the draws miss the data by more than the noise allows (chi-square per datum {chi2_per_datum:.3g}, where "
            "1 is due): the model cannot explain the data, or the run has not converged; raise num_particles"
        ]
    return []
