"""Do independent ensembles agree?"""

from __future__ import annotations

from enkg_ppl.diagnostics._agreement import Agreement
from enkg_ppl.diagnostics._finding import Finding

# R-hat of independent draws exceeds 1 by about 1 / J for each ensemble; the usual limit holds from 1,200 particles on.
LARGEST_R_HAT, R_HAT_TIMES_PARTICLES = 1.01, 12.0
# Chance that ensembles of one posterior share their particles among the modes as unequally.
LEAST_BALANCE_P = 1e-4


def check_agreement(found: Agreement, num_ensembles: int, num_particles: int) -> list[Finding]:
    """Of R-hat, and of the balance of modes."""
    findings = []
    limit = max(LARGEST_R_HAT, 1 + R_HAT_TIMES_PARTICLES / num_particles)
    if not found.r_hat <= limit:
        advice = (
            f"the {num_ensembles} ensembles disagree (R-hat {found.r_hat:.3f}, above {limit:.3f}): raise num_particles"
        )
        findings.append(Finding("r_hat", found.r_hat, limit, advice))
    if not found.balance_p >= LEAST_BALANCE_P:
        advice = (
            f"the ensembles divide their particles differently among {found.num_modes} modes (p-value "
            f"{found.balance_p:.1g}): the masses of modes are uncertain; raise num_particles"
        )
        findings.append(Finding("mode_balance_p", found.balance_p, LEAST_BALANCE_P, advice))
    return findings
