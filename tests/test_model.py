"""From NumPyro model to inverse problem: sites, hierarchy, plates, likelihood and score."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.numpyro._response import UnusableObservation, gaussian_response

X = jnp.linspace(-1.0, 1.0, 6)
Y = jnp.array([0.1, 0.4, -0.2, 0.8, 1.1, 0.3])


def hierarchical(x, y=None, counts=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("groups", 3):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    beta = numpyro.sample("beta", dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.4], [0.4, 2.0]])))
    rate = numpyro.deterministic("rate", jnp.exp(beta[0] + beta[1] * x))
    with numpyro.plate("data", 6):
        numpyro.sample("y", dist.Normal(jnp.repeat(theta, 2, total_repeat_length=6), 0.5), obs=y)
        numpyro.sample("counts", dist.Poisson(rate), obs=counts)


ARGS = (X, Y, jnp.array([1, 0, 2, 1, 3, 2]))
MODEL = NumPyroModel(hierarchical, ARGS, {})
Z = jr.normal(jr.key(0), (MODEL.dim,))


def test_sites_and_layout():
    assert [(s.name, s.shape, s.start, s.stop) for s in MODEL.sites] == [
        ("mu", (), 0, 1),
        ("tau", (), 1, 2),
        ("theta", (3,), 2, 5),
        ("beta", (2,), 5, 7),
    ]
    assert (MODEL.dim, MODEL.observed, MODEL.deterministic) == (7, ["y", "counts"], ["rate"])
    assert (MODEL.guided, MODEL.unguided) == (["y", "counts"], {})


def test_likelihood_is_numpyros():
    """Log joint of NumPyro minus its latent part, at the values that z stands for."""
    problem = MODEL.problem()
    values, _ = MODEL.simulator.replay(Z)
    latents = {site.name: values[site.name] for site in MODEL.sites}
    joint, trace = log_density(hierarchical, ARGS, {}, latents)
    latent = sum(trace[name]["fn"].log_prob(trace[name]["value"]).sum() for name in latents)
    np.testing.assert_allclose(problem.log_likelihood(Z), joint - latent, rtol=1e-10)


def test_prior_is_numpyros():
    """10,000 values from z ~ N(0, I) have the hierarchy's moments: theta's quartiles against NumPyro's own draws."""
    z = jr.normal(jr.key(1), (10_000, MODEL.dim))
    mine = jax.jit(jax.vmap(lambda z: MODEL.simulator.replay(z)[0]["theta"][0]))(z)
    theirs = numpyro.infer.Predictive(hierarchical, num_samples=10_000)(jr.key(2), X)["theta"][:, 0]
    quartiles = [np.quantile(a, [0.25, 0.5, 0.75]) for a in (mine, theirs)]
    np.testing.assert_allclose(*quartiles, atol=0.35)  # standard errors 0.09, 0.07, 0.09


def test_unconstrain_inverts_constrain():
    problem = MODEL.problem()
    np.testing.assert_allclose(problem.unconstrain(problem.constrain(Z)), Z, rtol=1e-9, atol=1e-11)


def test_score_is_autodiff_in_the_distributions_parameters():
    """Normal and Poisson by hand, within the pytree that the model's distributions are."""
    problem = MODEL.problem()
    score = problem.likelihood.score(problem.forward(Z))
    values, _ = MODEL.simulator.replay(Z)
    mean = jnp.repeat(values["theta"], 2)
    np.testing.assert_allclose(score["y"].fn.loc, (Y - mean) / 0.25, rtol=1e-9)
    np.testing.assert_allclose(score["counts"].fn.rate, ARGS[2] / values["rate"] - 1, rtol=1e-9)


def test_response_of_each_site():
    problem = MODEL.problem()
    values, _ = MODEL.simulator.replay(Z)
    response = problem.likelihood.response(problem.forward(Z))
    np.testing.assert_allclose(response.prediction, np.r_[np.repeat(values["theta"], 2), values["rate"]], rtol=1e-9)
    np.testing.assert_allclose(response.observation, np.r_[Y, ARGS[2]], rtol=1e-12)
    np.testing.assert_allclose(response.noise, np.r_[np.full(6, 0.25), values["rate"]], rtol=1e-9)


def test_scale_and_mask_and_factor():
    """`handlers.scale` multiplies, a mask leaves out, a factor adds; the guidance cannot use the factor and says so."""

    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with handlers.scale(scale=3.0), handlers.mask(mask=jnp.arange(6) < 4):
            numpyro.sample("y", dist.Normal(a, 0.5), obs=y)
        numpyro.factor("penalty", -(a**2))

    numpyro_model = NumPyroModel(model, (Y,), {})
    problem = numpyro_model.problem()
    z = jnp.array([0.7])
    expected = 3 * dist.Normal(0.7, 0.5).log_prob(Y[:4]).sum() - 0.49
    np.testing.assert_allclose(problem.log_likelihood(z), expected, rtol=1e-10)
    assert numpyro_model.guided == ["y"]
    assert "factor has no data" in numpyro_model.unguided["penalty"]
    response = problem.likelihood.response(problem.forward(z))
    np.testing.assert_allclose(response.noise[:4], 0.25 / 3, rtol=1e-12)
    np.testing.assert_array_equal(response.prediction[4:], response.observation[4:])


def test_masked_missing_data():
    """NaN where the mask is False is how missing data are written."""
    y = Y.at[2].set(jnp.nan)

    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with handlers.mask(mask=~jnp.isnan(y)):
            numpyro.sample("y", dist.Normal(a, 0.5), obs=y)

    problem = NumPyroModel(model, (y,), {}).problem()
    expected = dist.Normal(0.7, 0.5).log_prob(jnp.delete(Y, 2)).sum()
    np.testing.assert_allclose(problem.log_likelihood(jnp.array([0.7])), expected, rtol=1e-10)
    response = problem.likelihood.response(problem.forward(jnp.array([0.7])))
    assert all(np.all(np.isfinite(part)) for part in response)


def test_residuals_as_data():
    """`obs=y - f` depends on the latents; the value is taken from the same run as the distribution."""

    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("residual", dist.Normal(0.0, 0.5).expand([6]).to_event(1), obs=y - a * X)

    problem = NumPyroModel(model, (Y,), {}).problem()
    np.testing.assert_allclose(
        problem.log_likelihood(jnp.array([0.7])), dist.Normal(0.7 * X, 0.5).log_prob(Y).sum(), rtol=1e-10
    )


COVARIANCE = jnp.array([[1.0, 0.3], [0.3, 0.5]])
# Observation distributions: at these parameters, with this datum.
OBSERVATIONS = {
    "normal": (dist.Normal(jnp.array([1.0, 2.0]), 0.5), jnp.array([1.2, 1.7])),
    "normal-event": (dist.Normal(jnp.array([1.0, 2.0]), 0.5).to_event(1), jnp.array([1.2, 1.7])),
    "mvn": (dist.MultivariateNormal(jnp.array([1.0, 2.0]), COVARIANCE), jnp.array([1.2, 1.7])),
    "lognormal": (dist.LogNormal(jnp.array([0.1, 0.2]), 0.3), jnp.array([1.2, 1.7])),
    "poisson": (dist.Poisson(jnp.array([3.0, 2.0])), jnp.array([4, 1])),
    "binomial": (dist.Binomial(10, probs=jnp.array([0.3, 0.6])), jnp.array([4, 7])),
    "binomial-logits": (dist.Binomial(10, logits=jnp.array([0.3, -0.6])), jnp.array([4, 7])),
    "student": (dist.StudentT(4.0, jnp.array([1.0, 2.0]), 0.5), jnp.array([1.2, 1.7])),
    "expanded": (dist.Normal(1.0, 0.5).expand([2]), jnp.array([1.2, 1.7])),
    "gamma": (dist.Gamma(2.0, jnp.array([1.0, 2.0])), jnp.array([1.2, 1.7])),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_gaussian_response_has_the_right_moments(name):
    """Over 20,000 data drawn from the distribution, observation - prediction has mean 0 and variance noise (5 sd)."""
    fn, value = OBSERVATIONS[name]
    response = gaussian_response(fn, value)
    assert response.prediction.shape == response.observation.shape == response.noise.shape == (2,)
    with jax.numpy_rank_promotion("allow"):  # NumPyro's samplers promote ranks
        data = fn.sample(jr.key(0), (20_000,))
    many = jax.vmap(lambda y: gaussian_response(fn, y))(data)
    residual = np.asarray(many.observation - many.prediction)
    assert np.all(np.abs(residual.mean(0)) < 5 * residual.std(0) / 20_000**0.5)
    squares = residual**2
    assert np.all(np.abs(squares.mean(0) - response.noise) < 5 * squares.std(0) / 20_000**0.5)


def test_unusable_observations():
    for fn in (dist.Delta(1.0), dist.Unit(jnp.zeros(3))):
        with pytest.raises(UnusableObservation):
            gaussian_response(fn, jnp.zeros(fn.shape()))
