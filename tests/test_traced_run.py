"""`EnKG.run` inside `jax.jit`, `jax.vmap` and `jax.lax.map`: the draws of a run outside, data set by data set."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import EnKG, blackbox

X = np.arange(3.0)
YS = np.random.default_rng(0).normal(0.5 * X, 0.5, (2, 3))
KEYS = jr.split(jr.key(0), 2)


def model(X, y=None, noise=0.5):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    line = numpyro.deterministic("line", slope * X)
    numpyro.sample("y", dist.Normal(line, noise).to_event(1), obs=y)


def fitted(key, y):
    enkg = EnKG(model, num_particles=32, progress_bar=False)
    enkg.run(key, X, y=y, extra_fields=("log_likelihood",))
    return enkg


def results(key, y):
    enkg = fitted(key, y)
    numbers = (enkg.log_evidence, enkg.log_evidence_error, enkg.num_forward_evaluations, enkg.num_warnings)
    return enkg.get_samples(), enkg.get_extra_fields(), enkg.get_log_likelihood(group_by_chain=True), numbers


@functools.cache
def one_by_one():
    return jax.tree.map(lambda *a: np.stack(a), *[results(key, y) for key, y in zip(KEYS, YS, strict=True)])


@pytest.mark.parametrize(
    "over",
    [jax.vmap, lambda f: jax.jit(jax.vmap(f)), lambda f: lambda *a: jax.lax.map(lambda pair: f(*pair), a)],
    ids=["vmap", "jit of vmap", "lax.map"],
)
def test_a_traced_run_is_the_run_outside(over):
    assert jax.tree.structure(over(results)(KEYS, YS)) == jax.tree.structure(one_by_one())
    jax.tree.map(np.testing.assert_array_equal, over(results)(KEYS, YS), one_by_one())


def test_jit_of_one_run_inside_a_larger_program():
    width = jax.jit(lambda key, y: jnp.std(fitted(key, y).get_samples()["slope"]) / 2)(KEYS[0], YS[0])
    assert float(width) == pytest.approx(np.std(one_by_one()[0]["slope"][0]) / 2, rel=1e-12)


def test_black_boxes_may_be_inside():
    simulate = blackbox(lambda slope: slope * X, shape=(3,))

    def host_model(y=None):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(simulate(slope), 0.5).to_event(1), obs=y)

    def slopes(key, y):
        enkg = EnKG(host_model, num_particles=32, progress_bar=False)
        enkg.run(key, y=y)
        return enkg.get_samples()["slope"]

    np.testing.assert_array_equal(jax.jit(slopes)(KEYS[0], YS[0]), slopes(KEYS[0], YS[0]))


@pytest.mark.parametrize("what", ["diagnostics", "print_summary", "to_arviz"])
def test_what_stays_on_the_host_says_so(what):
    with pytest.raises(TypeError, match=f"{what} of a run inside jax.jit or jax.vmap stays on the host: run outside"):
        jax.jit(lambda key, y: getattr(fitted(key, y), what)())(KEYS[0], YS[0])


def test_there_is_no_gradient():
    with pytest.raises(TypeError, match="has no gradient: use a method that needs none"):
        jax.grad(lambda y: fitted(KEYS[0], y).get_samples()["slope"].mean())(YS[0])


def test_numbers_of_an_untraced_run():
    enkg = fitted(KEYS[0], YS[0])
    assert enkg.num_warnings == len(enkg.diagnostics().warnings) == 0
