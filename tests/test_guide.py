"""The guided flow: one scan or a host loop, whole or in chunks, the same numbers; never a gradient."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl import (
    GaussianLikelihood,
    GaussianPrior,
    InverseProblem,
    KalmanCorrection,
    Karras,
    PublishedCorrection,
    blackbox,
    guide,
)

CORRECTIONS = [KalmanCorrection(num_steps=4), PublishedCorrection(0.5, num_updates=2)]
SCHEDULE = Karras(8, 0.1, 3.0)


@jax.custom_jvp
def guarded(x):
    """A simulator that raises when it is traced for a gradient."""
    return jnp.tanh(x) + 0.1 * x**2


@guarded.defjvp
def _(primals, tangents):
    raise AssertionError("the simulator was differentiated")


PROBLEM = InverseProblem(GaussianPrior.standard(3), guarded, GaussianLikelihood(jnp.array([0.4, -0.2, 0.1]), 0.2))


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: type(c).__name__)
def test_scan_and_host_loop_agree(correction):
    seen = []
    options = {"num_particles": 16, "correction": correction, "schedule": SCHEDULE}
    scanned = guide(jr.key(0), PROBLEM, **options)
    looped = guide(jr.key(0), PROBLEM, progress=lambda *done: seen.append(done), **options)
    np.testing.assert_allclose(scanned.draws, looped.draws, rtol=1e-9, atol=1e-11)
    assert seen == [(i + 1, 8) for i in range(8)]


def test_chunks_change_nothing():
    whole = guide(jr.key(0), PROBLEM, num_particles=15, schedule=SCHEDULE)
    chunked = guide(jr.key(0), PROBLEM, num_particles=15, schedule=SCHEDULE, chunk_size=4)
    np.testing.assert_allclose(whole.draws, chunked.draws, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="chunk_size must be at least 1 particle"):
        guide(jr.key(0), PROBLEM, num_particles=15, schedule=SCHEDULE, chunk_size=0)


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("progress", [None, lambda *_: None], ids=["scan", "host"])
def test_evaluations_are_counted_exactly(correction, progress):
    simulate = blackbox(lambda x: np.tanh(x) + 0.1 * x**2, (3,), vectorized=True)
    problem = InverseProblem(PROBLEM.prior, simulate, PROBLEM.likelihood)
    posterior = guide(jr.key(0), problem, num_particles=16, correction=correction, schedule=SCHEDULE, progress=progress)
    assert posterior.num_forward_evaluations == simulate.num_calls > 0


def test_the_guard_works():
    with pytest.raises(AssertionError, match="was differentiated"):
        jax.grad(lambda x: guarded(x).sum())(jnp.ones(3))
