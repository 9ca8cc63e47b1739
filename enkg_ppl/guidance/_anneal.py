"""The guided ensemble as a result of its own: once down the noise levels, and again while it has not arrived.

A simulator that bends is not the straight line that the Kalman step takes it for, least of all at large noise levels,
where the draws lie far apart. What is learned there is known to be wrong: the run knows how much output variance the
slope leaves unexplained, and whether the draws fit the data. While either says that the ensemble is not the posterior,
the draws are noised to a middle level, which is a Gibbs move and leaves the posterior as it is, and go down once more
with the slope that is known by then.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.random as jr

from enkg_ppl._random import normals
from enkg_ppl.diagnostics._fields import EnsembleCheck
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.guidance._base import Correction
from enkg_ppl.guidance._guide import run_levels
from enkg_ppl.posterior import Posterior
from enkg_ppl.problem import InverseProblem
from enkg_ppl.schedule import Karras
from enkg_ppl.types import Key

# A cycle: to this share of the prior's scale, and in so many levels down to that one, so near that little bends.
MIDDLE_LEVEL, LAST_LEVEL, CYCLE_LEVELS = 0.15, 0.015, 12
MAX_CYCLES = 6
# It has arrived where the slope leaves less unexplained than the noise, and chi-square per datum is below this, or no
# larger than chance makes it.
ARRIVED_UNEXPLAINED, ARRIVED_CHI2, CHANCE = 1.0, 1.2, 0.01
# A cycle that brings both figures down by less than this share is the last.
LEAST_GAIN = 0.05


def has_arrived(found: EnsembleCheck) -> bool:
    """Whether a checked ensemble needs no further cycle."""
    fits = found.chi2_per_datum <= ARRIVED_CHI2 or found.chi2_tail >= CHANCE
    return bool(found.unexplained <= ARRIVED_UNEXPLAINED and fits)


def anneal(
    key: Key,
    problem: InverseProblem,
    correction: Correction,
    evaluator: Evaluator,
    num_particles: int,
    check: Callable[[Posterior], EnsembleCheck | None],
    progress: Callable[[int, int], None] | None = None,
) -> Posterior:
    """Cycles of the guided flow until it has arrived, brings nothing more, or the budget ends.

    `check`: simulates an ensemble once more and enters what it finds, or None where the budget has no room for that.
    The posterior's stats say how many cycles there were, and why it ended.
    """
    levels = correction.default_schedule(problem).levels()
    before = evaluator.count
    carry = run_levels(key, problem, correction, levels, num_particles, evaluator, progress)

    def posterior() -> Posterior:
        x, memory = carry
        return Posterior(x, evaluator.count - before, type(correction).__name__, slope=correction.slope(memory))

    flow = posterior()
    found, num_cycles, why = check(flow), 0, "arrived"
    scale = problem.prior.scale
    levels = Karras(CYCLE_LEVELS, LAST_LEVEL * scale, MIDDLE_LEVEL * scale).levels()
    while found is not None and not has_arrived(found):
        if num_cycles == MAX_CYCLES:
            why = "not arrived after all cycles"
            break
        if evaluator.remaining < (CYCLE_LEVELS + 1) * num_particles:
            why = "not arrived: the budget has no room for another cycle"
            break
        key, key_noise, key_cycle = jr.split(jr.fold_in(key, num_cycles), 3)
        x, memory = carry
        x = x + levels[0].astype(x.dtype) * normals(key_noise, x.shape, x.dtype)
        carry = run_levels(
            key_cycle, problem, correction, levels, num_particles, evaluator, progress, carry=(x, memory)
        )
        flow, previous, num_cycles = posterior(), found, num_cycles + 1
        found = check(flow)
        if found is not None and not has_arrived(found) and not _gains(previous, found):
            why = "not arrived: the last cycle brought nothing"
            break
    if found is None:
        why = "not checked: the budget has no room for that"
    elif why != "arrived" and not found.warnings():
        remedy = "raise max_forward_evaluations, or use a refinement" if "budget" in why else "use a refinement"
        flow.messages.append(
            f"the draws fit the data worse than they should (chi-square per datum {found.chi2_per_datum:.3g}, where 1 "
            f"is due): the guided ensemble has not arrived at the posterior; {remedy}"
        )
    flow.stats |= {"num_cycles": num_cycles, "cycles": why}
    return flow


def _gains(before: EnsembleCheck, after: EnsembleCheck) -> bool:
    less = 1 - LEAST_GAIN
    return after.unexplained < less * before.unexplained or after.chi2_per_datum < less * before.chi2_per_datum
