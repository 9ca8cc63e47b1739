"""Where moves are made: positions of particles, in z or in coordinates that whiten a hierarchy given its scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from enkg_ppl.bijections._warp import candidates, choose_given, held_out, significant
from enkg_ppl.evaluation._blocks import in_blocks
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.evaluation._programs import compiled
from enkg_ppl.likelihood import Response
from enkg_ppl.linearise._conditional import MOST_GIVEN, MOST_WORK, ConditionalGaussian, fit_conditional
from enkg_ppl.linearise._ridge import affine_ridge
from enkg_ppl.refinement._peaks import Peak, nearest_peak
from enkg_ppl.types import AnyArray, Ensemble, Vector

LEAST_PAIRS = 4  # simulations for each dimension, to fit a conditional Gaussian to
LEAST_CHANGE = 1e-3  # of slopes, as a share of the largest
LEAST_SHARE = 0.01  # of the variance of a prediction, that counts as an effect on it
MOST_NOISES = 64  # data whose noise is looked at


class Group(NamedTuple):
    """Particles, as NumPy arrays between the moves."""

    position: Ensemble
    log_prior: Float[AnyArray, " particles"]  # density of the position
    log_likelihood: Float[AnyArray, " particles"]


class Space:
    """The simulator as a function of positions; `conditional`: None where positions are z.

    `peaks`: of the posterior, in z, where a search found several that lie apart.
    """

    def __init__(
        self,
        evaluate: Evaluator,
        conditional: ConditionalGaussian | None = None,
        peaks: Sequence[Peak] = (),
    ):
        self.evaluate, self.conditional, self.peaks = evaluate, conditional, peaks

    @property
    def block(self) -> int:
        return self.evaluate.batch_size

    @property
    def remaining(self) -> float:
        return self.evaluate.remaining

    def affords(self, num: float) -> bool:
        """Whether so many evaluations may still be made; see `Ledger.affords`."""
        return self.evaluate.affords(num)

    def group(self, position: Ensemble) -> Group:
        """The particles at these positions: one forward evaluation each."""
        z, log_prior = self.latents(position)
        return Group(position, log_prior, self.evaluate.log_likelihood(z))

    def latents(self, position: Ensemble) -> tuple[Ensemble, Float[np.ndarray, " particles"]]:
        """z of every position, and the prior's log density there."""
        if self.conditional is None:
            return position, log_standard_normal(position)
        z, log_jacobian = in_blocks(_inverse, self.block, (self.conditional,), position)
        return z, log_standard_normal(z) + log_jacobian

    def labels(self, position: Ensemble) -> Int[np.ndarray, " particles"] | None:
        """The peak that every particle belongs to; None where there is only one."""
        return nearest_peak(self.peaks, self.latents(position)[0]) if len(self.peaks) > 1 else None

    def positions(self, z: Ensemble) -> Ensemble:
        """The inverse of `latents`."""
        return z if self.conditional is None else self._forward(z)[0]

    def _forward(self, z: Ensemble) -> tuple[np.ndarray, np.ndarray]:
        return in_blocks(_forward, self.block, (self.conditional,), z)


@compiled
def _inverse(conditional: ConditionalGaussian, position: Ensemble):
    return jax.vmap(conditional.inverse)(position)


@compiled
def _forward(conditional: ConditionalGaussian, z: Ensemble):
    return jax.vmap(conditional.forward)(z)


@compiled
def _free(unconstrained_values: Callable[[Vector], Vector], z: Ensemble):
    return jax.vmap(unconstrained_values)(z)


@compiled
def _slopes(unconstrained_values: Callable[[Vector], Vector], z: Ensemble) -> Float[AnyArray, "particles free dim"]:
    """How the free values answer to unit steps of z."""
    identity = jnp.eye(z.shape[1], dtype=z.dtype)
    return jax.vmap(lambda z: jax.vmap(lambda e: unconstrained_values(z + e) - unconstrained_values(z))(identity).T)(z)


def log_standard_normal(z: Ensemble) -> Float[np.ndarray, " particles"]:
    """Log density of every row under N(0, I)."""
    z = np.asarray(z)
    return -0.5 * (z**2).sum(axis=1) - np.asarray(0.5 * z.shape[1] * np.log(2 * np.pi), z.dtype)


class Simulated(NamedTuple):
    """Simulations of a few hundred particles: z, their free values, and what the simulator's output meant."""

    z: Ensemble
    free: Ensemble
    response: Response


def simulated(
    evaluate: Evaluator, unconstrained_values: Callable[[Vector], Vector] | None, z: Ensemble, response: Response
) -> Simulated | None:
    """Those of finite numbers; None where there are too few, or too many data, to fit a conditional Gaussian to."""
    arrays = [np.asarray(a) for a in (z, *response)]
    usable = np.logical_and.reduce([np.isfinite(a).all(axis=1) for a in arrays])
    usable &= (np.abs(arrays[1]) < 0.1 * np.finfo(arrays[1].dtype).max ** 0.5).all(axis=1)  # squares must not overflow
    z, *parts = (a[usable] for a in arrays)
    (n, d), m = z.shape, parts[0].shape[1]
    if d < 2 or n < LEAST_PAIRS * d or m * d**2 > MOST_WORK:
        return None
    free = z if unconstrained_values is None else in_blocks(_free, evaluate.batch_size, (unconstrained_values,), z)
    return Simulated(z, free, Response(*(jnp.asarray(a) for a in parts)))


def scales(
    evaluate: Evaluator, unconstrained_values: Callable[[Vector], Vector] | None, pairs: Simulated
) -> tuple[int, ...]:
    """The coordinates of z that the slopes of others' free values depend on, or the size of the noise.

    None where there are too many.
    """
    found = (
        set() if unconstrained_values is None else _scales_of_slopes(unconstrained_values, pairs.z, evaluate.batch_size)
    )
    found |= _scales_of_noise(pairs)
    return tuple(sorted(found)) if len(found) <= min(MOST_GIVEN, pairs.z.shape[1] - 1) else ()


def _scales_of_slopes(unconstrained_values: Callable[[Vector], Vector], z: Ensemble, block: int) -> set[int]:
    """The fewest coordinates, nearly, given which the free values are linear in all others.

    Two coordinates are joined where the slope with respect to one depends on the other; of each pair one must be given.
    """
    d, dtype = z.shape[1], z.dtype
    # At what the model makes of numbers without meaning, since equal particles would hide what depends on them.
    here, there = np.random.default_rng(0).standard_normal((2, d)).astype(dtype)
    rows = np.repeat(here[None], d + 1, axis=0)
    rows[range(d), range(d)] = there
    slopes = in_blocks(_slopes, block, (unconstrained_values,), rows)
    changes = np.abs(slopes[:d] - slopes[d])  # of every coordinate (first), slopes (value, coordinate)
    # A site's value may be any function of its own coordinate; what is computed of sites, of any coordinate alone.
    changes[range(d), range(d), range(d)] = 0
    bends = changes > LEAST_CHANGE * np.abs(slopes).max(axis=(0, 2))[None, :, None]
    given = {int(j) for j in np.flatnonzero(np.diagonal(np.any(bends[:, :d], axis=1)))}
    joined = np.any(bends, axis=1)
    joined |= joined.T
    curved = 0.5 * np.diagonal(joined)  # of two that are joined, rather the one that is not linear itself
    joined[range(d), range(d)] = False
    while True:
        joined[list(given)], joined[:, list(given)] = False, False
        if not joined.any():
            return given
        given.add(int(np.argmax(np.where(joined.any(axis=0), joined.sum(axis=0) + curved, 0))))


def _scales_of_noise(pairs: Simulated) -> set[int]:
    """Coordinates that decide on the noise of a datum and not on its prediction.

    By ranks, which far pairs do not sway.
    """
    prediction, noise = (np.asarray(a, float) for a in (pairs.response.prediction, pairs.response.noise))
    some = np.unique(np.linspace(0, noise.shape[1] - 1, MOST_NOISES).astype(int))
    some = some[np.ptp(noise[:, some], axis=0) > 0]
    if not len(some):
        return set()
    free = np.asarray(pairs.free)[:, : pairs.z.shape[1]]
    free, prediction, noise = (_ranks(a) for a in (free, prediction[:, some], noise[:, some]))
    of_noise = (noise.T @ free / len(free)) ** 2
    slope, _, _ = affine_ridge(free, prediction)
    return {int(j) for j in np.flatnonzero(np.any((of_noise > 0.5) & (slope**2 < LEAST_SHARE), axis=0))}


def _ranks(a: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Of every column, with mean 0 and variance 1; 0 where all are the same."""
    ranks = a.argsort(axis=0).argsort(axis=0).astype(float)
    ranks = (ranks - ranks.mean(axis=0)) / ranks.std(axis=0)
    return np.where(np.ptp(a, axis=0) > 0, ranks, 0.0)


def best_space(
    rng: np.random.Generator,
    evaluate: Evaluator,
    unconstrained_values: Callable[[Vector], Vector] | None,
    z: Ensemble,
    pairs: Simulated,
    given: tuple[int, ...],
) -> Space:
    """z, or the coordinates in which these particles look most like a (straightened) Gaussian.

    `pairs`: what the conditional Gaussian is fitted to; `given`: what it is conditional on at least. Other unknowns
    join these one by one, where that raises the density of held-out particles.
    """
    train = rng.random(len(z)) < 0.75

    def attempt(given: tuple[int, ...] | None) -> tuple[Space, Float[np.ndarray, " particles"]]:
        """The coordinates given these unknowns (None: z), and the log density of held-out particles."""
        if given is None:
            space, position, log_jacobian = Space(evaluate), z, np.zeros(len(z))
        else:
            space = Space(
                evaluate, fit_conditional(unconstrained_values, pairs.free, pairs.response, given, z.shape[1])
            )
            position, log_jacobian = space._forward(z)
        position = np.asarray(position, float)
        followed = choose_given(position[train], position[~train], most=1)
        return space, held_out(position[train], position[~train], followed) + log_jacobian[~train]

    best, density = attempt(given)
    plain, of_plain = attempt(None)
    while len(given) < min(MOST_GIVEN, z.shape[1] - 1):
        others = {j: attempt((*given, j)) for j in candidates(np.asarray(z, float)) if j not in given}
        if not others:
            break
        j = max(others, key=lambda j: others[j][1].mean())
        if not significant(others[j][1] - density):
            break
        given, (best, density) = (*given, j), others[j]
    return best if significant(density - of_plain) else plain
