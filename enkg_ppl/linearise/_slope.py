"""The linear map that best predicts the simulator's output, learned from all simulations so far.

Simulations stay true: a pair (draw, output) from an earlier noise level still says something about the same map.
Pairs are kept for a few levels, older ones count less, and ridge regression turns them into a slope. Its penalty is
chosen by leave-one-out prediction, which tells apart a map that is linear (almost no penalty: with as many pairs as
the draws have directions it is found exactly) from one whose curvature looks like noise.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from enkg_ppl.linearise._local_slope import PENALTIES, expected_variances, local_ridge
from enkg_ppl.linearise._penalty import LeaveOneOut
from enkg_ppl.linearise._ridge import power_of_two, ridge
from enkg_ppl.priors import Grid
from enkg_ppl.types import Ensemble

# Pairs are kept until there are this many: on a field of as many unknowns they determine a linear map.
ROWS = 1024
# Weight of what a slope missed before, beside what it misses now.
REMEMBER = 0.5


class Pairs(NamedTuple):
    """Centred draws and outputs of the last levels, newest first, and the slopes fitted to them.

    Attributes:
        draws: conditional draws less their mean.
        outputs: of the simulator, less their mean.
        usable: 1 where there is a pair, 0 elsewhere.
        slope: the one that is used.
        candidates: slopes that compete to predict the next level's outputs.
        misses: prediction error of each candidate on unseen outputs, an exponentially forgetting mean over the levels.
    """

    draws: Float[Array, "levels particles dim"]
    outputs: Float[Array, "levels particles m"]
    usable: Float[Array, "levels particles"]
    slope: Float[Array, "dim m"]
    candidates: Float[Array, "candidates dim m"]
    misses: Float[Array, " candidates"]


def no_pairs(num_particles: int, dim: int, m: int, dtype, grid: Grid | None = None) -> Pairs:
    """Room for the pairs of as many levels as make `ROWS`, two at least; the slope is zero until something is known."""
    levels = max(2, -(-ROWS // num_particles))
    shape = (levels, num_particles)
    candidates = 1 if grid is None else 1 + len(PENALTIES)
    shapes = ((*shape, dim), (*shape, m), shape, (dim, m), (candidates, dim, m), (candidates,))
    return Pairs(*(jnp.zeros(s, dtype) for s in shapes))


def judged(pairs: Pairs, r: Ensemble, q: Float[Array, "particles m"], root: Float[Array, " m"], n) -> Pairs:
    """The same with the slope that predicts outputs best, now that there are new centred pairs (r, q).

    `root`: units of the outputs. Where none predicts these better than nothing does, the slope is zero.
    """
    q = q / root[None]
    left = q[None] - jnp.einsum("jd,cdm->cjm", r, pairs.candidates) / root[None, None]
    now, nothing = jnp.sum(left**2, axis=(1, 2)) / (n - 1), jnp.sum(q**2) / (n - 1)
    known = jnp.any(pairs.misses > 0)
    misses = jnp.where(known, REMEMBER * pairs.misses + (1 - REMEMBER) * now, now)
    misses = jnp.where(jnp.isfinite(misses), misses, pairs.misses)
    best = jnp.argmin(misses)
    useful = now[best] < nothing
    return pairs._replace(slope=jnp.where(useful, pairs.candidates[best], 0.0), misses=misses)


def learn(
    pairs: Pairs,
    r: Ensemble,
    q: Float[Array, "particles m"],
    usable: Float[Array, " particles"],
    forgetting,
    reach: Float[Array, " m"] | float = jnp.inf,
    grid: Grid | None = None,
    forgetting_local=None,
) -> Pairs:
    """Add the centred pairs (r, q) of one level, let the older ones count `forgetting` times as much, and fit anew.

    `usable`: 1 for the pairs that are to count. `forgetting_local`: in its place for slopes that know a grid.
    `reach`: outputs farther from the middle are pulled in to it; outputs of older levels may be wilder than this one's.
    `grid`: where the latent vector is a field.
    """
    draws, outputs, usable = (
        jnp.concatenate([new[None], old[:-1]])
        for new, old in zip((r, q, usable), (pairs.draws, pairs.outputs, pairs.usable), strict=True)
    )
    most = 2 * jnp.broadcast_to(reach, q.shape[1:])[None, None]  # the middle itself may lie as far out
    outputs = jnp.clip(outputs, -most, most)

    def weighted(forgetting):
        """Rows of draws and of outputs, and what they count for."""
        weights = usable * forgetting ** jnp.arange(len(usable), dtype=r.dtype)[:, None]
        root = jnp.sqrt(weights).reshape(-1, 1)
        return root * draws.reshape(-1, r.shape[1]), root * outputs.reshape(-1, q.shape[1]), jnp.sum(weights)

    X, Y, _ = weighted(forgetting)
    candidates = ridge(X, Y, LeaveOneOut(1 / len(r)))[None]
    if grid is not None:
        X, Y, num_rows = weighted(forgetting if forgetting_local is None else forgetting_local)
        unit = power_of_two(jnp.max(jnp.abs(Y), axis=0))[None]  # squares neither overflow nor vanish
        variances = expected_variances(grid, pairs.slope)
        local = local_ridge(X, Y / unit, variances, num_rows, pairs.candidates[1:] / unit[None])
        candidates = jnp.concatenate([candidates, local * unit[None]])
    best = jnp.argmin(jnp.where(pairs.misses > 0, pairs.misses, 1.0))
    return Pairs(draws, outputs, usable, candidates[best], candidates, pairs.misses)
