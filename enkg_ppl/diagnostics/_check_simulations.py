"""Did the simulations succeed, and do the draws fit the data?"""

from __future__ import annotations

import numpy as np

from enkg_ppl._special import gammaincc, gammainccinv
from enkg_ppl.diagnostics._finding import Finding
from enkg_ppl.posterior import Posterior

# Simulations that fail, as a share.
LARGEST_FAILED = 0.05
# Averaged over data and posterior, chi-square per datum is 1 where model and posterior are right, with at most the
# scatter of a chi-square variable with one degree of freedom a datum. Less likely than this is a sign.
TAIL = 1e-5


def check_failures(posteriors: list[Posterior]) -> list[Finding]:
    """Of simulations without a finite likelihood."""
    failed = sum(p.stats.get("num_failed", 0) for p in posteriors)
    total = sum(p.num_forward_evaluations for p in posteriors)
    if failed <= LARGEST_FAILED * total:
        return []
    advice = (
        f"{failed:,} of {total:,} simulations failed (NaN or infinite likelihood): check the simulator at extreme "
        "parameters, or narrow the prior"
    )
    return [Finding("num_failed", failed, LARGEST_FAILED * total, advice)]


def check_chi_square(chi2_per_datum: float, num_data: int) -> list[Finding]:
    """Of the reduced chi-square of the draws."""
    total = chi2_per_datum * num_data
    if np.isfinite(total) and gammaincc(num_data / 2, total / 2) >= TAIL:
        return []
    advice = (
        f"the draws miss the data by more than the noise allows (chi-square per datum {chi2_per_datum:.3g}, where "
        "1 is due): the model cannot explain the data, or the run has not converged; raise num_particles"
    )
    limit = 2 * float(gammainccinv(num_data / 2, TAIL)) / num_data
    return [Finding("chi2_per_datum", chi2_per_datum, limit, advice)]
