"""Move an ensemble until it has forgotten where it was: cycles of jumps and slices on one half and then the other."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
from jaxtyping import Float

from enkg_ppl.mixtures._fit import DFS, Shape, best_fit, fit
from enkg_ppl.mixtures._student import Reference, labels, mean_log_prob
from enkg_ppl.posterior import MovesRecord
from enkg_ppl.refinement._target import Target
from enkg_ppl.refinement.moves._jump_and_slice import jump, slice_move
from enkg_ppl.refinement.moves._space import Group, Space
from enkg_ppl.types import AnyArray, Ensemble

NUM_JUMPS = 2  # of each particle in a cycle, before its slice move
USELESS = 0.02  # acceptance of jumps below which there are no more of them
# Components of the reference that hold a smaller share of the particles do not count as places of their own.
LEAST_SHARE = 0.02
# A jump is an independence proposal as often as such jumps were accepted lately, within these bounds.
INDEPENDENCE_BOUNDS = (0.1, 0.9)


@dataclasses.dataclass(frozen=True)
class Cycles:
    """When to stop, and the reference of the moves.

    `num_components`: of the mixture, at most; `room`: for how many there is room. `max_correlation`: the largest, over
    ranks of z, of its distance from the median and of the log likelihood, and over membership in the components of the
    first reference, between the ensemble now and at the start.
    `least`, `most`: number of cycles.
    """

    num_components: int
    room: int
    max_correlation: float
    least: int
    most: int


@dataclasses.dataclass(frozen=True)
class Mixed:
    """How it went. `out_of_budget`: the cycles ended because evaluations ran out."""

    num_cycles: int
    correlation: float
    limit: float
    jump_acceptance: float
    independence_acceptance: float
    out_of_budget: bool

    def record(self) -> MovesRecord:
        """The same for `Statistics`."""
        return cast(MovesRecord, dataclasses.asdict(self))


def mix(
    rng: np.random.Generator,
    space: Space,
    target: Target,
    ensemble: Group,
    cycles: Cycles,
    *,
    reference: Reference | None = None,
    reserve: int = 0,
) -> tuple[Group, Mixed]:
    """Cycles of jumps and a slice on each half in turn, until the starting places are forgotten.

    `reference`: one that may be better than mixtures fitted to the other half; the better one is used.
    `reserve`: evaluations to leave over.
    """
    num_particles = len(ensemble.position)
    # Correlations of independent ensembles scatter by 1 / sqrt(J): no use in waiting for less.
    limit = max(cycles.max_correlation, 3 / num_particles**0.5)
    start = ensemble
    places: Reference | None = None  # components that particles are to move between
    half = num_particles // 2
    halves = [Group(*(a[:half] for a in ensemble)), Group(*(a[half:] for a in ensemble))]
    references = [_References(cycles, reference) for _ in halves]
    cycle, correlation, independence_share, num_jumps, out_of_budget = 0, 1.0, 0.5, NUM_JUMPS, False
    accepted, tried = np.zeros(2), np.zeros(2)  # of jumps that keep the place, and of fresh ones
    while cycle < cycles.least or (cycle < cycles.most and correlation > limit):
        before = space.evaluate.count
        for k in (0, 1):
            other = halves[1 - k].position
            close, heavy = references[k].fitted(rng, other, space.labels(other))
            if places is None:
                places = close
            for reference in (close, heavy)[:num_jumps]:
                fresh = rng.random(len(halves[k].position)) < independence_share
                halves[k], moved = jump(rng, space, target, reference, halves[k], fresh)
                accepted += [moved[~fresh].sum(), moved[fresh].sum()]
                tried += [(~fresh).sum(), fresh.sum()]
            halves[k] = slice_move(rng, space, target, heavy, halves[k])
        cycle += 1
        independence_share = float(np.clip(2 * accepted[1] / max(tried[1], 1), *INDEPENDENCE_BOUNDS))
        if np.all(accepted < USELESS * tried):
            num_jumps = 0  # in many dimensions only slices get anywhere
        assert places is not None
        ensemble = Group(*(np.concatenate(pair) for pair in zip(*halves, strict=True)))
        correlation = max(
            largest_correlation(_features(start), _features(ensemble)),
            largest_correlation(memberships(places, start.position), memberships(places, ensemble.position)),
        )
        goes_on = cycle < cycles.least or (cycle < cycles.most and correlation > limit)
        # A cycle costs an evaluation a particle at least.
        cost = max(1.2 * (space.evaluate.count - before), num_particles)
        out_of_budget = goes_on and not space.affords(reserve + cost)
        if out_of_budget:
            break
    kept, fresh = accepted / np.maximum(tried, 1)
    return ensemble, Mixed(cycle, correlation, limit, float(kept), float(fresh), out_of_budget and correlation > limit)


class _References:
    """The references of one half's moves: the closest, for jumps, and one with heavy tails, for jumps and slices."""

    def __init__(self, cycles: Cycles, given: Reference | None):
        self.cycles, self.given = cycles, given
        self.shape: Shape | None = None

    def fitted(self, rng, other: Ensemble, labels) -> tuple[Reference, Reference]:
        if self.shape is None:  # chosen once: it is the fit that follows the other half
            self.shape, score = best_fit(rng, other, self.cycles.num_components, self.cycles.room, labels)
            if self.given is not None and mean_log_prob(self.given, other) < score:
                self.given = None
        if self.given is not None:
            return self.given, self.given
        close = fit(rng, other, self.shape, self.cycles.room, labels)
        if self.shape.df == DFS[0]:
            return close, close
        # Where the reference's tails are thinner than the target's, slices stall and jumps never get there.
        return close, fit(rng, other, self.shape._replace(df=DFS[0]), self.cycles.room, labels)


def _features(group: Group) -> Float[np.ndarray, "particles features"]:
    return features(group.position, group.log_likelihood)


def features(z: Ensemble, log_likelihood: Float[AnyArray, " particles"]) -> Float[np.ndarray, "particles features"]:
    """Ranks of z, of its distance from the median and of the log likelihood, standardised over the ensemble.

    Ranks, so that a few far particles do not decide for all.
    """
    z = np.asarray(z, float)
    columns = np.concatenate([z, np.abs(z - np.median(z, axis=0)), log_likelihood[:, None]], axis=1)
    ranks = np.argsort(np.argsort(columns, axis=0), axis=0).astype(float)
    return (ranks - ranks.mean(axis=0)) / ranks.std(axis=0)


def memberships(places: Reference, z: Ensemble) -> Float[np.ndarray, "particles components"]:
    """Which component each particle is in, standardised over the ensemble; zero where hardly any or all are.

    Particles may move about freely within a light mode, so that ranks are forgotten, and hardly ever leave it.
    """
    inside = labels(places, np.asarray(z, float))[:, None] == np.arange(places.num_components)
    share = inside.mean(axis=0)
    held = (share > LEAST_SHARE) & (share < 1 - LEAST_SHARE)
    return (inside - share) / np.sqrt(np.where(held, share * (1 - share), np.inf))


def largest_correlation(a: Float[np.ndarray, "particles features"], b) -> float:
    return float(np.max(np.abs(np.mean(a * b, axis=0))))
