"""Compiled programs live as long as the model that they were compiled for."""

import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import EnKG, GaussianPrior, InverseProblem, blackbox, infer
from enkg_ppl.evaluation._programs import _programs
from enkg_ppl.likelihood import GaussianLikelihood

Y = jnp.array([0.5, 0.2])


def model_and_box():
    simulate = blackbox(lambda a: np.stack([a, a**2], axis=1), (2,), vectorized=True)

    def model(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(simulate(a), 0.5).to_event(1), obs=y)

    return model, simulate


def run(model):
    enkg = EnKG(model, num_particles=64, progress_bar=False)
    enkg.run(jax.random.key(0), y=Y)
    return enkg


def test_nothing_of_a_model_is_kept_after_it():
    gc.collect()
    before = len(_programs)
    model, simulate = model_and_box()
    enkg = run(model)
    kept = [weakref.ref(model), weakref.ref(simulate)]
    assert len(_programs) == before + 1
    del model, simulate, enkg
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
    assert len(_programs) == before


def test_a_second_run_of_a_model_compiles_nothing(capfd):
    model, _ = model_and_box()
    first = run(model)
    with jax.log_compiles():
        again = EnKG(model, num_particles=64, progress_bar=False)
        again.run(jax.random.key(0), y=Y)
    assert "Compiling" not in capfd.readouterr().err
    np.testing.assert_array_equal(first.get_samples()["a"], again.get_samples()["a"])


def test_nothing_of_a_problem_is_kept_after_it():
    simulate = blackbox(lambda x: np.stack([x, x**2]), (2,))

    def forward(z):
        return simulate(z[0])

    kept = [weakref.ref(forward), weakref.ref(simulate)]
    problem = InverseProblem(GaussianPrior(jnp.ones(1), jnp.ones(1)), forward, GaussianLikelihood(Y, 0.5))
    infer(jax.random.key(0), problem, num_particles=64)
    del problem, forward, simulate
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_errors_within_a_program_are_told_as_equinox_does(caplog):
    def model(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(eqx.error_if(a, a > 1, "the solver gave up"), 0.5), obs=y)

    with pytest.raises(Exception, match="the solver gave up") as caught:
        EnKG(model, num_particles=64, progress_bar=False).run(jax.random.key(0), y=0.5)
    assert type(caught.value).__name__ == "EquinoxRuntimeError"
    assert not caplog.records
