"""The guided flow: one scan or a host loop, whole or in chunks, the same numbers; never a gradient."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl import GaussianPrior, InverseProblem, KalmanCorrection, Karras, PublishedCorrection, blackbox, guide
from enkg_ppl.guidance import Correction
from enkg_ppl.likelihood import GaussianLikelihood

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


class Stumbling(Correction):
    """The default correction, whose steps lose two particles, and perhaps its memory."""

    of: KalmanCorrection = KalmanCorrection(num_steps=4)
    wreck: float = jnp.nan
    wreck_memory: bool = False

    def default_schedule(self, problem):
        return self.of.default_schedule(problem)

    def start(self, key, problem, num_particles, sigma):
        return self.of.start(key, problem, num_particles, sigma)

    def init(self, problem, x):
        return self.of.init(problem, x)

    def num_updates_at(self, index, num_steps):
        return 1

    def slope(self, memory):
        return self.of.slope(memory)

    def step(self, key, x, level, problem, respond, memory):
        x, new = self.of.step(key, x, level, problem, respond, memory)
        x = jnp.where(jnp.isin(jnp.arange(len(x)), jnp.array([1, 5]))[:, None], self.wreck, x)
        return x, jax.tree.map(lambda a: a * jnp.nan, new) if self.wreck_memory else new


@pytest.mark.parametrize("progress", [None, lambda *_: None], ids=["scan", "host"])
@pytest.mark.parametrize("wreck", [jnp.nan, jnp.inf])
def test_lost_particles_are_replaced_and_never_simulated(progress, wreck):
    def careful(x):
        assert np.isfinite(x).all()
        return np.tanh(x)

    simulate = blackbox(careful, (3,), vectorized=True)
    problem = InverseProblem(PROBLEM.prior, simulate, PROBLEM.likelihood)
    options = {"num_particles": 16, "progress": progress}
    posterior = guide(jr.key(0), problem, correction=Stumbling(wreck=wreck), **options)
    draws = np.asarray(posterior.draws)
    assert np.isfinite(draws).all()
    # In the last step they take the places of the first two that are left.
    np.testing.assert_array_equal(draws[[1, 5]], draws[[2, 7]])
    assert len(np.unique(draws, axis=0)) == 14
    assert posterior.num_forward_evaluations == simulate.num_calls == 4 * 16


def test_a_memory_that_is_lost_does_not_spread():
    posterior = guide(jr.key(0), PROBLEM, num_particles=16, correction=Stumbling(wreck_memory=True))
    assert np.isfinite(posterior.draws).all()
    np.testing.assert_array_equal(posterior.slope, 0.0)  # as it was before the first step


def test_where_every_particle_is_lost_they_stay():
    class Lost(Stumbling):
        def step(self, key, x, level, problem, respond, memory):
            return x * jnp.nan, memory

    for progress in (None, lambda *_: None):
        posterior = guide(jr.key(0), PROBLEM, num_particles=16, correction=Lost(), progress=progress)
        assert np.isfinite(posterior.draws).all()
        assert len(np.unique(posterior.draws, axis=0)) == 16


@pytest.mark.parametrize("progress", [None, lambda *_: None], ids=["scan", "host"])
def test_particles_that_start_lost_are_not_simulated(progress):
    """What a correction asks to be simulated may be lost too: in a scan something finite stands in."""

    class Reckless(KalmanCorrection):
        def step(self, key, x, level, problem, respond, memory):
            bad = (jnp.arange(len(x)) == 3)[:, None]
            return super().step(key, x, level, problem, lambda z: respond(jnp.where(bad, jnp.nan, z)), memory)

    seen = []

    def careful(x):
        seen.append(np.isfinite(x).all())
        return np.tanh(x)

    simulate = blackbox(careful, (3,), vectorized=True)
    problem = InverseProblem(PROBLEM.prior, simulate, PROBLEM.likelihood)
    posterior = guide(jr.key(0), problem, num_particles=16, correction=Reckless(4), progress=progress)
    assert all(seen)
    assert np.isfinite(posterior.draws).all()
