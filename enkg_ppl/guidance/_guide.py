"""The guided flow: an ensemble goes down the noise levels, steered by the data at each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array, Bool

from enkg_ppl._keywords import explain_keywords
from enkg_ppl.evaluation._black_box import raise_host_failure, watch_black_boxes
from enkg_ppl.evaluation._evaluator import Evaluator, Respond, ensemble_response
from enkg_ppl.evaluation._ledger import Ledger
from enkg_ppl.guidance._base import Correction, Level
from enkg_ppl.guidance._kalman import KalmanCorrection
from enkg_ppl.posterior import Posterior
from enkg_ppl.problem import InverseProblem
from enkg_ppl.schedule import Schedule
from enkg_ppl.types import Ensemble, Key, Vector


@explain_keywords("guide")
@watch_black_boxes()
def guide(
    key: Key,
    problem: InverseProblem,
    *,
    num_particles: int = 1024,
    correction: Correction | None = None,
    schedule: Schedule | None = None,
    chunk_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    evaluator: Evaluator | None = None,
) -> Posterior:
    """Carry an ensemble from the largest noise level to 0, guided by the data.

    Particles that are not finite are never simulated. One that becomes so in a step is replaced by a finite one.

    Args:
        key: random key.
        problem: the inverse problem.
        num_particles: J.
        correction: how the data guide the flow (default `KalmanCorrection.for_problem(problem)`).
        schedule: noise levels (default: the correction's own).
        chunk_size: particles simulated at a time, to bound memory (default: all).
        progress: called with (levels done, levels in all). It, or an `evaluator`, makes the loop run on the host, level
            by level, instead of as one `lax.scan`, with the same numbers.
        evaluator: simulates and counts.

    Returns:
        A `Posterior` whose draws, shape (J, dim), have equal weights and no log likelihood.

    Raises:
        ValueError: for fewer than two particles, and, before anything is simulated, for more simulations than the
            evaluator may make.
        BlackBoxError: where a black box fails.

    Source: Zheng et al., arXiv 2409.20175, algorithm 1.
    """
    if num_particles < 2:
        raise ValueError(
            f"num_particles must be at least 2, since ensemble covariances need two particles; got {num_particles}"
        )
    correction = KalmanCorrection.for_problem(problem) if correction is None else correction
    levels = (correction.default_schedule(problem) if schedule is None else schedule).levels()
    num_steps = levels.shape[0] - 1
    planned = sum(correction.num_updates_at(index, num_steps) for index in range(num_steps))
    if progress is None and evaluator is None:
        ledger, before = Ledger(), 0
        ledger.book(num_particles * planned)
        with raise_host_failure():
            x, slope = jax.block_until_ready(_guide_scan(key, problem, correction, levels, num_particles, chunk_size))
    else:
        evaluator = evaluator or Evaluator(problem, num_particles, chunk_size)
        ledger, before = evaluator.ledger, evaluator.count
        if num_particles * planned > evaluator.remaining:
            raise ValueError(_too_many(correction, num_steps, planned, num_particles, ledger))
        x, memory = run_levels(key, problem, correction, levels, num_particles, evaluator, progress)
        slope = correction.slope(memory)
    return Posterior(
        draws=x,
        num_forward_evaluations=ledger.count - before,
        method=type(correction).__name__,
        slope=slope,
    )


def _too_many(correction: Correction, num_steps: int, planned: int, num_particles: int, ledger: Ledger) -> str:
    need = planned * num_particles
    what = (
        f"{type(correction).__name__} on {num_steps} noise levels, which makes {need:,} simulations ({planned} of each "
        f"of {num_particles} particles)"
    )
    if ledger.held:
        what += f" beside {ledger.held:,} that are kept for what follows"
    remedy = "take fewer levels or particles, or leave correction and schedule out, whose levels then fit the budget"
    return ledger.too_few(what, need, remedy)


@eqx.filter_jit
def _guide_scan(key, problem, correction, levels, num_particles, chunk_size):
    """The guided ensemble, and the slope learned on the way."""

    def respond(x):
        return ensemble_response(problem, x, chunk_size)

    def body(carry, index):
        return advance(carry, index, key, problem, correction, levels, respond), None

    carry = begin(key, problem, correction, levels, num_particles)
    (x, memory), _ = jax.lax.scan(body, carry, jnp.arange(levels.shape[0] - 1))
    return x, correction.slope(memory)


def run_levels(
    key: Key,
    problem: InverseProblem,
    correction: Correction,
    levels: Vector,
    num_particles: int,
    evaluator: Evaluator,
    progress: Callable[[int, int], None] | None = None,
    carry: tuple[Ensemble, Any] | None = None,
) -> tuple[Ensemble, Any]:
    """Down these levels on the host, one by one; the ensemble, and the correction's memory.

    `carry`: ensemble at the first level and memory to begin with; by default from the prior.
    """
    num_steps = levels.shape[0] - 1
    carry = begin(key, problem, correction, levels, num_particles) if carry is None else carry
    for index in range(num_steps):
        # As an array: a Python number would be part of the program, and every level be compiled anew.
        carry = advance(carry, jnp.asarray(index), key, problem, correction, levels, evaluator.response)
        evaluator.reach(f"guided to level {index + 1} of {num_steps}")
        if progress is not None:
            progress(index + 1, num_steps)
    return carry


def begin(key: Key, problem, correction, levels: Vector, num_particles: int) -> tuple[Ensemble, Any]:
    """The ensemble at the first noise level, and the correction's memory."""
    x = correction.start(jr.fold_in(key, levels.shape[0]), problem, num_particles, levels[0])
    return x, correction.init(problem, x)


def advance(carry: tuple[Ensemble, Any], index, key: Key, problem, correction, levels: Vector, respond: Respond):
    """One level of the guided flow."""
    x, memory = carry
    level = Level(index, levels.shape[0] - 1, levels[index], levels[index + 1])
    after = correction.step(jr.fold_in(key, index), x, level, problem, respond, memory)
    finite = _all_finite(after)
    if not isinstance(finite, Tracer) and finite:  # on the host there is nothing to mend, nearly always
        return after
    return _mended(carry, after)


@eqx.filter_jit
def _all_finite(tree) -> Bool[Array, ""]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    return jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()


@eqx.filter_jit
def _mended(before: tuple[Ensemble, Any], after: tuple[Ensemble, Any]) -> tuple[Ensemble, Any]:
    """A step that went wrong for some particles: they take the places of others, in turn, where it went right.

    Where it went wrong for all, they stay where they were. So does a memory that is no longer finite, which would
    carry the fault to every particle of the next level.
    """
    x, memory = after
    finite = jnp.all(jnp.isfinite(x), axis=1)
    right = jnp.argsort(~finite, stable=True)  # the finite ones first
    stand_in = right[jnp.arange(len(x)) % jnp.maximum(jnp.sum(finite), 1)]
    x = jnp.where(finite[:, None], x, x[stand_in])
    x = jnp.where(jnp.any(finite), x, before[0])
    whole = _all_finite(memory)
    return x, jax.tree.map(lambda new, old: jnp.where(whole, new, old), memory, before[1])
