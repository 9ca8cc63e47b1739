"""Are the draws different from each other?"""

from __future__ import annotations

from enkg_ppl.diagnostics._finding import Finding

# Unique particles, as a share of the draws; resampling repeats some, and moves must part them again.
LEAST_UNIQUE = 0.5


def check_unique(share: float) -> list[Finding]:
    """Of unique particles among the draws of the worst ensemble."""
    if share >= LEAST_UNIQUE:
        return []
    advice = (
        f"only {share:.0%} of the draws are unique particles, so they say less than their number: raise "
        "max_forward_evaluations, or num_particles"
    )
    return [Finding("unique_particles", share, LEAST_UNIQUE, advice)]
