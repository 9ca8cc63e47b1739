"""The Kalman step under outputs of zero, tiny and huge size, whatever the observations' distribution."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st

from enkg_ppl import EnKG, GaussianPrior, KalmanCorrection, blackbox
from enkg_ppl.guidance._bounds import bounded
from enkg_ppl.guidance._kalman import FORGETTING, _analyse
from enkg_ppl.likelihood import Response
from enkg_ppl.linearise._slope import no_pairs
from enkg_ppl.numpyro._response import UnusableObservation, gaussian_response
from tests.test_observations import D, parameters

J, DIM = 48, 3


def guided_families():
    for name, (make, data, _) in D.items():
        try:
            jax.eval_shape(lambda z, make=make, data=data: gaussian_response(make(*parameters(z)), data), jnp.zeros(2))
        except UnusableObservation:
            continue
        yield name


@jax.jit
def responses_of(z, wild):
    """Of every family that guides, shape (families, particles, 2); `wild`: the size of a half of the parameters."""

    def of_one(name, z, wild):
        make, data, _ = D[name]
        a, s, p = parameters(z)
        ordinary = wild < 0
        a = jnp.where(ordinary, a, jnp.sign(z[1]) * wild)
        s, p = jnp.where(ordinary, s, wild), jnp.where(ordinary, p, jnp.minimum(wild, 1.0))
        response = gaussian_response(make(a, s, p), data)
        return jax.tree.map(lambda v: jnp.resize(v, (2,)), response)

    families = [jax.vmap(lambda z, w, name=name: of_one(name, z, w))(z, wild) for name in guided_families()]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *families)


@jax.jit
def steps_of(x, memory, responses, sigma, numbers):
    """The Kalman step of every family."""

    def of_one(x, memory, response):
        usual, prior = KalmanCorrection(), GaussianPrior.standard(DIM)
        settings, sigmas = ((FORGETTING, FORGETTING), usual.max_innovation), (sigma, 0.5 * sigma)
        return _analyse(settings, prior, x, 0.9 * x, response, sigmas, memory, numbers[:, :2], numbers)

    return jax.vmap(of_one)(x, memory, responses)


def rounded(response: Response, dtype) -> Response:
    """As a simulator of that precision would have it: the families' constants are of 64 bits."""
    limits = jnp.finfo(dtype)
    prediction, observation, noise = (np.clip(a, -float(limits.max), float(limits.max)) for a in response)
    noise = np.where(noise == float(limits.max), np.inf, np.maximum(noise, float(limits.tiny)))
    return Response(*(jnp.asarray(np.asarray(a, dtype)) for a in (prediction, observation, noise)))


@pytest.mark.filterwarnings("ignore:AbsTransform is not a bijective")  # NumPyro's word on the folded normal
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_family_stays_finite(dtype):
    """A quarter of the particles, half of them and all, one level after the other, with the slopes of those before."""
    sizes = [0.0, float(jnp.finfo(dtype).tiny), 1e-30, 1e-3, 1e8, 1e19, 1e30, float(jnp.finfo(dtype).max)]
    names = list(guided_families())
    rng = np.random.default_rng(0)
    x = np.broadcast_to(rng.normal(size=(J, DIM)), (len(names), J, DIM)).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        memory = jax.tree.map(lambda a: jnp.stack([a] * len(names)), no_pairs(J, DIM, 2, dtype))
    for share in (0.25, 0.5, 1.0, 0.5, 0.25, 0.0):
        for size in (*sizes, None):
            wild = rng.choice(sizes, J) if size is None else np.full(J, size)
            wild = np.where(rng.random(J) < share, wild, -1.0)
            with jax.numpy_rank_promotion("allow"):  # NumPyro's own algebra
                responses = responses_of(rng.normal(size=(J, 2)), wild)
            numbers = rng.normal(size=(J, DIM)).astype(dtype)
            with jax.enable_x64(dtype == np.float64):
                x, memory = steps_of(x, memory, rounded(responses, dtype), np.asarray(1.0, dtype), numbers)
            assert x.dtype == dtype
            finite = np.isfinite(x).all(axis=(1, 2)) & np.isfinite(memory.slope).all(axis=(1, 2))
            assert finite.all(), (share, size, np.array(names)[~finite])
            x = np.clip(x, -10.0, 10.0)


def test_bounds_leave_ordinary_numbers_alone():
    """Outputs of twelve orders of magnitude, noise of ten, in 64 bits; failed simulations aside."""
    rng = np.random.default_rng(0)
    prediction, noise = np.exp(6 * rng.normal(size=(64, 5))), np.exp(5 * rng.normal(size=(64, 1))) * np.ones((1, 5))
    prediction[3, 2] = np.nan
    found = bounded(Response(*map(jnp.asarray, (prediction, prediction, noise))))
    usable = np.arange(64) != 3
    np.testing.assert_array_equal(found.usable, usable)
    np.testing.assert_array_equal(found.prediction[usable], prediction[usable])
    np.testing.assert_array_equal(found.noise, np.median(noise[usable], axis=0))
    np.testing.assert_allclose(found.relative[usable], noise[usable, 0] / np.median(noise[usable, 0]))


def test_the_unit_of_noise_is_that_of_the_particles_with_noise():
    """Two of three rates are zero: the noise is that of the third."""
    rate = jnp.asarray(np.where(np.arange(30) % 3 == 0, np.linspace(1.0, 4.0, 30), 0.0))[:, None]
    response = jax.vmap(lambda r: gaussian_response(dist.Poisson(r), jnp.array([3])))(rate)
    np.testing.assert_allclose(bounded(response).noise, np.median(np.asarray(rate)[rate > 0]))


# -- whole runs, against grids ----------------------------------------------------------------------------------------


def grid_mean(log_post, grid):
    weights = np.exp(log_post - log_post.max())
    return (weights * grid).sum() / weights.sum()


def test_rates_that_are_zero_for_most_of_the_prior():
    t, counts = np.arange(6.0), np.array([9, 6, 4, 3, 0, 0])
    rates = blackbox(lambda a, b: np.maximum(0, a[:, None] - b[:, None] * t), (6,), vectorized=True)

    def model(y):
        a = numpyro.sample("a", dist.HalfNormal(20.0))
        b = numpyro.sample("b", dist.HalfNormal(5.0))
        numpyro.sample("y", dist.Poisson(rates(a, b)).to_event(1), obs=y)

    with jax.enable_x64(False):
        enkg = EnKG(model, num_particles=512, progress_bar=False)
        enkg.run(jr.key(0), jnp.asarray(counts))
        draws = np.asarray(enkg.get_samples()["a"])
    a, b = np.meshgrid(np.linspace(0, 25, 401), np.linspace(0, 8, 401), indexing="ij")
    log_likelihood = st.poisson.logpmf(counts, np.maximum(0, a[..., None] - b[..., None] * t)).sum(axis=-1)
    exact = grid_mean(log_likelihood - a**2 / 800 - b**2 / 50, a)
    assert abs(draws.mean() - exact) < 5 * draws.std() / 512**0.5


@pytest.mark.parametrize("x64", [True, False], ids=["x64", "float32"])
def test_outputs_that_grow_beyond_all_bounds(x64):
    """``a exp(r t)`` is 1e20 to infinity in the tails of the prior."""
    t = np.arange(60.0)
    y = 1.2 * np.exp(0.05 * t) + 0.5 * np.random.default_rng(0).normal(size=60)

    def model(y):
        a = numpyro.sample("a", dist.LogNormal(0.0, 1.0))
        r = numpyro.sample("r", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a * jnp.exp(r * jnp.asarray(t)), 0.5).to_event(1), obs=y)

    with jax.enable_x64(x64):
        enkg = EnKG(model, num_particles=256, progress_bar=False)
        enkg.run(jr.key(0), jnp.asarray(y))
        draws = np.asarray(enkg.get_samples()["r"])
    a, r = np.meshgrid(np.linspace(0.8, 1.8, 401), np.linspace(0.04, 0.06, 401), indexing="ij")
    misfit = ((y - a[..., None] * np.exp(r[..., None] * t)) ** 2).sum(axis=-1)
    exact = grid_mean(-2 * misfit - np.log(a) ** 2 / 2 - np.log(a) - r**2 / 2, r)
    assert abs(draws.mean() - exact) < 5 * draws.std() / 256**0.5
    assert draws.std() < 0.001
