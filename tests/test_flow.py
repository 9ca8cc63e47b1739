"""The probability flow of a mixture: inverse of itself, right density, right conditional draws."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from bare import Correlated

from enkg_ppl import GaussianPrior, MixturePrior
from enkg_ppl.priors import Flow, Prior
from enkg_ppl.priors._flow import euler_to_zero

MIXTURE = MixturePrior([0.6, 0.4], [[-2.0, 0.0], [1.5, 1.0]], [[0.3, 1.0], [0.5, 0.2]])
FLOW = Flow(MIXTURE)
Z = jr.normal(jr.key(0), (16, 2))
forward = jax.jit(jax.vmap(FLOW.forward))
inverse = jax.jit(jax.vmap(FLOW.inverse))


def test_inverse_inverts_forward():
    np.testing.assert_allclose(inverse(forward(Z)), Z, atol=1e-4)


def test_log_prob_is_the_mixtures():
    x = jax.vmap(MIXTURE.sample)(jr.split(jr.key(1), 16))
    exact = jax.vmap(MIXTURE.log_prob)(x)
    np.testing.assert_allclose(jax.jit(jax.vmap(FLOW.log_prob))(x), exact, atol=1e-3)


def test_decoded_draws_have_the_mixtures_quantiles():
    """The first coordinate of 2,000 decoded draws against the mixture's distribution function (Kolmogorov)."""
    from scipy.stats import kstest, norm

    fast = Flow(MIXTURE, num_steps=40)
    x = np.asarray(jax.jit(jax.vmap(fast.forward))(jr.normal(jr.key(2), (2000, 2))))
    cdf = lambda t: 0.6 * norm.cdf(t, -2, 0.3**0.5) + 0.4 * norm.cdf(t, 1.5, 0.5**0.5)  # noqa: E731
    assert kstest(x[:, 0], cdf).pvalue > 0.01


def test_hutchinson_is_unbiased():
    """Mean over 400 probes within four standard errors of the exact trace's answer; one probe does scatter."""
    x = jnp.array([0.3, 0.4])
    flow = Flow(MIXTURE, num_steps=20)
    one, slope = jax.jit(jax.vmap(lambda k: jax.value_and_grad(flow.log_prob)(x, key=k, divergence="hutchinson")))(
        jr.split(jr.key(3), 400)
    )
    exact = float(flow.log_prob(x))
    assert np.std(one) > 0.01
    assert abs(np.mean(one) - exact) < 4 * np.std(one) / 20
    exact = jax.grad(MIXTURE.log_prob)(x)
    assert np.all(np.abs(np.mean(slope, 0) - exact) < 4 * np.std(slope, 0) / 20 + 2e-3)


def test_the_error_of_hutchinson_is_its_scatter():
    """A correlated Gaussian of 48 dimensions over 100 keys: the scatter is 1 / sqrt(200) = 7 % uncertain itself."""
    prior = Correlated(48)
    (x,), (exact,) = prior.values(1)
    flow = Flow(prior, num_steps=20)
    estimate = jax.jit(jax.vmap(lambda k: flow.log_prob_and_error(x, key=k, divergence="hutchinson", num_probes=2)))
    got, error = estimate(jr.split(jr.key(2), 100))
    assert abs(np.mean(got) - exact) < 4 * np.std(got) / 10
    assert np.std(got) / np.sqrt(np.mean(error**2)) == pytest.approx(1.0, abs=4 * 0.07)


def test_log_prob_has_a_gradient():
    """NUTS on a diffusion prior needs it: reverse mode agrees with the closed form's gradient."""
    x = jnp.array([0.3, 0.4])
    gradient = jax.grad(Flow(MIXTURE, num_steps=60).log_prob)(x)
    np.testing.assert_allclose(gradient, jax.grad(MIXTURE.log_prob)(x), atol=2e-3)


def test_gaussian_flow_is_affine():
    """For a Gaussian the flow is mean + sd z, up to what noise the ends keep."""
    prior = GaussianPrior(jnp.array([1.0, -2.0]), jnp.array([4.0, 0.25]))
    np.testing.assert_allclose(Flow(prior).forward(Z[0]), prior.decode(Z[0]), rtol=2e-4)


def test_one_euler_step_is_the_denoiser():
    x = jnp.array([0.5, -1.0])
    one = euler_to_zero(MIXTURE, x, jnp.asarray(0.9), 1, 0.002, 7.0)
    np.testing.assert_allclose(one, MIXTURE.denoise(x, 0.9), rtol=1e-12)


def test_a_prior_known_only_by_its_denoiser_is_sampled_by_its_flow():
    class Bare(Prior):
        inner: MixturePrior

        dim = property(lambda self: self.inner.dim)
        location = property(lambda self: self.inner.location)
        scale = property(lambda self: self.inner.scale)

        def denoise(self, x, sigma):
            return self.inner.denoise(x, sigma)

    bare = Bare(MIXTURE)
    key = jr.key(5)
    adaptive = Flow(bare).forward(jr.normal(key, (2,)))
    np.testing.assert_allclose(bare.sample(key), adaptive, atol=0.02 * float(MIXTURE.scale))  # its own fixed steps
    assert bare.conditional_sample(key, jnp.ones(2), jnp.asarray(0.5)).shape == (2,)


def test_bad_flows():
    with pytest.raises(ValueError, match="needs key= for Hutchinson"):
        FLOW.log_prob(Z[0], divergence="hutchinson")
    with pytest.raises(ValueError, match="'exact' or 'hutchinson'; got 'trace'"):
        FLOW.log_prob(Z[0], divergence="trace")
    with pytest.raises(ValueError, match="num_steps as a whole number >= 1, or None"):
        Flow(MIXTURE, num_steps=0)
