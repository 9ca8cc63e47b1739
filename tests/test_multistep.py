"""The flow in few evaluations of the denoiser, beside closed forms, the adaptive flow and its own inverse."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats as st
from bare import Bare

from enkg_ppl.priors import Flow, MixturePrior, Prior
from enkg_ppl.priors._multistep import HIGHEST, LOWEST, STEPS_DOWN, STEPS_UP, flow_down, flow_up, levels

NARROW = MixturePrior([0.4, 0.6], [[2.0, 0.0], [-2.0, 1.0]], [0.09, 0.3])


class Wide(Prior):
    """N(location, sd^2) whose scale is said to be another: the flow passes noise levels far above or below its sd."""

    sd: float
    location = jnp.array([3.0])
    scale = 5.0
    dim = 1

    def denoise(self, x, sigma):
        return self.location + (x - self.location) * self.sd**2 / (self.sd**2 + sigma**2)


@pytest.mark.parametrize(("share", "tolerance"), [(2, 0.01), (1, 0.005), (0.3, 0.005), (0.1, 0.005), (0.01, 0.01)])
def test_widths_from_twice_to_a_hundredth_of_the_scale(share, tolerance):
    """x = location + sqrt(sd^2 + last noise^2) z, also for sds that the steps know nothing of."""
    prior = Wide(5.0 * share)
    for z in (-2.0, 1.0):
        x = float(flow_down(prior, jnp.array([z]))[0])
        sd = np.hypot(5.0 * share, 5.0 * LOWEST)
        assert (x - 3.0) / z == pytest.approx(sd, rel=tolerance)


def test_one_evaluation_a_level():
    asked = []

    class Counted(Wide):
        def denoise(self, x, sigma):
            jax.debug.callback(lambda s: asked.append(float(s)), sigma)
            return super().denoise(x, sigma)

    prior, z = Counted(1.0), jnp.array([0.5])
    flow_down(prior, z).block_until_ready()
    jax.effects_barrier()
    np.testing.assert_allclose(asked, 5.0 * levels(STEPS_DOWN)[:-1])
    asked.clear()
    flow_up(prior, z).block_until_ready()
    jax.effects_barrier()
    np.testing.assert_allclose(asked, 5.0 * levels(STEPS_UP)[:0:-1])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_units_do_not_matter(scale):
    """The same prior in units of 1e30 and of 1e-30, there and back."""
    prior = MixturePrior([0.4, 0.6], scale * np.array([[2.0, 0.0], [-2.0, 1.0]]), scale**2 * np.array([0.09, 0.3]))
    z = jnp.array([0.7, -1.1])
    x = flow_down(prior, z)
    np.testing.assert_allclose(x / scale, flow_down(NARROW, z), rtol=1e-9)
    np.testing.assert_allclose(flow_up(prior, x), flow_up(NARROW, x / scale), rtol=1e-6)


def test_levels():
    """From the highest to the lowest, each step down, the shortest where components part."""
    s = levels(STEPS_DOWN)
    assert (s[0], s[-1]) == pytest.approx((HIGHEST, LOWEST))
    steps = -np.diff(np.log(s))
    assert steps.min() > 0
    assert 0.1 < s[steps.argmin()] < 1.0


def test_a_point_mass_is_hit():
    """A denoiser that is constant is integrated exactly: what is left of z is the last noise."""
    z = jr.normal(jr.key(0), (5, 1))
    x = jax.vmap(lambda z: flow_down(Wide(0.0), z))(z)
    np.testing.assert_allclose(x, 3.0 + 5.0 * LOWEST * np.hypot(1, 1 / HIGHEST) * z, rtol=1e-9)


def test_the_mixture_and_its_paths():
    """Most paths of the adaptive flow to a 500th of the scale; every quantile along a line to a 200th."""
    z = jr.normal(jr.key(1), (2048, 2))
    x = np.asarray(jax.jit(jax.vmap(lambda z: flow_down(NARROW, z)))(z))
    exact = np.asarray(jax.jit(jax.vmap(Flow(NARROW).forward))(z))
    assert np.median(np.linalg.norm(x - exact, axis=1)) < 0.002 * NARROW.scale
    for angle in (0.0, 0.7, 1.6):
        line = np.array([np.cos(angle), np.sin(angle)])
        assert np.mean(np.abs(np.sort(x @ line) - np.sort(exact @ line))) < 0.005 * NARROW.scale


@pytest.mark.parametrize("sign", [-1, 1])
def test_far_modes_a_25th_of_the_scale_wide(sign):
    """Equally likely z, so without Monte Carlo error: sd and mean of each mode within 1.3 % of the sd."""
    far = MixturePrior([0.4, 0.6], [[-25.0], [25.0]], [1.0, 1.0])
    z = st.norm.ppf((np.arange(2048) + 0.5) / 2048)[:, None]
    x = np.asarray(jax.jit(jax.vmap(lambda z: flow_down(far, z)))(z))[:, 0]
    mode = x[np.abs(x - 25 * sign) < 5]
    assert abs(mode.std() - 1) < 0.013
    assert abs(mode.mean() - 25 * sign) < 0.013


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_encode_inverts_decode(dtype):
    """Not the flow: the map that was used. Without corrections it is the flow, a hundredth of an sd away."""
    prior = jax.tree.map(lambda a: a.astype(dtype), Bare(NARROW))
    z = jr.normal(jr.key(2), (512, 2), dtype)
    x = jax.jit(jax.vmap(lambda z: prior.decode(z)))(z)
    assert x.dtype == dtype
    error, roughly = (
        np.abs(np.asarray(jax.jit(jax.vmap(lambda x, n=n: prior.encode(x, n)))(x) - z)).max(axis=1) for n in (2, 0)
    )
    assert np.quantile(error, 0.99) < (1e-4 if dtype == jnp.float32 else 1e-5)
    assert 1e-3 < np.median(roughly) < 0.01


def test_gradients_are_those_of_differences():
    z, direction = jnp.array([0.3, -0.4]), jnp.array([0.6, 0.8])
    value = jax.jit(lambda z: jnp.sum(jnp.sin(flow_down(NARROW, z))))
    slope = float(jax.grad(value)(z) @ direction)
    ahead, behind = (float(value(z + step * direction)) for step in (1e-5, -1e-5))
    assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)
