"""Every class of NumPyro distributions is transported, or refused in one sentence with the remedy."""

import importlib
import inspect
import re

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms

from enkg_ppl.numpyro.transports import UnsupportedPriorError, from_standard, standard_shape, to_standard

ONE, TWO, EYE = jnp.ones(()), jnp.ones(2), jnp.eye(2)
NORMAL, WEIGHTS = dist.Normal(0.0, 1.0), dist.Categorical(probs=0.5 * TWO)
PAIR = dist.Normal(jnp.zeros(2), 1.0)
COUNT = dist.Poisson(1.0)

TRANSPORTED = [
    lambda: dist.AsymmetricLaplace(0.0, 1.0, 2.0),
    lambda: dist.AsymmetricLaplaceQuantile(0.0, 1.0, 0.3),
    lambda: dist.Beta(2.0, 3.0),
    lambda: dist.BetaProportion(0.5, 3.0),
    lambda: dist.CAR(0.0, 0.5, 1.0, jnp.array([[0.0, 1.0], [1.0, 0.0]])),
    lambda: dist.Cauchy(),
    lambda: dist.Chi2(3.0),
    lambda: dist.CirculantNormal(jnp.zeros(3), jnp.array([2.0, 0.5, 0.5])),
    lambda: dist.Dagum(1.0, 2.0, 3.0),
    lambda: dist.Dirichlet(TWO),
    lambda: dist.DoublyTruncatedPowerLaw(-2.0, 1.0, 2.0),
    lambda: dist.EulerMaruyama(jnp.arange(3.0), lambda y, t: (-y, 1.0), NORMAL),
    lambda: NORMAL.expand([2]),
    lambda: dist.Exponential(),
    lambda: dist.FoldedDistribution(dist.StudentT(3.0, jnp.zeros(2), 1.0)),
    lambda: dist.Gamma(2.0),
    lambda: dist.GaussianCopula(NORMAL, EYE),
    lambda: dist.GaussianCopulaBeta(2.0, 3.0, EYE),
    lambda: dist.GaussianRandomWalk(1.0, 3),
    lambda: dist.GaussianStateSpace(3, EYE, EYE),
    lambda: dist.Gompertz(1.0, 1.0),
    lambda: dist.Gumbel(),
    lambda: dist.HalfCauchy(),
    lambda: dist.HalfNormal(),
    lambda: PAIR.to_event(1),
    lambda: dist.InverseGamma(2.0),
    lambda: dist.InverseWishart(3.0, EYE),
    lambda: dist.InverseWishartCholesky(3.0, EYE),
    lambda: dist.Kumaraswamy(2.0, 3.0),
    lambda: dist.LKJ(3),
    lambda: dist.LKJCholesky(3),
    lambda: dist.Laplace(),
    lambda: dist.TruncatedNormal(0.0, 1.0, low=0.0),
    lambda: dist.TruncatedGamma(2.0, 1.0, low=1.0),
    lambda: dist.Levy(0.0, 1.0),
    lambda: dist.LogNormal(),
    lambda: dist.LogUniform(1.0, 2.0),
    lambda: dist.Logistic(),
    lambda: dist.LowRankMultivariateNormal(TWO, jnp.ones((2, 1)), TWO),
    lambda: dist.LowerTruncatedPowerLaw(-2.0, 1.0),
    lambda: dist.MatrixNormal(jnp.zeros((2, 2)), EYE, EYE),
    lambda: dist.MixtureGeneral(WEIGHTS, [NORMAL, dist.Cauchy()]),
    lambda: dist.MixtureSameFamily(WEIGHTS, PAIR),
    lambda: dist.MultivariateNormal(TWO, EYE),
    lambda: dist.MultivariateStudentT(3.0, TWO, EYE),
    lambda: NORMAL,
    lambda: dist.Pareto(1.0, 2.0),
    lambda: dist.RelaxedBernoulliLogits(ONE, ONE),
    lambda: dist.TruncatedNormal(0.0, 1.0, high=0.0),
    lambda: dist.TruncatedGamma(2.0, 1.0, high=1.0),
    lambda: dist.SoftLaplace(0.0, 1.0),
    lambda: dist.StudentT(3.0),
    lambda: dist.TransformedDistribution(NORMAL, transforms.ExpTransform()),
    lambda: dist.TruncatedNormal(0.0, 1.0, low=0.0, high=1.0),
    lambda: dist.TruncatedGamma(2.0, 1.0, low=1.0, high=2.0),
    lambda: dist.Uniform(),
    lambda: dist.VonMises(0.0, 1.0),
    lambda: dist.Weibull(1.0, 2.0),
    lambda: dist.Wishart(3.0, EYE),
    lambda: dist.WishartCholesky(3.0, EYE),
    lambda: dist.ZeroSumNormal(1.0, (3,)),
]
DISCRETE = [
    lambda: dist.Bernoulli(logits=0.5),
    lambda: dist.Bernoulli(0.5),
    lambda: dist.BetaBinomial(1.0, 1.0, 3),
    lambda: dist.BetaNegativeBinomial(2.0, 2.0, 3),
    lambda: dist.Binomial(3, logits=0.5),
    lambda: dist.Binomial(3, 0.5),
    lambda: dist.Categorical(logits=TWO),
    lambda: WEIGHTS,
    lambda: dist.DirichletMultinomial(TWO, 3),
    lambda: dist.DiscreteUniform(0, 3),
    lambda: dist.GammaPoisson(1.0),
    lambda: dist.Geometric(logits=0.5),
    lambda: dist.Geometric(0.5),
    lambda: dist.HurdleDistribution(COUNT, gate_logits=0.5),
    lambda: dist.HurdleNegativeBinomial2(0.5, 1.0, 1.0),
    lambda: dist.HurdlePoisson(0.5, 1.0),
    lambda: dist.HurdleDistribution(COUNT, gate=0.5),
    lambda: dist.Multinomial(3, logits=TWO),
    lambda: dist.Multinomial(3, 0.5 * TWO),
    lambda: dist.NegativeBinomial2(1.0, 1.0),
    lambda: dist.NegativeBinomial(3, logits=0.5),
    lambda: dist.NegativeBinomial(3, 0.5),
    lambda: dist.OrderedLogistic(0.0, jnp.array([0.0, 1.0])),
    lambda: dist.Poisson(3.0),
    lambda: dist.ZeroInflatedDistribution(COUNT, gate_logits=0.5),
    lambda: dist.ZeroInflatedNegativeBinomial2(1.0, 1.0, gate=0.5),
    lambda: dist.ZeroInflatedPoisson(0.5, 1.0),
    lambda: dist.ZeroInflatedDistribution(COUNT, gate=0.5),
    lambda: dist.Poisson(3.0).expand([2]).to_event(1),
]
FIT = r"no closed quantiles; learn it with fit_prior\(fn\)"
REFUSED = [
    *((make, "is discrete.*marginalise the site out") for make in DISCRETE),
    (lambda: dist.HurdleGamma(0.5, 1.0, 1.0), "has a point mass.*continuous part"),
    (lambda: dist.HurdleLogNormal(0.5, 0.0, 1.0), "has a point mass.*continuous part"),
    (lambda: dist.Delta(1.0), "leaves nothing to infer.*deterministic"),
    (lambda: dist.ImproperUniform(dist.constraints.real, (), ()), r"cannot be sampled.*dist.Normal\(0, 100\)"),
    (lambda: dist.IntervalCensoredDistribution(NORMAL, False, False), "incomplete data; declare it with obs="),
    (lambda: dist.LeftCensoredDistribution(NORMAL, False), "incomplete data; declare it with obs="),
    (lambda: dist.RightCensoredDistribution(NORMAL, False), "incomplete data; declare it with obs="),
    (lambda: NORMAL.mask(False), "is not a prior.*mask the likelihood"),
    (lambda: dist.ProjectedNormal(TWO), r"more scores than dimensions; sample x.*linalg.norm\(x\)"),
    (lambda: dist.SineBivariateVonMises(0.0, 0.0, 2.0, 2.0, 0.5), FIT),
    (lambda: dist.SineSkewed(dist.VonMises(TWO, 1.0).to_event(1), 0.2 * TWO), FIT),
    (lambda: dist.TruncatedPolyaGamma(), FIT),
    (lambda: dist.Unit(ONE), "carries no value.*factor"),
    # of transported classes, what is not
    (lambda: dist.FoldedDistribution(dist.Gumbel()), "absolute value of a skewed.*jnp.abs"),
    (lambda: dist.TransformedDistribution(NORMAL, transforms.AbsTransform()), "which has no inverse; sample.*jnp.abs"),
    (
        lambda: dist.MixtureSameFamily(WEIGHTS, dist.MultivariateNormal(jnp.zeros((2, 2)), EYE)),
        r"several dimensions.*fit_prior\(fn\).*DiffusionPrior\(MixturePrior",
    ),
    (
        lambda: dist.MixtureGeneral(WEIGHTS, [dist.Delta(0.0), NORMAL], support=dist.constraints.real),
        "Delta leaves nothing to infer",
    ),
]


def made(make):
    with jax.numpy_rank_promotion("allow"):  # NumPyro's own constructors rely on it
        return make()


def test_every_class_of_numpyro_is_here():
    here = {type(made(make)).__name__ for make in (*TRANSPORTED, *(make for make, _ in REFUSED))}
    classes = {name for name, cls in vars(dist).items() if inspect.isclass(cls) and issubclass(cls, dist.Distribution)}
    assert classes - {"Distribution"} <= here


@pytest.mark.parametrize("make", TRANSPORTED)
def test_transported(make):
    fn = made(make)
    z = jax.ShapeDtypeStruct(standard_shape(fn), jnp.float32)
    value = jax.eval_shape(lambda z: from_standard(fn, z), z)
    assert (value.shape, value.dtype) == (fn.shape(), jnp.float32)
    back = jax.eval_shape(lambda x: to_standard(fn, x), value)
    assert (back.shape, back.dtype) == (z.shape, z.dtype)


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_refused_in_one_sentence_with_the_remedy(make, words):
    fn = made(make)
    for transport, shape in ((from_standard, standard_shape(fn)), (to_standard, fn.shape())):
        with pytest.raises(UnsupportedPriorError, match=words) as caught:
            transport(fn, jnp.zeros(shape))
        sentence = str(caught.value)
        assert sentence.endswith(".")
        assert sentence.replace("e.g. ", "").count(". ") == 0, "one sentence"
        assert ";" in sentence, "with the remedy"


def test_unknown_distributions_are_refused_with_three_ways_out():
    class Own(dist.Distribution):
        support = dist.constraints.real

    with pytest.raises(UnsupportedPriorError, match=r"Own has no transport.*fit_prior.*supported.*register") as caught:
        from_standard(Own(), ONE)
    home, _, name = re.findall(r"enkg_ppl[.\w]*\w", str(caught.value))[-1].rpartition(".")
    module = importlib.import_module(home)
    assert name in module.__all__, "what the message recommends is public"
    getattr(module, name)(Own, lambda fn, z: 2 * z, lambda fn, value: value / 2)
    assert from_standard(Own(), ONE) == 2 * ONE
