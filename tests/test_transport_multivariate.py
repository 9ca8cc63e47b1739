"""Transports of vectors and matrices: exact densities by the change of variables, moments, shapes, dtypes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from numpyro.distributions import transforms

from enkg_ppl.numpyro.transports import from_standard, standard_shape, to_standard

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

TRIL = jnp.array([[1.5, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.2, 1.1]])
CORRELATION = jnp.array([[1.0, 0.5, -0.2], [0.5, 1.0, 0.1], [-0.2, 0.1, 1.0]])
RING = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
TIMES = jnp.array([0.0, 0.1, 0.3, 0.4])


def vector(value):
    return value.ravel()


def all_but_last(value):
    return value[:-1]


def below_diagonal(value):
    return value[jnp.tril_indices(value.shape[-1], -1)]


def lower_triangle(value):
    return value[jnp.tril_indices(value.shape[-1])]


def drift_and_diffusion(y, t):
    return jnp.array([y[1], -y[0]]) * (1 + t), 0.3 + 0.1 * jnp.abs(y)


# Each with the coordinates of its value over which NumPyro's density is one.
CASES = {
    "Dirichlet": (dist.Dirichlet(jnp.array([0.3, 2.0, 1.0, 5.0])), all_but_last),
    "Dirichlet of two": (dist.Dirichlet(jnp.array([0.7, 0.4])), all_but_last),
    "LKJCholesky": (dist.LKJCholesky(4, 0.7), below_diagonal),
    "LKJCholesky of two": (dist.LKJCholesky(2, 3.0, sample_method="cvine"), below_diagonal),
    "LKJ": (dist.LKJ(3, 2.0), below_diagonal),
    "WishartCholesky": (dist.WishartCholesky(4.5, scale_tril=TRIL), lower_triangle),
    "Wishart": (dist.Wishart(3.2, rate_matrix=TRIL @ TRIL.T), lower_triangle),
    "InverseWishartCholesky": (dist.InverseWishartCholesky(8.5, scale_tril=TRIL), lower_triangle),
    "InverseWishart": (dist.InverseWishart(9.0, scale_matrix=TRIL @ TRIL.T), lower_triangle),
    "MultivariateStudentT": (dist.MultivariateStudentT(6.5, jnp.array([1.0, -1.0, 0.5]), TRIL), vector),
    "MatrixNormal": (dist.MatrixNormal(jnp.arange(6.0).reshape(2, 3), TRIL[:2, :2], TRIL), vector),
    "CAR": (dist.CAR(jnp.arange(4.0), 0.6, 2.0, RING), vector),
    "GaussianRandomWalk": (dist.GaussianRandomWalk(0.7, 4), vector),
    "GaussianStateSpace": (
        dist.GaussianStateSpace(3, jnp.array([[0.9, 0.2], [0.0, 0.8]]), scale_tril=TRIL[:2, :2]),
        vector,
    ),
    "EulerMaruyama": (
        dist.EulerMaruyama(TIMES, drift_and_diffusion, dist.Normal(jnp.array([1.0, 0.0]), 0.5).to_event(1)),
        vector,
    ),
    "EulerMaruyama of a scalar": (dist.EulerMaruyama(TIMES, lambda y, t: (-y, 0.5), dist.Gamma(3.0, 2.0)), vector),
    "GaussianCopula": (dist.GaussianCopula(dist.Gamma(3.0, 2.0), CORRELATION), vector),
    "GaussianCopulaBeta": (
        dist.GaussianCopulaBeta(jnp.array([2.0, 3.0, 1.5]), jnp.array([4.0, 2.0, 2.5]), CORRELATION),
        vector,
    ),
    "CirculantNormal": (dist.CirculantNormal(jnp.arange(4.0), jnp.array([2.0, 0.5, 0.2, 0.5])), vector),
    "ZeroSumNormal": (dist.ZeroSumNormal(1.5, (3, 2)), vector),
    "VonMises": (dist.VonMises(2.5, 3.0), vector),
    "TruncatedGamma": (dist.TruncatedGamma(2.5, 1.5, low=0.5, high=4.0), vector),
    "DoublyTruncatedPowerLaw": (dist.DoublyTruncatedPowerLaw(-1.7, 0.5, 4.0), vector),
    "Dagum": (dist.Dagum(2.0, 3.0, 1.5), vector),
    "MixtureSameFamily": (
        dist.MixtureSameFamily(dist.Categorical(jnp.array([0.3, 0.7])), dist.Gamma(jnp.array([2.0, 9.0]), 1.5)),
        vector,
    ),
    "RelaxedBernoulli": (dist.RelaxedBernoulli(0.8, 0.3), vector),
}
# One of each kind; the others wait for `make test-slow`, since each is compiled at some length.
PROMPT = ("Dirichlet", "LKJCholesky", "MultivariateStudentT", "GaussianRandomWalk")


def prompt_first(names):
    return [pytest.param(name, marks=() if name in PROMPT else pytest.mark.slow) for name in names]


STEP = 1e-5  # of central differences, whose error is then about 1e-9
NUM_DRAWS = 20_000


@pytest.mark.parametrize("name", prompt_first(CASES))
def test_density_is_that_of_numpyro(name):
    """``log N(z) = log p(theta) + log |det d theta / dz|``, by differences in the coordinates of the density."""
    fn, chart = CASES[name]
    shape = standard_shape(fn)
    dim = math.prod(shape)
    z = 0.9 * np.random.default_rng(3).standard_normal((4, dim))
    steps = STEP * np.concatenate([np.zeros((1, dim)), np.eye(dim), -np.eye(dim)])
    every = jnp.asarray((z[:, None] + steps).reshape(-1, *shape))
    value, back = quick(jax.vmap(lambda z: (theta := from_standard(fn, z), to_standard(fn, theta))))(every)
    np.testing.assert_allclose(back, every, atol=1e-8)
    with jax.numpy_rank_promotion("allow"):  # NumPyro's own algebra relies on it
        first = value.reshape(4, -1, *fn.shape())[:, 0]
        assert np.all(fn.support(first))
        found = np.asarray(jax.vmap(fn.log_prob)(first))
    coordinates = np.asarray(jax.vmap(chart)(value)).reshape(4, 1 + 2 * dim, -1)
    jacobian = (coordinates[:, 1 : 1 + dim] - coordinates[:, 1 + dim :]) / (2 * STEP)
    # a Gram determinant: zero-sum arrays have more coordinates than scores
    log_volume = 0.5 * np.linalg.slogdet(jacobian @ jacobian.swapaxes(1, 2))[1]
    normal = -0.5 * np.sum(z**2 + np.log(2 * np.pi), axis=1)
    np.testing.assert_allclose(found + log_volume, normal, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if "Copula" not in name])  # NumPyro cannot draw those alone
def test_has_the_moments_of_its_samples(name):
    # Every mean and second moment within 5 standard errors; among about 400 of them chance exceeds that 2e-4 times.
    fn, chart = CASES[name]
    key_z, key_x = jax.random.split(jax.random.key(1))
    z = jax.random.normal(key_z, (NUM_DRAWS, *standard_shape(fn)))
    ours = jax.vmap(chart)(jax.jit(jax.vmap(partial(from_standard, fn)))(z))
    with jax.numpy_rank_promotion("allow"):
        theirs = jax.vmap(chart)(fn.sample(key_x, (NUM_DRAWS,)))
    for power in (1, 2):
        a, b = np.asarray(ours) ** power, np.asarray(theirs) ** power
        error = np.sqrt((a.var(0) + b.var(0)) / NUM_DRAWS)
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 5 * error), power


BATCHED = {
    "Dirichlet": lambda: dist.Dirichlet(jnp.array([[0.5, 1.0, 2.0], [3.0, 0.2, 1.0]])),
    "LKJCholesky": lambda: dist.LKJCholesky(3, jnp.array([0.5, 4.0])),
    "WishartCholesky": lambda: dist.WishartCholesky(jnp.array([3.5, 6.0]), scale_tril=TRIL),
    "InverseWishartCholesky": lambda: dist.InverseWishartCholesky(4.0, scale_tril=jnp.stack([TRIL, 2.0 * TRIL])),
    "MultivariateStudentT": lambda: dist.MultivariateStudentT(jnp.array([2.0, 9.0]), jnp.zeros(3), TRIL),
    "MatrixNormal": lambda: dist.MatrixNormal(jnp.zeros((2, 3, 3)), TRIL, TRIL),
    "CAR": lambda: dist.CAR(jnp.zeros(4), jnp.array([0.1, 0.6]), 2.0, RING),
    "GaussianRandomWalk": lambda: dist.GaussianRandomWalk(jnp.array([1.0, 2.0]), 3),
    "EulerMaruyama": lambda: dist.EulerMaruyama(
        TIMES, drift_and_diffusion, dist.Normal(jnp.array([[1.0, 0.0], [0.0, 2.0]]), 0.5).to_event(1)
    ),
    "GaussianCopula": lambda: dist.GaussianCopula(dist.Gamma(jnp.array([[2.0], [5.0]]), 1.0), CORRELATION),
    "MixtureSameFamily": lambda: dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.5, 0.5])), dist.Normal(jnp.array([[0.0, 3.0], [1.0, 9.0]]), 1.0)
    ),
}


@pytest.mark.parametrize("name", prompt_first(BATCHED))
def test_batches_and_copies_are_independent_elements(name):
    """Expanded in front: every copy has the values that its scores have alone, and float32 stays float32."""
    with jax.numpy_rank_promotion("allow"):  # NumPyro's own constructors rely on it
        base = BATCHED[name]()
    fn = base.expand([3, 2])
    z = jax.random.normal(jax.random.key(2), standard_shape(fn))
    value = quick(partial(from_standard, fn))(z)
    assert value.shape == fn.shape()
    np.testing.assert_allclose(quick(partial(to_standard, fn))(value), z, atol=1e-8)
    single = quick(jax.vmap(partial(from_standard, base)))
    np.testing.assert_allclose(single(z), value, rtol=1e-12)
    # the first row does not depend on the second
    other = single(z.at[:, 1].set(0.0))
    np.testing.assert_allclose(other[:, 0], value[:, 0], rtol=1e-12)
    half = jax.eval_shape(partial(from_standard, fn), jax.ShapeDtypeStruct(z.shape, jnp.float32))
    assert half.dtype == jnp.float32
    assert jax.eval_shape(partial(to_standard, fn), half).dtype == jnp.float32


def test_parameters_follow_their_batch():
    z = jax.random.normal(jax.random.key(3), (2, 2))
    both = quick(partial(from_standard, BATCHED["Dirichlet"]()))(z)
    for k, concentration in enumerate(([0.5, 1.0, 2.0], [3.0, 0.2, 1.0])):
        alone = quick(partial(from_standard, dist.Dirichlet(jnp.array(concentration))))(z[k])
        np.testing.assert_allclose(both[k], alone, rtol=1e-12)


def test_inside_plates_with_parameters_that_are_latent():
    def model():
        concentration = numpyro.sample("concentration", dist.Gamma(2.0, 1.0))
        with numpyro.plate("rows", 5):
            numpyro.sample("share", dist.Dirichlet(concentration * jnp.ones(3)))
        numpyro.sample("factor", dist.LKJCholesky(3, concentration))

    @quick
    def run(z):
        def substitute(site):
            if site["type"] == "sample":
                shape = standard_shape(site["fn"])
                return from_standard(site["fn"], z[: math.prod(shape)].reshape(shape))
            return None

        with jax.numpy_rank_promotion("allow"):
            trace = numpyro.handlers.trace(
                numpyro.handlers.substitute(numpyro.handlers.seed(model, 0), substitute_fn=substitute)
            ).get_trace()
        return trace["share"]["value"], trace["factor"]["value"]

    share, factor = run(jax.random.normal(jax.random.key(4), (10,)))
    assert share.shape == (5, 3)
    np.testing.assert_allclose(share.sum(-1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(jnp.square(factor).sum(-1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_small_shares_of_a_simplex_are_told_from_zero(dtype):
    fn = dist.Dirichlet(jnp.array([0.05, 0.05, 1.0, 0.05]))
    z = jnp.asarray([[-1.0, 1.5, -1.0], [-1.5, -1.0, 0.5], [0.2, 0.3, 2.0]], dtype)
    value = quick(jax.vmap(partial(from_standard, fn)))(z)
    assert np.all(np.asarray(value) > 0)
    assert np.min(np.asarray(value)) < 1e-20
    back = quick(jax.vmap(partial(to_standard, fn)))(value)
    np.testing.assert_allclose(back, z, atol=1e-12 if dtype == jnp.float64 else 1e-3)


def test_von_mises_turns_with_its_location():
    """Two locations a circle apart are one, and the density near pi is one bump of scores."""
    z = jnp.linspace(-3.0, 3.0, 13)
    priors = (dist.VonMises(loc, 20.0) for loc in (3.0, 3.0 + 6 * np.pi))
    here, there = (quick(jax.vmap(partial(from_standard, fn)))(z) for fn in priors)
    np.testing.assert_allclose(here, there, atol=1e-12)
    assert np.all(np.abs(here) <= np.pi)
    turned = np.mod(np.asarray(here) - 3.0 + np.pi, 2 * np.pi) - np.pi
    assert np.all(np.diff(turned) > 0)
    np.testing.assert_allclose(turned, -turned[::-1], atol=1e-12)


positive = some.floats(-2.0, 2.0).map(lambda power: 10.0**power)
FAMILIES = {
    "VonMises": lambda a, b, c: dist.VonMises(0.0, a * b),
    "Dagum": dist.Dagum,
    "TruncatedGamma": lambda a, b, c: dist.TwoSidedTruncatedGamma(dist.Gamma(a, 1.0), b, b * (1 + c)),
    "PowerLaw": lambda a, b, c: dist.DoublyTruncatedPowerLaw(a - 5.0, b, b * (1 + c)),
    "Mixture": lambda a, b, c: dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.stack([jnp.log(c), 0.0])),
        dist.Normal(jnp.stack([0.0, a]), jnp.stack([b, 1.0])),
    ),
    "Folded": lambda a, b, c: dist.FoldedDistribution(dist.Normal(a - b, c)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_increasing_and_invertible_for_any_parameters(name):
    make = FAMILIES[name]
    z = jnp.linspace(-4.0, 4.0, 17)

    @quick
    def there_and_back(parameters):
        with jax.numpy_rank_promotion("allow"):
            fn = make(*parameters)
        value = jax.vmap(partial(from_standard, fn))(z)
        eps = jnp.finfo(value.dtype).eps
        nearby = jnp.stack([value, value * (1 + 4 * eps), value * (1 - 4 * eps)])
        return value, jax.vmap(jax.vmap(partial(to_standard, fn)))(nearby)

    @settings(max_examples=60)
    @given(parameters=some.tuples(positive, positive, positive))
    def check(parameters):
        value, (back, above, below) = map(np.asarray, there_and_back(jnp.asarray(parameters)))
        assert np.all(np.diff(value) >= 0)
        rounding = np.maximum(np.nan_to_num(np.abs(above - back), nan=np.inf), np.abs(below - back))
        rounding = np.nan_to_num(rounding, nan=np.inf)
        assert np.all(np.abs(back - z) <= 1e-9 + rounding)

    check()


def test_stick_breaking_of_normals_still_works():
    fn = dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([2]), transforms.StickBreakingTransform())
    z = jnp.array([0.3, -0.7])
    np.testing.assert_allclose(to_standard(fn, from_standard(fn, z)), z, rtol=1e-12)
