"""Independent blocks as one prior, against the joint mixture that they are in closed form."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats as st
from bare import Bare

from enkg_ppl import GaussianPrior, MixturePrior
from enkg_ppl.priors import Flow
from enkg_ppl.priors._product import ProductPrior

NARROW = MixturePrior([0.6, 0.4], [[-2.0, 0.0], [1.5, 1.0]], [[0.3, 1.0], [0.5, 0.2]])
WIDE = MixturePrior([0.3, 0.7], [[90.0], [130.0]], [[25.0], [100.0]])
PRODUCT = ProductPrior([GaussianPrior.standard(1), WIDE, NARROW], [1, 2, 1])
N = 4096


def joint() -> MixturePrior:
    """The same distribution as one mixture, its components all combinations, in standard units."""
    standard = MixturePrior([1.0], [[0.0]], [[1.0]])
    weights, means, variances = [], [], []
    blocks = (standard, WIDE, WIDE, NARROW)
    for picked in itertools.product(*(range(len(block.means)) for block in blocks)):
        parts = list(zip(blocks, picked, strict=True))
        weights.append(np.prod([np.exp(block.log_weights[k]) for block, k in parts]))
        means.append(np.concatenate([(block.means[k] - block.location) / block.scale for block, k in parts]))
        variances.append(np.concatenate([block.variances[k] / block.scale**2 for block, k in parts]))
    return MixturePrior(weights, np.stack(means), np.stack(variances))


JOINT = joint()
U = jax.vmap(JOINT.sample)(jr.split(jr.key(0), 16)) + 0.3


def test_size_and_units():
    assert PRODUCT.dim == 5
    np.testing.assert_array_equal(PRODUCT.location, np.zeros(5))
    assert PRODUCT.scale == 1
    assert not PRODUCT.has_affine_denoiser
    assert not PRODUCT.has_transport
    gaussians = ProductPrior([GaussianPrior.standard(2), GaussianPrior(jnp.ones(3), jnp.full(3, 4.0))])
    assert gaussians.has_affine_denoiser
    assert gaussians.has_transport


@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
def test_denoiser_is_the_joint_mixtures(sigma):
    ours = jax.vmap(lambda u: PRODUCT.denoise(u, sigma))(U)
    np.testing.assert_allclose(ours, jax.vmap(lambda u: JOINT.denoise(u, sigma))(U), rtol=1e-9, atol=1e-9)


def test_log_prob_is_the_joint_mixtures():
    np.testing.assert_allclose(jax.vmap(PRODUCT.log_prob)(U), jax.vmap(JOINT.log_prob)(U), rtol=1e-9)


def within(draws, mean, sd):
    """Means and sds within five standard errors; a sd's own error is that of a distribution with kurtosis 3."""
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 5 * sd / len(draws) ** 0.5)
    np.testing.assert_array_less(np.abs(draws.std(0) / sd - 1), 5 / (2 * len(draws)) ** 0.5)


def moments(prior: MixturePrior):
    weights, means, variances = (np.asarray(a) for a in (np.exp(prior.log_weights), prior.means, prior.variances))
    mean = weights @ means
    return mean, np.sqrt(weights @ (variances + (means - mean) ** 2))


def test_draws_have_the_joint_mixtures_moments():
    keys = jr.split(jr.key(1), N)
    within(np.asarray(jax.vmap(PRODUCT.sample)(keys)), *moments(JOINT))


@pytest.mark.parametrize("bare", [False, True])
def test_conditional_draws_have_the_joint_denoisers_mean(bare):
    """The covariance is sigma^2 dD/dx (Tweedie). Of a bare block they are those of the reverse SDE."""
    u, sigma = U[0], jnp.asarray(0.4)
    prior = ProductPrior([GaussianPrior.standard(1), Bare(WIDE), Bare(NARROW)], [1, 2, 1]) if bare else PRODUCT
    one = jax.jit(jax.vmap(lambda key: prior.conditional_sample(key, u, sigma)))
    draws = np.asarray(one(jr.split(jr.key(2), N)))
    sd = np.sqrt(np.diag(sigma**2 * jax.jacfwd(lambda u: JOINT.denoise(u, sigma))(u)))
    exact = slice(0, 1) if bare else slice(None)  # the Gaussian block has its closed form in any company
    within(draws[:, exact], np.asarray(JOINT.denoise(u, sigma))[exact], sd[exact])
    assert np.all(np.abs(draws.mean(0) - JOINT.denoise(u, sigma)) < 0.1 * sd)
    assert np.all(np.abs(draws.std(0) / sd - 1) < 0.1)
    assert not np.allclose(draws[:, 1], draws[:, 2]), "copies share their noise"


def test_copies_are_independent():
    draws = np.asarray(jax.vmap(PRODUCT.sample)(jr.split(jr.key(3), N)))
    assert np.abs(np.corrcoef(draws.T)[1, 2]) < 5 / N**0.5


def test_a_block_without_a_density_leaves_the_product_without():
    assert ProductPrior([GaussianPrior.standard(1), Bare(NARROW)]).log_prob(jnp.zeros(3)) is None


def test_every_block_is_carried_in_its_own_way():
    """Closed form for the Gaussian block, the flow for the mixture; encode takes both back."""
    gaussian = GaussianPrior(jnp.array([3.0]), jnp.array([4.0]))
    mixed = ProductPrior([gaussian, Bare(NARROW)], [2, 1])
    z = jr.normal(jr.key(4), (32, 4))
    u = jax.jit(jax.vmap(lambda z: mixed.decode(z)))(z)
    np.testing.assert_allclose(u[:, :2], z[:, :2], rtol=1e-12)  # standard units undo location and scale
    alone = jax.vmap(lambda z: Bare(NARROW).decode(z))(z[:, 2:])
    np.testing.assert_allclose(u[:, 2:], (alone - NARROW.location[None]) / NARROW.scale, rtol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda u: mixed.encode(u)))(u), z, atol=0.05)


def test_fixed_steps_draw_the_mixture():
    """4,096 decoded draws have its moments and shares of components; single paths agree with the adaptive flow."""
    z = jr.normal(jr.key(5), (N, 2))
    draws = np.asarray(jax.jit(jax.vmap(lambda z: Bare(NARROW).decode(z)))(z))
    within(draws, *moments(NARROW))
    right = (draws[:, 0] > 0).mean()  # the right component; 3 % of the left one's mass is beyond 0 by 3.65 sd
    assert abs(right - 0.4) < 4 * (0.24 / N) ** 0.5 + 0.01
    exact = np.asarray(jax.jit(jax.vmap(Flow(NARROW).forward))(z[:256]))
    assert np.median(np.linalg.norm(draws[:256] - exact, axis=1)) < 0.01 * NARROW.scale


def test_fixed_steps_keep_narrow_features():
    """Modes a 25th of the prior's scale wide: their sd to 2 %, at equally likely z; a flow on a line keeps order."""
    far = MixturePrior([0.4, 0.6], [[-25.0], [25.0]], [1.0, 1.0])
    z = st.norm.ppf((np.arange(2048) + 0.5) / 2048)[:, None]
    x = np.asarray(jax.jit(jax.vmap(lambda z: Bare(far).decode(z)))(z))[:, 0]
    assert np.all(np.diff(x) > 0)
    near = np.abs(np.abs(x) - 25) < 5
    assert near.mean() > 0.99
    for side in (-1, 1):
        mode = x[near & (side * x > 0)]
        assert abs(mode.std() - 1) < 0.02
        assert abs(mode.mean() - 25 * side) < 0.02


def test_draws_are_made_by_block():
    """A Gaussian block is drawn exactly whatever stands beside it."""
    mixed = ProductPrior([GaussianPrior.standard(1), Bare(NARROW)])
    draws = np.asarray(jax.jit(jax.vmap(mixed.sample))(jr.split(jr.key(6), N)))
    mean, sd = moments(NARROW)
    within(draws, np.r_[0.0, (mean - NARROW.location) / NARROW.scale], np.r_[1.0, sd / NARROW.scale])


def test_precision_is_the_callers():
    """A block in single precision beside one in double: each computes in its own."""
    single = MixturePrior(*(jnp.asarray(a, jnp.float32) for a in (jnp.ones(1), jnp.ones((1, 2)), jnp.ones((1, 2)))))
    mixed = ProductPrior([GaussianPrior.standard(1), single])
    assert mixed.location.dtype == jnp.float64
    out = mixed.denoise(jnp.ones(3), 0.5)
    assert out.dtype == jnp.float64
    assert mixed.decode(jnp.ones(3)).dtype == jnp.float64


def test_bad_products():
    with pytest.raises(ValueError, match="at least one block"):
        ProductPrior([])
    with pytest.raises(ValueError, match="copies=\\(1, 2\\)"):
        ProductPrior([NARROW], [1, 2])
    with pytest.raises(ValueError, match="positive number of copies"):
        ProductPrior([NARROW], [0])
