"""Where good ends and poor begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from validation.store import Record


class Grade(NamedTuple):
    """A verdict on a run: its name, a mark, and the limits in words."""

    name: str
    mark: str
    words: str


GOOD = Grade(
    "good",
    "\N{BLACK CIRCLE}",
    "C2ST at most .52, means within 0.1 sd, sd ratios within .92 and 1.08, or as near as chance lets exact draws be "
    "(fields: L2 error at most 1.03 times that of the exact mean, SSR within .93 and 1.07; where the exact mean is not "
    "known, chi-square within .9 and 1.1, SSR too)",
)
FAIR = Grade(
    "fair",
    "\N{CIRCLE WITH LEFT HALF BLACK}",
    "C2ST at most .55, means within 0.2 sd, sd ratios within .9 and 1.15 (fields: 1.1; .85 and 1.15; chi-square within "
    ".85 and 1.3, SSR within .85 and 1.2)",
)
POOR = Grade("poor", "\N{WHITE CIRCLE}", "anything else")
GRADES = [GOOD, FAIR, POOR]

# C2ST, error of the mean, sd ratios; beyond 64 dimensions sliced W2 over that of exact draws in place of C2ST.
LIMITS = {GOOD: (0.52, 0.1, 0.92, 1.08, 1.3), FAIR: (0.55, 0.2, 0.9, 1.15, 2.0)}
# The limits are for this many draws; chance allows more for fewer.
NUM_DRAWS = 2000


def grade(record: Record) -> Grade:
    """The verdict on a finished run. Few draws widen the limits by their Monte Carlo error."""
    f = record.figures
    slack = max(1.0, (NUM_DRAWS / max(1, record.num_draws)) ** 0.5)
    for verdict, (c2st, mean, low, high, distance) in LIMITS.items():
        if f.get("c2st") is None:
            near = _below(f.get("sliced_w2"), distance * (f.get("sliced_w2_floor") or 0.0))
        else:
            near = _below(f["c2st"], 0.5 + (c2st - 0.5) * slack)
        moments = (
            _below(f.get("mean_worst"), max(mean, f.get("mean_floor") or 0.0))
            and _below(f.get("sd_max"), 1 + (high - 1) * slack)
            and (f.get("sd_min") or 0.0) >= 1 - (1 - low) * slack
        )
        if near and moments:
            return verdict
    return POOR


# For fields: distance of the mean from what was simulated, over that of the exact mean; spread-skill ratios.
FIELD_LIMITS = {GOOD: (1.03, 0.93, 1.07), FAIR: (1.1, 0.85, 1.15)}
# Where the exact mean is not known: spread-skill ratios, and chi-square per datum.
UNKNOWN_LIMITS = {GOOD: (0.9, 1.1, 0.9, 1.1), FAIR: (0.85, 1.2, 0.85, 1.3)}


def grade_all(records: Sequence[Record]) -> Grade:
    """The verdict on all finished runs of a method on a task: that of the worst.

    Beyond 64 dimensions, where the data were simulated from known unknowns, it is on the means over the runs of the
    relative L2 error and the spread-skill ratio, which scatter from one truth to the next; where the exact mean is not
    known, on the medians of that ratio and of chi-square.
    """
    if all(r.figures.get("c2st") is None and r.figures.get("l2_ratio") is not None for r in records):
        distance, ratio = (np.mean([r.figures[name] or 0.0 for r in records]) for name in ("l2_ratio", "ssr"))
        verdicts = (v for v, (most, low, high) in FIELD_LIMITS.items() if distance <= most and low <= ratio <= high)
        return next(verdicts, POOR)
    if all(r.figures.get("chi2") is not None for r in records):
        ratio, chi2 = (np.median([r.figures[name] or 0.0 for r in records]) for name in ("ssr", "chi2"))
        verdicts = (v for v, (a, b, c, d) in UNKNOWN_LIMITS.items() if a <= ratio <= b and c <= chi2 <= d)
        return next(verdicts, POOR)
    return max((grade(r) for r in records), key=GRADES.index)


def _below(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit
