"""Have the moves decorrelated the particles from where they were resampled?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from enkg_ppl.diagnostics._finding import Finding
from enkg_ppl.posterior import Posterior

# What refinements say in their own words of moves that have not settled, in place of the sentence below.
UNSETTLED = ("forgotten", "remember", "settled", "drift", "budget")


def excess_correlation(stats: Mapping[str, Any]) -> float:
    """By how much the correlation exceeds its limit; without bound where it is NaN."""
    excess = stats.get("correlation", 0.0) - stats.get("correlation_limit", 1.0)
    return np.inf if np.isnan(excess) else excess


def check_correlation(posteriors: list[Posterior]) -> list[Finding]:
    """Of every ensemble whose refinement says nothing of it itself."""
    silent = [p.stats for p in posteriors if not any(word in text for text in p.messages for word in UNSETTLED)]
    remembering = [stats for stats in silent if excess_correlation(stats) > 0]
    if not remembering:
        return []
    worst = max(remembering, key=excess_correlation)
    correlation = worst.get("correlation", 0.0)
    advice = (
        f"the particles still remember where they were resampled (correlation {correlation:.2f}): raise num_particles, "
        "or pass refine=TemperedSMC(max_cycles=(8, 30))"
    )
    return [Finding("correlation", correlation, worst.get("correlation_limit", 1.0), advice)]
