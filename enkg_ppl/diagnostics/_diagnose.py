"""The table of diagnostics: what the checks of a run look at, and what they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from enkg_ppl.diagnostics._agreement import agreement
from enkg_ppl.diagnostics._check_agreement import check_agreement
from enkg_ppl.diagnostics._check_draws import check_unique
from enkg_ppl.diagnostics._check_moves import check_correlation, excess_correlation
from enkg_ppl.diagnostics._check_simulations import check_chi_square, check_failures
from enkg_ppl.diagnostics._check_weights import are_sound, check_effective_size, check_khat, check_positive
from enkg_ppl.diagnostics._fields import EnsembleCheck, findings_of, worst
from enkg_ppl.diagnostics._finding import Finding
from enkg_ppl.diagnostics._weights import effective_size, pareto_khat
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

    Attributes:
        findings: the checks that found something beyond its limit, for programs that read them; `warnings` has their
            advice, and the messages of refinement and black boxes besides.
    """

    findings: tuple[Finding, ...] = ()

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
    messages = [sentence for p in posteriors for sentence in p.messages]
    findings = check_correlation(posteriors) + check_failures(posteriors)
    draws = [np.asarray(p.draws) for p in posteriors]
    finite = all(np.isfinite(a).all() for a in draws)
    weights = [None if p.log_weights is None else np.asarray(p.log_weights) for p in posteriors]
    if not finite:
        advice = "some draws are not finite: the guided flow diverged; use the default refine='auto'"
        findings.append(Finding("finite_draws", 0.0, 1.0, advice))
    else:
        shares = [unique_share(a) for a in draws]
        result["effective_rank"] = min(effective_rank(a) for a in draws)
        result["unique_particles"] = min(shares)
        result["effective_draws"] = sum(
            _effective_draws(share, p, w) for share, p, w in zip(shares, posteriors, weights, strict=True)
        )
        findings += check_unique(min(shares))
    known = [w for w in weights if w is not None]
    if known:
        khats = [khat for khat in map(pareto_khat, known) if not np.isnan(khat)]
        result["pareto_khat"] = khat = max(khats, default=float("nan"))
        findings += check_khat(khat) or check_effective_size(known)
        findings += check_positive(known)
    if checks:
        result.update(worst(checks).stats())
        findings += findings_of(checks)
    elif chi2_per_datum is not None:
        result["chi2_per_datum"] = chi2 = float(np.max(chi2_per_datum))  # NaN where any is
        findings += check_chi_square(chi2, num_data)
    if len(posteriors) > 1 and finite:
        found = agreement(np.random.default_rng(0), np.stack(draws), log_likelihood)
        result.update(r_hat=found.r_hat, ess_across_ensembles=found.ess, num_modes=found.num_modes)
        result["mode_balance_p"] = found.balance_p
        findings += check_agreement(found, len(posteriors), first.num_particles)
    result.findings = tuple(findings)
    result["warnings"] = list(dict.fromkeys([*messages, *(finding.advice for finding in findings)]))
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
        exceeding = max(stats, key=excess_correlation)
        found.update({name: exceeding[name] for name in ("correlation", "correlation_limit") if name in exceeding})
    return found


def _combined(name: str, values: list[Any]) -> Any:
    if len(values) < 2:
        return values[0] if values else None
    if any(isinstance(value, str) for value in values):
        return "; ".join(dict.fromkeys(map(str, values)))
    combine = np.sum if name in SUMS else np.min if name in SMALLEST else np.max  # each is NaN where one is
    return combine(values).item()


def _effective_draws(share: float, posterior: Posterior, log_weights: np.ndarray | None) -> float:
    distinct = share * posterior.num_particles
    if log_weights is None:
        return distinct
    # Moves that have forgotten where the particles were resampled made new draws of them, where the weights were sound.
    forgotten = "correlation" in posterior.stats and excess_correlation(posterior.stats) <= 0
    return distinct if forgotten and are_sound(log_weights) else min(distinct, effective_size(log_weights))


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
