"""Signs that a posterior should not be trusted, each with a threshold, a sentence and a remedy."""

from __future__ import annotations

from typing import Any

import numpy as np

from enkg_ppl._agreement import Agreement, agreement
from enkg_ppl._field_diagnostics import EnsembleCheck
from enkg_ppl._posterior import Posterior
from enkg_ppl._special import gammaincc
from enkg_ppl._weights import pareto_khat


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
# Above this k-hat an average under importance weights may be wrong by any amount (Vehtari et al. 2024).
LARGEST_KHAT = 0.7
# Draws that are different points, as a share; resampling repeats some, and moves must part them again.
LEAST_DISTINCT = 0.5
# R-hat of independent draws exceeds 1 by about 1 / J for each ensemble; the usual limit holds from 1,200 particles on.
LARGEST_R_HAT, R_HAT_TIMES_PARTICLES = 1.01, 12.0
# Simulations that fail, as a share.
LARGEST_FAILED = 0.05
# Chance that ensembles of one posterior share their particles among the modes as unequally.
LEAST_BALANCE_P = 1e-4


def diagnose(
    posteriors: list[Posterior],
    chi2_per_datum: float | None,
    num_data: int,
    log_likelihood: np.ndarray,
    checks: list[EnsembleCheck] | None = None,
) -> Diagnostics:
    """Look over one run.

    `posteriors`: one an ensemble. `chi2_per_datum`: misfit, where the data have a working response. `log_likelihood`:
    shape (ensembles, particles). `checks`: of guided ensembles that nothing made exact.
    """
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
    draws = [np.asarray(p.draws) for p in posteriors]
    finite = all(np.isfinite(a).all() for a in draws)
    if not finite:
        warnings.append("some draws are not finite: the guided flow diverged; use the default refine='auto'")
    else:
        result["effective_rank"] = effective_rank(draws[0])
        result["distinct_draws"] = share = min(distinct_share(a) for a in draws)
        warnings += _distinct_warning(share)
    khats = [pareto_khat(np.asarray(p.log_weights)) for p in posteriors if p.log_weights is not None]
    if khats:
        result["pareto_khat"] = khat = max(khats)
        warnings += _khat_warning(khat)
    if checks:
        check = checks[0]
        result.update(check.stats())
        warnings += check.warnings()
    elif chi2_per_datum is not None:
        result["chi2_per_datum"] = chi2_per_datum
        warnings += _misfit_warning(chi2_per_datum, num_data)
    if len(posteriors) > 1 and finite:
        found = agreement(np.random.default_rng(0), np.stack(draws), log_likelihood)
        result.update(r_hat=found.r_hat, ess_across_ensembles=found.ess, num_modes=found.num_modes)
        result["mode_balance_p"] = found.balance_p
        warnings += _agreement_warnings(found, len(posteriors), first.num_particles)
    result["warnings"] = list(dict.fromkeys(warnings))
    return result


def effective_rank(z: np.ndarray) -> float:
    """Directions in which an ensemble spreads: ``(sum v)^2 / sum v^2`` over the eigenvalues of its covariance.

    At most the smaller of unknowns and particles less one; 1 where all particles lie on a line.
    """
    v = np.linalg.svd(np.asarray(z, float) - z.mean(axis=0), compute_uv=False) ** 2
    total = v.sum()
    return float(total**2 / (v**2).sum()) if total > 0 else 0.0


def distinct_share(z: np.ndarray) -> float:
    """Share of the draws that are different points."""
    return len(np.unique(z, axis=0)) / len(z)


def _distinct_warning(share: float) -> list[str]:
    if share >= LEAST_DISTINCT:
        return []
    return [
        f"only {share:.0%} of the draws are different points, so they say less than their number: raise "
        "max_forward_evaluations, or num_particles"
    ]


def _khat_warning(khat: float) -> list[str]:
    if not khat > LARGEST_KHAT:
        return []
    return [
        f"the last importance weights have a heavy tail (k-hat {khat:.2f}, above {LARGEST_KHAT}): the log evidence "
        "and shares of far modes may be off; raise num_particles, or TemperedSMC(num_scouts=...)"
    ]


def _agreement_warnings(found: Agreement, num_ensembles: int, num_particles: int) -> list[str]:
    warnings = []
    limit = max(LARGEST_R_HAT, 1 + R_HAT_TIMES_PARTICLES / num_particles)
    if found.r_hat > limit:
        warnings.append(
            f"the {num_ensembles} ensembles disagree (R-hat {found.r_hat:.3f}, above {limit:.3f}): raise num_particles"
        )
    if found.balance_p < LEAST_BALANCE_P:
        warnings.append(
            f"the ensembles divide their particles differently among {found.num_modes} modes (p-value "
            f"{found.balance_p:.1g}): the masses of modes are uncertain; raise num_particles"
        )
    return warnings


def _correlation_warning(posteriors: list[Posterior]) -> list[str]:
    worst = max(p.stats.get("correlation", 0.0) - p.stats.get("correlation_limit", 1.0) for p in posteriors)
    if worst <= 0 or any(p.messages for p in posteriors):
        return []
    correlation = max(p.stats["correlation"] for p in posteriors)
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


def _misfit_warning(chi2_per_datum: float, num_data: int) -> list[str]:
    total = chi2_per_datum * num_data
    if not np.isfinite(total) or gammaincc(num_data / 2, total / 2) < TAIL:
        return [
            f"the draws miss the data by more than the noise allows (chi-square per datum {chi2_per_datum:.3g}, where "
            "1 is due): the model cannot explain the data, or the run has not converged; raise num_particles"
        ]
    return []
