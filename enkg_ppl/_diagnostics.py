"""Signs that a posterior should not be trusted, each with a threshold, a sentence and a remedy."""

from __future__ import annotations

from typing import Any

import numpy as np

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


# Chi-square per datum beyond this many of its own standard deviations is misfit, not noise.
MISFIT_SD = 4.0


def diagnose(posteriors: list[Posterior], chi2_per_datum: float | None, num_data: int) -> Diagnostics:
    """Look over one run (one posterior an ensemble)."""
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
    limit = 1 + MISFIT_SD * (2 / num_data) ** 0.5
    if np.isfinite(chi2_per_datum) and chi2_per_datum <= limit:
        return []
    return [
        f"the draws miss the data by more than the noise allows (chi-square per datum {chi2_per_datum:.3g}, at most "
        f"{limit:.2f} expected): the model cannot explain the data, or the run has not converged; raise num_particles"
    ]
