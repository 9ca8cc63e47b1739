"""The guided flow: an ensemble goes down the noise levels, steered by the data at each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from enkg_ppl._blackbox import raise_host_failure
from enkg_ppl._correction import Correction, KalmanCorrection, Level
from enkg_ppl._forward import ensemble_forward
from enkg_ppl._posterior import Posterior
from enkg_ppl._problem import InverseProblem
from enkg_ppl._schedule import Schedule
from enkg_ppl._types import Ensemble, Key, Vector


def guide(
    key: Key,
    problem: InverseProblem,
    *,
    num_particles: int = 1024,
    correction: Correction | None = None,
    schedule: Schedule | None = None,
    chunk_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Posterior:
    """Carry an ensemble from the largest noise level to 0, steering it towards the data.

    `num_particles`: J. `correction`: how to steer (default `KalmanCorrection()`). `schedule`: noise levels
    (default: the correction's own). `chunk_size`: particles simulated at a time, for memory (default: all).
    `progress`: called with (levels done, levels in all); it makes the loop run on the host, level by level,
    instead of as one `lax.scan`, with the same numbers.

    Returns a `Posterior` whose draws, shape (J, dim), have equal weights and no log likelihood.
    Raises `ValueError` for fewer than two particles, and what a black box raised.

    Source: Zheng et al., arXiv 2409.20175, algorithm 1.
    """
    if num_particles < 2:
        raise ValueError(
            f"num_particles must be at least 2, since ensemble covariances need two particles; got {num_particles}"
        )
    correction = KalmanCorrection() if correction is None else correction
    levels = (correction.default_schedule(problem) if schedule is None else schedule).levels()
    with raise_host_failure():
        if progress is None:
            x = _guide_scan(key, problem, correction, levels, num_particles, chunk_size)
        else:
            x = _guide_host(key, problem, correction, levels, num_particles, chunk_size, progress)
        x = jax.block_until_ready(x)
    num_steps = levels.shape[0] - 1
    return Posterior(
        draws=x,
        num_forward_evaluations=num_particles * correction.evaluations_per_particle(num_steps),
        method=type(correction).__name__,
    )


def _begin(key, problem, correction, levels, num_particles, chunk_size):
    key, key_start = jr.split(key)
    x = correction.start(key_start, problem, num_particles, levels[0])
    memory = correction.init(problem, ensemble_forward(problem.forward, chunk_size), x)
    return key, x, memory


def _advance(
    carry: tuple[Ensemble, Any], index, key: Key, problem, correction, levels: Vector, chunk_size
) -> tuple[Ensemble, Any]:
    """One level of the guided flow."""
    x, memory = carry
    level = Level(index, levels.shape[0] - 1, levels[index], levels[index + 1])
    evaluate = ensemble_forward(problem.forward, chunk_size)
    return correction.step(jr.fold_in(key, index), x, level, problem, evaluate, memory)


@eqx.filter_jit
def _guide_scan(key, problem, correction, levels, num_particles, chunk_size):
    key, x, memory = _begin(key, problem, correction, levels, num_particles, chunk_size)

    def body(carry, index):
        return _advance(carry, index, key, problem, correction, levels, chunk_size), None

    (x, _), _ = jax.lax.scan(body, (x, memory), jnp.arange(levels.shape[0] - 1))
    return x


_begin_jit = eqx.filter_jit(_begin)
_advance_jit = eqx.filter_jit(_advance)


def _guide_host(key, problem, correction, levels, num_particles, chunk_size, progress):
    key, x, memory = _begin_jit(key, problem, correction, levels, num_particles, chunk_size)
    num_steps = levels.shape[0] - 1
    for index in range(num_steps):
        x, memory = _advance_jit(
            (x, memory), jnp.asarray(index), key, problem, correction, levels, chunk_size
        )
        jax.block_until_ready(x)  # a failing black box is reported at its own level
        progress(index + 1, num_steps)
    return x
