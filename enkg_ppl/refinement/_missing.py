"""What says that a mode may be missing: searches, pilot and whole ensemble must tell one story."""

from __future__ import annotations

import numpy as np

from enkg_ppl.mixtures._student import Reference, labels
from enkg_ppl.refinement._peaks import WEIGHTY, Found, nearest_peak
from enkg_ppl.types import Ensemble

# Share of the draws around peaks that a single search found, above which others may have been overlooked.
LARGEST_SHARE_OF_ONE = 0.05
# Share by Laplace's approximation, above which a peak should have draws; and share of the draws that count as none.
LEAST_LAPLACE, ABSENT = 0.1, 0.01
LARGEST_SHARE_BESIDE = 0.2  # of the searches, that may end where there are no draws
# Difference of two log evidences: in standard errors, and nats that the errors do not know of.
LARGEST_Z, SLACK = 5.0, 1.0
# Difference of a component's shares in pilot and whole ensemble, in standard errors: above the first the whole ensemble
# goes on moving, above the second there is a sentence.
SHARES_DIFFER, SHARES_DISAGREE = 2.5, 4.0
REMEDY = "raise num_particles, or pass known starting points as init="


def missing_modes(found: Found | None, z: Ensemble, weighted: bool = False) -> list[str]:
    """Sentences on peaks that were found by luck, or lost again; `z`: draws of the posterior.

    `weighted`: whether weighted draws were made around all of them; then those tell better than Laplace's approximation
    what a peak holds, and none can be lost.
    """
    if found is None or not found.peaks:
        return []
    share = np.bincount(nearest_peak(found.peaks, z), minlength=len(found.peaks)) / len(z)
    evidence = np.array([peak.log_evidence for peak in found.peaks])
    laplace = np.exp(evidence - np.logaddexp.reduce(evidence))
    # What Laplace thinks nothing of may be broad and take draws of others.
    weighty = evidence > evidence.max() - WEIGHTY
    by_one = float(share[weighty & np.array([peak.hits < 2 for peak in found.peaks])].sum())
    sentences = []
    if by_one > LARGEST_SHARE_OF_ONE:
        sentences.append(
            f"a mode may be missing: {by_one:.0%} of the draws are around peaks that only one of {found.num_searches} "
            f"searches found, so others may have been overlooked; {REMEDY}"
        )
    if found.rugged:
        elsewhere = found.num_searches - found.num_hits
        sentences.append(
            f"a mode may be missing: {elsewhere} of {found.num_searches} searches from prior draws ended at "
            f"fits too poor to matter, so there are many and a good one may have been overlooked; {REMEDY}"
        )
    lost = (laplace > LEAST_LAPLACE) & (share < ABSENT) & (not weighted)
    if lost.any():
        sentences.append(
            f"a mode may be missing: about {laplace[lost].sum():.0%} of the posterior should be around peaks that a "
            f"search found, and {share[lost].sum():.1%} of the draws are; {REMEDY}"
        )
    return sentences


def ended_beside(found: Found, z: Ensemble) -> bool:
    """Whether many searches ended where hardly any draw is: perhaps on the slope of a mode that they did not reach."""
    share = np.bincount(nearest_peak(found.peaks, z), minlength=len(found.peaks)) / len(z)
    hits = np.array([peak.hits for peak in found.peaks])
    return hits[share < ABSENT].sum() > LARGEST_SHARE_BESIDE * hits.sum()


def evidence_disagrees(
    one: tuple[float, float],
    other: tuple[float, float],
    names: tuple[str, str] = ("the pilot ensemble", "the whole one"),
) -> list[str]:
    """A sentence where the log evidence of two sets of draws, each with its standard error, differ."""
    difference, error = abs(one[0] - other[0]), float(np.hypot(one[1], other[1]))
    if difference <= LARGEST_Z * error + SLACK:
        return []
    return [
        f"a mode may be missing: the log evidence of {names[0]} is {one[0]:.1f} and that of {names[1]} {other[0]:.1f}, "
        f"which their errors ({error:.2f}) do not explain; {REMEDY}"
    ]


def shares_apart(places: Reference, pilot: tuple[Ensemble, float], whole: tuple[Ensemble, float]) -> float:
    """How many standard errors lie between the shares of draws that pilot and whole ensemble have in a component of
    `places`, where they differ most; each is given by its draws and their correlation with where they came from.

    An ensemble whose weights were uneven leaves light modes faster than it comes to them: its draws forget their places
    long before the shares are right. The pilot had another start.
    """
    counts, sizes = [], []
    for z, correlation in (pilot, whole):
        size = len(z) * (1 - min(correlation, 0.9)) / (1 + correlation)
        share = np.bincount(labels(places, np.asarray(z, float)), minlength=places.num_components) / len(z)
        counts.append(share * size)
        sizes.append(size)
    pooled = (counts[0] + counts[1] + 1) / (sum(sizes) + 2)  # never 0 or 1
    error = np.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
    return float(np.max(np.abs(counts[0] / sizes[0] - counts[1] / sizes[1]) / error))


def shares_disagree(apart: float) -> list[str]:
    """A sentence where `shares_apart` is more than chance makes it."""
    if apart <= SHARES_DISAGREE:
        return []
    return [
        "the shares of the modes are uncertain: the pilot ensemble and the whole one differ by "
        f"{apart:.1f} standard errors in how many draws are around one of them; {REMEDY}"
    ]
