"""Site transports: every entry of the registry against scipy's tails, and the contracts all of them share."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats as st
from numpyro.distributions import transforms
from tail_oracles import Dagum, Folded, Kumaraswamy, LogUniform, Mixture, PowerLaw, Truncated, VonMises

from enkg_ppl.numpyro.transports import from_standard, register, standard_shape, to_standard

# Compilation is nearly all of the time here; unoptimised it takes half as long.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Case(NamedTuple):
    """A batch of distributions and one oracle for each element.

    Tolerances are of the log of the smaller tail probability, relative to one plus its size; float64,
    float32.
    """

    fn: Any
    oracles: list
    tolerance: tuple[float, float] = (2e-13, 5e-6)


def batch(*values):
    return np.asarray(values)


INF = np.inf
CASES = {
    "Normal": Case(dist.Normal(batch(0.0, -3.0), batch(1.0, 0.1)), [st.norm(), st.norm(-3, 0.1)]),
    "LogNormal": Case(dist.LogNormal(batch(0.0, 1.0), 0.5), [st.lognorm(0.5), st.lognorm(0.5, scale=np.e)]),
    "Uniform": Case(dist.Uniform(batch(0.0, -2.0), batch(1.0, 3.0)), [st.uniform(), st.uniform(-2, 5)]),
    "LogUniform": Case(dist.LogUniform(batch(0.125, 1.0), 8.0), [LogUniform(0.125, 8), LogUniform(1, 8)]),
    "Exponential": Case(dist.Exponential(batch(1.0, 20.0)), [st.expon(), st.expon(scale=0.05)]),
    "HalfNormal": Case(dist.HalfNormal(batch(1.0, 5.0)), [st.halfnorm(), st.halfnorm(scale=5)]),
    "HalfCauchy": Case(dist.HalfCauchy(batch(1.0, 5.0)), [st.halfcauchy(), st.halfcauchy(scale=5)]),
    "Laplace": Case(dist.Laplace(0.0, batch(1.0, 5.0)), [st.laplace(), st.laplace(scale=5)]),
    "Logistic": Case(dist.Logistic(0.0, batch(1.0, 5.0)), [st.logistic(), st.logistic(scale=5)]),
    "SoftLaplace": Case(dist.SoftLaplace(0.0, batch(1.0, 5.0)), [st.hypsecant(), st.hypsecant(scale=5)]),
    "Cauchy": Case(dist.Cauchy(0.0, batch(1.0, 5.0)), [st.cauchy(), st.cauchy(scale=5)]),
    "Gumbel": Case(dist.Gumbel(batch(0.0, 1.0), 2.0), [st.gumbel_r(scale=2), st.gumbel_r(1, 2)]),
    "Weibull": Case(dist.Weibull(2.0, batch(0.3, 1.5)), [st.weibull_min(0.3, scale=2), st.weibull_min(1.5, scale=2)]),
    "Gompertz": Case(dist.Gompertz(batch(0.3, 2.0), 1.0), [st.gompertz(0.3), st.gompertz(2)]),
    "Pareto": Case(dist.Pareto(1.0, batch(0.5, 3.0)), [st.pareto(0.5), st.pareto(3)]),
    "Levy": Case(dist.Levy(0.0, batch(1.0, 3.0)), [st.levy(), st.levy(scale=3)]),
    "AsymmetricLaplace": Case(
        dist.AsymmetricLaplace(0.0, 1.0, batch(0.5, 2.0)),
        [st.laplace_asymmetric(0.5), st.laplace_asymmetric(2)],
    ),
    "Kumaraswamy": Case(dist.Kumaraswamy(batch(0.5, 3.0), batch(2.0, 0.7)), [Kumaraswamy(0.5, 2), Kumaraswamy(3, 0.7)]),
    "Gamma": Case(
        dist.Gamma(batch(0.1, 0.7, 1.0, 2.5, 40.0, 3e3), 2.0),
        [st.gamma(a, scale=0.5) for a in (0.1, 0.7, 1.0, 2.5, 40.0, 3e3)],
        (2e-13, 5e-5),
    ),
    "InverseGamma": Case(dist.InverseGamma(batch(0.5, 3.0), 2.0), [st.invgamma(0.5, scale=2), st.invgamma(3, scale=2)]),
    "Beta": Case(
        dist.Beta(batch(0.05, 0.5, 2.0, 1.0, 30.0, 500.0), batch(3.0, 0.5, 5.0, 0.1, 60.0, 7.0)),
        [st.beta(*p) for p in ((0.05, 3), (0.5, 0.5), (2, 5), (1, 0.1), (30, 60), (500, 7))],
        (2e-13, 2e-5),
    ),
    "StudentT": Case(
        dist.StudentT(batch(0.5, 1.0, 4.0, 30.0, 1e5), 0.0, 2.0),
        [st.t(df, scale=2) for df in (0.5, 1.0, 4.0, 30.0, 1e5)],
    ),
    "TruncatedNormal": Case(
        dist.TruncatedNormal(
            batch(1.5, 0.0, 0.0, 0.0, 0.0),
            1.0,
            low=batch(0.0, -1.0, 5.0, -30.0, -1e6),
            high=batch(INF, 2.0, 5.2, -20.0, 1.0),
        ),
        [
            Truncated(st.norm(mean), low, high)
            for mean, low, high in ((1.5, 0, INF), (0, -1, 2), (0, 5, 5.2), (0, -30, -20), (0, -1e6, 1))
        ],
        (1e-12, 2e-5),
    ),
    "LeftTruncatedNormal": Case(
        dist.TruncatedNormal(batch(-4.0, 2.0), 0.5, low=0.0),
        [Truncated(st.norm(-4, 0.5), 0, INF), Truncated(st.norm(2, 0.5), 0, INF)],
        (1e-12, 2e-5),
    ),
    "RightTruncatedLogistic": Case(
        dist.TruncatedDistribution(dist.Logistic(batch(-4.0, 9.0), 0.5), high=0.0),
        [Truncated(st.logistic(-4, 0.5), -INF, 0), Truncated(st.logistic(9, 0.5), -INF, 0)],
    ),
    "TruncatedCauchy": Case(
        dist.TruncatedDistribution(dist.Cauchy(1.0, 1.0), low=batch(0.0, 2.0), high=batch(8.0, 3.0)),
        [Truncated(st.cauchy(1), 0, 8), Truncated(st.cauchy(1), 2, 3)],
    ),
    "LeftTruncatedCauchy": Case(
        dist.TruncatedDistribution(dist.Cauchy(batch(1.0, -5.0), 1.0), low=0.0),
        [Truncated(st.cauchy(1), 0, INF), Truncated(st.cauchy(-5), 0, INF)],
    ),
    "TruncatedLaplace": Case(
        dist.TruncatedDistribution(dist.Laplace(1.0, 1.0), low=batch(0.0, 2.0), high=batch(8.0, 3.0)),
        [Truncated(st.laplace(1), 0, 8), Truncated(st.laplace(1), 2, 3)],
    ),
    "TruncatedLogistic": Case(
        dist.TruncatedDistribution(dist.Logistic(1.0, 1.0), low=batch(0.0, 2.0), high=batch(8.0, 3.0)),
        [Truncated(st.logistic(1), 0, 8), Truncated(st.logistic(1), 2, 3)],
    ),
    "TruncatedSoftLaplace": Case(
        dist.TruncatedDistribution(dist.SoftLaplace(1.0, 1.0), low=batch(0.0, 2.0), high=batch(8.0, 3.0)),
        [Truncated(st.hypsecant(1), 0, 8), Truncated(st.hypsecant(1), 2, 3)],
    ),
    "TruncatedStudentT": Case(
        dist.TruncatedDistribution(dist.StudentT(batch(4.0, 1.5), 1.0, 1.0), low=0.0, high=batch(8.0, 64.0)),
        [Truncated(st.t(4, 1), 0, 8), Truncated(st.t(1.5, 1), 0, 64)],
        (1e-12, 2e-5),
    ),
    "VonMises": Case(
        dist.VonMises(0.0, batch(1e-3, 0.3, 1.0, 7.0, 200.0, 1e4)),
        [VonMises(kappa) for kappa in (1e-3, 0.3, 1.0, 7.0, 200.0, 1e4)],
        (1e-12, 2e-5),
    ),
    "Dagum": Case(
        dist.Dagum(batch(0.5, 3.0), batch(2.0, 0.7), batch(1.0, 4.0)),
        [Dagum(0.5, 2, 1), Dagum(3, 0.7, 4)],
        (1e-12, 2e-5),
    ),
    "AsymmetricLaplaceQuantile": Case(
        dist.AsymmetricLaplaceQuantile(0.0, 1.0, batch(0.2, 0.9)),
        [st.laplace_asymmetric(np.sqrt(p / (1 - p)), scale=1 / np.sqrt(p * (1 - p))) for p in (0.2, 0.9)],
    ),
    "DoublyTruncatedPowerLaw": Case(
        dist.DoublyTruncatedPowerLaw(
            batch(-1.0, -2.5, 1.5, -0.5, -40.0), batch(0.5, 1.0, 0.25, 0.0, 1.0), batch(8.0, 1.5, 4.0, 2.0, 1e3)
        ),
        [PowerLaw(*p) for p in ((-1, 0.5, 8.0), (-2.5, 1.0, 1.5), (1.5, 0.25, 4.0), (-0.5, 0.0, 2.0), (-40, 1.0, 1e3))],
        (1e-12, 2e-5),
    ),
    "LowerTruncatedPowerLaw": Case(
        dist.LowerTruncatedPowerLaw(batch(-1.5, -4.0), batch(1.0, 2.0)), [st.pareto(0.5), st.pareto(3, scale=2)]
    ),
    "TruncatedGamma": Case(
        dist.TruncatedGamma(
            batch(2.0, 0.5, 40.0, 3e3, 9.0),
            2.0,
            low=batch(0.5, 0.0, 30.0, 1.4e3, 1.0),
            high=batch(3.0, 2.0, 35.0, 1.5e3, 1.25),
        ),
        [
            Truncated(st.gamma(a, scale=0.5), low, high)
            for a, low, high in ((2, 0.5, 3), (0.5, -1, 2), (40, 30, 35), (3e3, 1.4e3, 1.5e3), (9, 1, 1.25))
        ],
        (3e-12, 2e-4),
    ),
    "LeftTruncatedGamma": Case(
        dist.LeftTruncatedGamma(dist.Gamma(batch(0.5, 3.0, 3.0), 1.0), low=batch(0.5, 0.1, 60.0)),
        [Truncated(st.gamma(a), low, INF) for a, low in ((0.5, 0.5), (3, 0.1), (3, 60))],
        (1e-12, 2e-5),
    ),
    "MixtureSameFamily": Case(
        dist.MixtureSameFamily(
            dist.Categorical(probs=batch([0.3, 0.7], [1e-3, 0.999])),
            dist.Normal(batch([-3.0, 1.0], [-50.0, 0.0]), batch([0.5, 1.0], [0.1, 3.0])),
        ),
        [
            Mixture((0.3, 0.7), (st.norm(-3, 0.5), st.norm(1, 1))),
            Mixture((1e-3, 0.999), (st.norm(-50, 0.1), st.norm(0, 3))),
        ],
        (1e-12, 2e-5),
    ),
    "MixtureGeneral": Case(
        dist.MixtureGeneral(
            dist.Categorical(logits=np.log(batch(1.0, 2.0, 1.0))),
            [dist.Normal(batch(0.0, 2.0), 1.0), dist.Laplace(5.0, 2.0), dist.Gumbel(-4.0, 1.0)],
        ),
        [Mixture((0.25, 0.5, 0.25), (st.norm(m), st.laplace(5, 2), st.gumbel_r(-4))) for m in (0, 2)],
        (1e-12, 2e-5),
    ),
    "MixtureOfSupports": Case(
        dist.MixtureGeneral(
            dist.Categorical(probs=batch(0.5, 0.2, 0.3)),
            [dist.Normal(batch(0.0, 1.0), 1.0), dist.Exponential(0.5), dist.Uniform(2.0, 3.0)],
            support=dist.constraints.real,
        ),
        [Mixture((0.5, 0.2, 0.3), (st.norm(m), st.expon(scale=2), st.uniform(2, 1))) for m in (0, 1)],
        (1e-12, 2e-5),
    ),
    "FoldedNormal": Case(
        dist.FoldedDistribution(dist.Normal(batch(0.0, 3.0, -2.0), batch(1.0, 1.0, 0.25))),
        [Folded(st.norm()), Folded(st.norm(3)), Folded(st.norm(-2, 0.25))],
        (1e-12, 2e-5),
    ),
    "FoldedLogistic": Case(
        dist.FoldedDistribution(dist.Logistic(batch(0.0, 5.0), 2.0)),
        [Folded(st.logistic(0, 2)), Folded(st.logistic(5, 2))],
        (1e-12, 2e-5),
    ),
}
REACH = {"float64": 30.0, "float32": 8.0}
GRIDS = {name: np.linspace(-reach, reach, 121).astype(name) for name, reach in REACH.items()}
# In single precision these take the way of a sibling that is not named here.
SINGLE_IS_SLOW = {
    "InverseGamma",
    "RightTruncatedLogistic",
    "LeftTruncatedCauchy",
    "LeftTruncatedGamma",
    "TruncatedLaplace",
    "TruncatedLogistic",
    "TruncatedSoftLaplace",
    "TruncatedStudentT",
    "MixtureGeneral",
    "MixtureOfSupports",
    "FoldedLogistic",
}


def there_and_back(fn, z):
    value = from_standard(fn, z)
    return value, to_standard(fn, value)


class Evaluated(NamedTuple):
    """Scores, values and recovered scores of one case, each ``(grid, batch)``, and `tails` of each oracle."""

    name: str
    dtype: str
    z: np.ndarray
    value: np.ndarray
    back: np.ndarray
    tails: list


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, dtype), id=f"{name}-{dtype}", marks=pytest.mark.slow if slow else ())
        for name in CASES
        for dtype in REACH
        for slow in [dtype == "float32" and name in SINGLE_IS_SLOW]
    ],
)
def evaluated(request):
    """One compilation for all contracts, which run one after the other since the fixture is the module's."""
    name, dtype = request.param
    fn = CASES[name].fn
    z = np.broadcast_to(GRIDS[dtype][:, None], (GRIDS[dtype].size, *fn.batch_shape))
    value, back = quick(jax.vmap(partial(there_and_back, fn)))(z)
    assert value.dtype == back.dtype == dtype
    z, value, back = (np.asarray(array, float) for array in (z, value, back))
    found = [tails(oracle, z[:, k], value[:, k], dtype) for k, oracle in enumerate(CASES[name].oracles)]
    return Evaluated(name, dtype, z, value, back, found)


def tails(oracle, z, value, dtype):
    """Log of the smaller tail: wanted, found, its change over one spacing of the floats at the value,
    comparable.

    Not comparable are flushed underflows, clipped overflows, and values that rounding takes to a bound.
    """
    info = np.finfo(dtype)
    size = np.abs(value)
    with np.errstate(all="ignore"):
        wanted = scipy.special.log_ndtr(-np.abs(z))
        found = np.where(z < 0, oracle.logcdf(value), oracle.logsf(value))
        rounding = np.exp(oracle.logpdf(value) - found) * np.spacing(size.astype(dtype)).astype(float)
        inside = (size > 2 * float(info.tiny)) & (size < 0.5 * float(info.max)) | (size == 0)
        comparable = inside & (rounding < 1e-2) & np.isfinite(found)
    return wanted, np.where(comparable, found, wanted), np.where(comparable, rounding, 0.0), comparable


def test_tails_agree_with_oracle(evaluated):
    name, dtype, z, value, *_ = evaluated
    tolerance = CASES[name].tolerance[dtype == "float32"]
    for k, (wanted, found, rounding, comparable) in enumerate(evaluated.tails):
        assert comparable.mean() > 0.2
        error = (np.abs(found - wanted) - 4 * rounding) / (1 - wanted)
        worst = np.argmax(error)
        assert error[worst] < tolerance, (k, z[worst, k], value[worst, k])


def test_increasing_and_inside_support(evaluated):
    fn, value = CASES[evaluated.name].fn, evaluated.value
    assert np.all(np.diff(value, axis=0) >= 0)
    assert np.all(np.isfinite(value))
    assert np.all(np.asarray(quick(jax.vmap(fn.support))(value.astype(evaluated.dtype))))
    assert np.all(value > np.asarray(getattr(fn.support, "lower_bound", -INF)))
    assert np.all(value < np.asarray(getattr(fn.support, "upper_bound", INF)))


def test_round_trip(evaluated):
    _, dtype, z, value, back, found = evaluated
    tolerance = (1e-11, 3e-4)[dtype == "float32"]
    for k, (*_, rounding, comparable) in enumerate(found):
        # d log Phi / dz is at least max(|z|, 0.79) in the smaller tail
        error = np.abs(back[:, k] - z[:, k]) - 4 * rounding / np.maximum(np.abs(z[:, k]), 0.79)
        worst = np.argmax(np.where(comparable, error, -INF))
        assert error[worst] < tolerance, (k, z[worst, k], value[worst, k])


def test_positive_families_do_not_round_to_zero_or_infinity():
    for fn in (dist.Gamma(1e-3, 1.0), dist.Weibull(1.0, 0.01), dist.InverseGamma(1e-3, 1.0)):
        value = quick(jax.vmap(lambda z, fn=fn: from_standard(fn, z)))(jnp.asarray([-8.0, 8.0], jnp.float32))
        assert np.all(np.isfinite(value))
        assert np.all(np.asarray(value) > 0)


MIXED = {
    "Normal": dist.Normal(1.0, 2.0),
    "Gamma": dist.Gamma(2.0, 3.0),
    "TruncatedNormal": dist.TruncatedNormal(1.0, 2.0, low=0.0),
    "MultivariateNormal": dist.MultivariateNormal(jnp.ones(2), jnp.array([[2.0, 0.5], [0.5, 1.0]])),
    "expanded": dist.Normal(jnp.zeros((2, 1)), 1.0).expand([3, 2, 4]).to_event(1),
    "transformed": dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([2]), transforms.StickBreakingTransform()),
}


@pytest.mark.parametrize("fn", MIXED.values(), ids=MIXED.keys())
def test_vmap_equals_loop(fn):
    z = jax.random.normal(jax.random.key(0), (3, *standard_shape(fn)))
    one = quick(partial(there_and_back, fn))
    rows = [np.stack(arrays) for arrays in zip(*(one(row) for row in z), strict=True)]
    mapped, back = quick(jax.vmap(partial(there_and_back, fn)))(z)
    np.testing.assert_allclose(mapped, rows[0], rtol=1e-12)
    np.testing.assert_allclose(back, rows[1], atol=1e-11)
    np.testing.assert_allclose(back, z, atol=1e-11)


SHAPES = {
    "scalar": lambda: dist.Normal(0, 1),
    "batch": lambda: dist.Normal(jnp.zeros((2, 1)), jnp.ones(3)),
    "event": lambda: dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(1),
    "leading": lambda: dist.Normal(jnp.zeros(3), 1.0).expand([5, 4, 3]),
    "interstitial": lambda: dist.Normal(jnp.zeros((3, 1, 2, 1)), 1.0).expand([5, 3, 4, 2, 6]),
    "expanded_event": lambda: dist.Normal(jnp.zeros((1, 3)), 1.0).to_event(1).expand([4]),
    "expanded_twice": lambda: dist.Normal(0.0, 1.0).expand([1, 3]).expand([2, 5, 3]),
    "multivariate": lambda: dist.MultivariateNormal(jnp.zeros((4, 1, 3)), jnp.eye(3)).expand([2, 4, 5]),
    "low_rank": lambda: dist.LowRankMultivariateNormal(jnp.zeros(3), jnp.ones((3, 2)), jnp.ones(3)).expand([4]),
    "simplex": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([4, 2]), transforms.StickBreakingTransform()
    ),
    "transformed_batch": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), transforms.AffineTransform(jnp.zeros((2, 1)), jnp.ones((2, 3)))
    ),
    "no_elements": lambda: dist.Normal(jnp.zeros(0), 1.0).expand([2, 0]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    fn = SHAPES[name]()
    z = jax.random.normal(jax.random.key(1), standard_shape(fn))
    value, back = quick(lambda z: there_and_back(fn, z))(z)
    assert value.shape == fn.shape()
    assert back.shape == z.shape
    np.testing.assert_allclose(back, z, atol=1e-10)


def test_expanded_elements_follow_their_own_parameters():
    loc = 10.0 * jnp.arange(6.0).reshape(3, 1, 2)
    value = quick(partial(from_standard, dist.Normal(loc, 1.0).expand([5, 3, 4, 2])))(jnp.zeros((5, 3, 4, 2)))
    np.testing.assert_array_equal(value, jnp.broadcast_to(loc[None], (5, 3, 4, 2)))
    tril = jnp.stack([jnp.eye(2), 3.0 * jnp.eye(2)])[:, None]
    z = jax.random.normal(jax.random.key(2), (4, 2, 3, 2))
    fn = dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril).expand([4, 2, 3])
    value = quick(partial(from_standard, fn))(z)
    np.testing.assert_allclose(value, z * jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1))


@pytest.mark.parametrize(
    ("fn", "same"),
    [(dist.Chi2(4.0), dist.Gamma(2.0, 0.5)), (dist.BetaProportion(0.2, 10.0), dist.Beta(2.0, 8.0))],
)
def test_special_cases_take_the_general_way(fn, same):
    z = jax.ShapeDtypeStruct((), jnp.float64)
    ours, theirs = (jax.make_jaxpr(partial(from_standard, f))(z) for f in (fn, same))
    assert str(ours) == str(theirs)


def test_inside_plates():
    def model():
        with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1):
            return numpyro.sample("x", dist.Normal(jnp.arange(4.0), 1.0).expand([3, 4]))

    with jax.numpy_rank_promotion("allow"):  # NumPyro's own sampling relies on it
        trace = numpyro.handlers.trace(numpyro.handlers.seed(model, jax.random.key(0))).get_trace()
    fn = trace["x"]["fn"]
    assert standard_shape(fn) == (3, 4)
    np.testing.assert_array_equal(from_standard(fn, jnp.zeros((3, 4)))[1], jnp.arange(4.0))


@pytest.mark.parametrize(
    "fn",
    [
        dist.MultivariateNormal(jnp.ones(3), scale_tril=jnp.array([[2.0, 0, 0], [1, 1, 0], [0, -1, 0.5]])),
        dist.MultivariateNormal(jnp.ones(2), precision_matrix=jnp.array([[2.0, 0.5], [0.5, 1.0]])),
        dist.LowRankMultivariateNormal(jnp.ones(4), jnp.arange(8.0).reshape(4, 2), jnp.arange(1.0, 5.0)),
        dist.LowRankMultivariateNormal(jnp.ones(3), jnp.ones((3, 1)), 1e-6 * jnp.ones(3)),
    ],
    ids=["scale_tril", "precision", "low_rank", "nearly_singular"],
)
def test_multivariate_normal_has_the_right_moments(fn):
    dim = fn.event_shape[0]
    with jax.numpy_rank_promotion("allow"):  # NumPyro's own algebra relies on it
        mean, covariance = np.asarray(fn.mean), np.asarray(fn.covariance_matrix)
    z = jnp.concatenate([jnp.eye(dim), jnp.zeros((1, dim)), jnp.linspace(-2.0, 2.0, dim)[None]])
    value, back = quick(jax.vmap(partial(there_and_back, fn)))(z)
    np.testing.assert_allclose(value[dim], mean)
    root = np.asarray(value[:dim]) - mean
    np.testing.assert_allclose(root.T @ root, covariance, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(back, z, rtol=1e-8, atol=1e-8)


SAMPLED = {
    "Kumaraswamy": dist.Kumaraswamy(2.0, 3.0),
    "SoftLaplace": dist.SoftLaplace(1.0, 2.0),
    "AsymmetricLaplace": dist.AsymmetricLaplace(1.0, 2.0, 3.0),
    "TruncatedLogistic": dist.TruncatedDistribution(dist.Logistic(1.0, 2.0), low=0.0, high=4.0),
    "RelaxedBernoulli": dist.RelaxedBernoulliLogits(jnp.asarray(0.7), jnp.asarray(0.5)),
    "two transforms": dist.TransformedDistribution(
        dist.Uniform(0.0, 1.0), [transforms.AffineTransform(1.0, -3.0), transforms.ExpTransform()]
    ),
    "ZeroSumNormal": dist.ZeroSumNormal(2.0, (3,)),
    "MultivariateNormal": MIXED["MultivariateNormal"],
}


@pytest.mark.parametrize("name", SAMPLED)
def test_has_the_distribution_of_its_samples(name):
    # Two-sample Kolmogorov-Smirnov on 4,000 draws, smallest p-value of up to 3 coordinates above 1e-3.
    # With the seeds 0..19 none of the entries fails; chance would fail 0.3 % of the coordinates.
    fn = SAMPLED[name]
    key_z, key_x = jax.random.split(jax.random.key(0))
    z = jax.random.normal(key_z, (4000, *standard_shape(fn)))
    mapped = np.asarray(quick(jax.vmap(lambda z: from_standard(fn, z)))(z)).reshape(4000, -1)
    with jax.numpy_rank_promotion("allow"):
        sampled = np.asarray(fn.sample(key_x, (4000,))).reshape(4000, -1)
    for ours, theirs in zip(mapped.T, sampled.T, strict=True):
        assert st.ks_2samp(ours, theirs).pvalue > 1e-3


def test_parameters_may_be_traced():
    @quick
    @jax.vmap
    def hierarchical(z):
        scale = from_standard(dist.HalfCauchy(1.0), z[0])
        return from_standard(dist.TruncatedNormal(z[1] * jnp.ones(3), scale, low=0.0), z[2:])

    value = hierarchical(jax.random.normal(jax.random.key(0), (7, 5)))
    assert value.shape == (7, 3)
    assert np.all(np.asarray(value) > 0)


def test_float32_scores_stay_float32_with_double_parameters():
    for fn in (*MIXED.values(), dist.Normal(np.zeros(2), 1), dist.StudentT(3, np.float64(1), 2)):
        z = jax.ShapeDtypeStruct(standard_shape(fn), jnp.float32)
        value = jax.eval_shape(lambda z, fn=fn: from_standard(fn, z), z)
        assert value.dtype == jnp.float32
        assert jax.eval_shape(lambda x, fn=fn: to_standard(fn, x), value).dtype == jnp.float32


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"Normal takes a score of shape \(2,\); got \(3,\)"):
        from_standard(dist.Normal(jnp.zeros(2), 1.0), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"Normal takes a value of shape \(\); got \(3,\)"):
        to_standard(dist.Normal(0.0, 1.0), jnp.zeros(3))


def test_own_distributions_can_be_registered():
    class Shifted(dist.Distribution):
        support = dist.constraints.real

    register(Shifted, lambda fn, z: z + 1.0, lambda fn, value: value - 1.0)
    fn = Shifted().expand([2])
    np.testing.assert_array_equal(from_standard(fn, jnp.zeros(2)), jnp.ones(2))
    np.testing.assert_array_equal(to_standard(fn, jnp.ones(2)), jnp.zeros(2))
    assert standard_shape(fn) == (2,)


def test_own_distributions_may_have_scores_of_another_shape():
    """Weights of three that sum to one, from two scores."""

    class Weights(dist.Distribution):
        support = dist.constraints.simplex

        def __init__(self):
            super().__init__((), (3,))

    register(
        Weights,
        lambda fn, z: jax.nn.softmax(jnp.append(z, 0.0)),
        lambda fn, value: jnp.log(value[:-1] / value[-1]),
        shape=lambda fn: (2,),
    )
    assert standard_shape(Weights()) == (2,)
    z = jnp.array([0.3, -1.2])
    np.testing.assert_allclose(to_standard(Weights(), from_standard(Weights(), z)), z, rtol=1e-12)
