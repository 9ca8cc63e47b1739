"""Data outside of their distribution's support: a likelihood of zero wherever NumPyro's is, or a refusal where no
unknowns would allow them."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro import handlers
from numpyro.infer.util import initialize_model

from enkg_ppl import EnKG
from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.numpyro._observation import Observation, SiteLikelihood
from enkg_ppl.numpyro._refusals import ModelError
from tests.test_observations import D, Y, parameters

# Data that the distributions of the registry `D` do not allow; a family that is not here allows all numbers.
NEGATIVE, BROKEN, SHARE, ANGLE = Y.at[1].mul(-1), jnp.array([0.0, 1.5]), jnp.array([0.2, 1.7]), jnp.array([0.3, 6.0])
POSITIVE = "lognormal half-normal half-cauchy exponential gamma chi2 inverse-gamma weibull pareto gompertz folded"
TRUNCATED = "truncated-normal truncated-both truncated-cauchy uniform levy"
SHARES = "beta beta-proportion kumaraswamy"
COUNTS = "binomial beta-binomial poisson geometric gamma-poisson negative-binomial zero-inflated zero-inflated-counts"
COUNTS += " hurdle beta-negative-binomial bernoulli bernoulli-logits"
CLASSES = "categorical ordered-logistic"
OUTSIDE = {
    **dict.fromkeys(POSITIVE.split(), NEGATIVE),
    **dict.fromkeys(TRUNCATED.split(), NEGATIVE - 1.5),
    **dict.fromkeys(SHARES.split(), SHARE),
    **dict.fromkeys(COUNTS.split(), BROKEN),
    **dict.fromkeys(CLASSES.split(), jnp.array([0, 4])),
    "multinomial": jnp.array([2, 4]),
    "dirichlet-multinomial": jnp.array([2, 4]),
    "dirichlet": jnp.array([0.3, 0.9]),
    "von-mises": ANGLE,
    "transformed": jnp.array([-3.5, 1.0]),
}


def every_family(data):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]))
    for name, value in data.items():
        numpyro.sample(name, D[name][0](*parameters(z)), obs=value)


def test_log_likelihoods_are_numpyros():
    """Every family's, at every one of 16 draws, after the trees that distributions go through on the way."""

    @jax.jit
    def numpyros(z, data):
        return numpyro.infer.log_likelihood(every_family, {"z": z}, data, parallel=True)

    @jax.jit
    def simulate(z, data):
        def of_one(z):
            trace = handlers.trace(handlers.substitute(every_family, {"z": z})).get_trace(data)
            return {name: Observation(trace[name]["fn"], trace[name]["value"], None) for name in data}

        return jax.vmap(of_one)(z)

    @jax.jit
    @jax.vmap
    def look(observations):
        pointwise = {name: observation.log_prob() for name, observation in observations.items()}
        return pointwise, SiteLikelihood(()).log_prob(observations)

    z = jr.normal(jr.key(0), (16, 2))
    inside = {name: jnp.asarray(data, jnp.result_type(OUTSIDE.get(name, data))) for name, (_, data, _) in D.items()}
    for data in (inside, inside | OUTSIDE):
        with jax.numpy_rank_promotion("allow"):  # NumPyro's own algebra
            expected, observations = numpyros(z, data), simulate(z, data)
        pointwise, total = look(observations)
        for name in data:
            np.testing.assert_allclose(pointwise[name], expected[name], rtol=1e-9, atol=1e-9, err_msg=name)
            zero = np.isneginf(np.asarray(pointwise[name]).reshape(16, -1).min(axis=1))
            allowed = data[name] is not OUTSIDE.get(name)
            assert np.all(zero != allowed) or name == "uniform", name  # its bounds depend on z
        summed = sum(np.asarray(a).reshape(16, -1).sum(axis=1) for a in expected.values())
        np.testing.assert_allclose(total, summed)


@pytest.mark.parametrize("name", OUTSIDE)
def test_data_that_no_unknowns_allow_are_refused(name):
    """Before the first simulation, unless the distribution is told not to validate its arguments."""
    if name == "uniform":
        pytest.skip("its bounds are unknown")
    with pytest.raises(ModelError, match=f"observed site '{name}' has data outside of the support of .*; "):
        NumPyroModel(every_family, ({name: OUTSIDE[name]},), {})


def test_all_other_families_allow_all_numbers():
    assert not {name for name in OUTSIDE if np.shape(OUTSIDE[name]) != np.shape(D[name][1])}
    for name in set(D) - set(OUTSIDE):
        make, data, _ = D[name]
        inside = make(*map(np.asarray, parameters(jnp.zeros(2)))).support(np.full(np.shape(data), -3.7))
        assert np.all(inside) or name.endswith("censored"), name  # of which NumPyro says nothing


# -- posteriors, against grids ----------------------------------------------------------------------------------------

DATA = np.array([2, 2.5, 3, 3.7, 4.2])
GRID = np.linspace(-12.0, 12.0, 48_001)[:, None]


def starts(y):
    """Five models whose data say where their support begins, or ends."""
    shift: Any = dist.transforms.AffineTransform
    a = numpyro.sample("half-normal", dist.Normal(0.0, 3.0))
    b = numpyro.sample("exponential", dist.Normal(0.0, 3.0))
    c = numpyro.sample("truncated", dist.Normal(0.0, 3.0))
    d = numpyro.sample("pareto", dist.Uniform(0.0, 9.0))
    e = numpyro.sample("log-uniform", dist.Uniform(3.0, 12.0))
    with numpyro.plate("data", 5):
        numpyro.sample("a", dist.TransformedDistribution(dist.HalfNormal(1.0), shift(a, 1.0)), obs=y)
        numpyro.sample("b", dist.TransformedDistribution(dist.Exponential(1.0), shift(b, 1.0)), obs=y)
        numpyro.sample("c", dist.TruncatedNormal(3.0, 1.0, low=c), obs=y)
        numpyro.sample("d", dist.Pareto(d, 3.0), obs=y)
        numpyro.sample("e", dist.LogUniform(0.5, e), obs=y)


def on_grid():
    t = GRID[:, 0]
    with np.errstate(all="ignore"):
        prior = st.norm.logpdf(t, 0, 3)
        yield "half-normal", prior + st.halfnorm.logpdf(DATA, GRID).sum(axis=1)
        yield "exponential", prior + st.expon.logpdf(DATA, GRID).sum(axis=1)
        truncated = prior + st.norm.logpdf(DATA, 3, 1).sum() - 5 * st.norm.logsf(t, 3, 1)
        yield "truncated", np.where(t < DATA.min(), truncated, -np.inf)
        yield "pareto", np.where(t > 0, st.pareto.logpdf(DATA, 3, scale=GRID).sum(axis=1), -np.inf)
        yield "log-uniform", np.where(t > DATA.max(), -5 * np.log(np.log(t / 0.5)), -np.inf)


def test_data_that_say_where_their_support_begins():
    """Means within 5 standard errors of 512 draws, sds within 20 %; and every likelihood is NumPyro's."""
    enkg = EnKG(starts, num_particles=256, num_ensembles=2, progress_bar=False)
    enkg.run(jr.key(0), jnp.asarray(DATA), extra_fields=("log_likelihood",))
    draws = enkg.get_samples()
    for name, log_post in on_grid():
        weights = np.exp(log_post - np.nanmax(log_post))
        weights[np.isnan(weights)] = 0
        mean = np.average(GRID[:, 0], weights=weights)
        sd = np.average((GRID[:, 0] - mean) ** 2, weights=weights) ** 0.5
        assert abs(np.mean(draws[name]) - mean) < 5 * sd / 512**0.5, name
        assert abs(np.std(draws[name]) / sd - 1) < 0.2, name
    expected = numpyro.infer.log_likelihood(starts, draws, jnp.asarray(DATA))
    for name, kept in enkg.get_log_likelihood().items():
        np.testing.assert_allclose(kept, expected[name], rtol=1e-9)
    used = enkg.get_extra_fields()["log_likelihood"]
    np.testing.assert_allclose(used, sum(np.sum(a, axis=1) for a in expected.values()), rtol=1e-9)
    assert np.isfinite(used).all()


@pytest.mark.parametrize("y", [jnp.array([1.0, -1.0]), jnp.array([1.0, 2.0])], ids=["outside", "inside"])
def test_nuts_refuses_the_same(y):
    def model(y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.HalfNormal(scale).expand([2]).to_event(1), obs=y)

    if jnp.all(y > 0):
        initialize_model(jr.key(0), model, model_args=(y,))
        NumPyroModel(model, (y,), {})
        return
    with pytest.warns(UserWarning, match="Out-of-support"), pytest.raises(RuntimeError, match="valid initial"):
        initialize_model(jr.key(0), model, model_args=(y,))
    with pytest.raises(ModelError, match=r"HalfNormal, numbers above 0: -1 at \[1\]; correct them"):
        NumPyroModel(model, (y,), {})


def test_the_score_outside_of_the_support_is_zero():
    """And not NaN, of which a power of a negative number is full."""
    outside = Observation(dist.Weibull(jnp.asarray(1.2), jnp.asarray(0.7)), jnp.array([0.3, -1.0]), None)
    score = jax.jit(SiteLikelihood(()).score)({"y": outside})["y"]
    assert all(np.all(a == 0) for a in score.leaves if a is not None)
