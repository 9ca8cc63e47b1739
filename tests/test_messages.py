"""Bad input: one sentence that names the culprit and the remedy."""

import inspect
import re
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

from enkg_ppl import (
    AdaptiveImportanceSampling,
    BlackBoxError,
    DiffusionWaltz,
    EllipticalSlice,
    EnKG,
    KalmanCorrection,
    ModelError,
    TemperedSMC,
    blackbox,
    guide,
    infer,
    train_prior,
)

KEY, Y = jr.key(0), jnp.array([0.5, 0.7])
J = 256  # as in test_enkg.py: one compiled program serves both


def good(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a, 0.5).expand([2]).to_event(1), obs=y)


def run(model, *args, **kwargs):
    EnKG(model, num_particles=J, progress_bar=False).run(KEY, *args, **kwargs)


def with_prior(prior):
    def model(y):
        a = numpyro.sample("slope", prior)
        numpyro.sample("y", dist.Normal(jnp.sum(a), 0.5), obs=y)

    return model


def subsampling(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 2, subsample_size=1) as rows:
        numpyro.sample("y", dist.Normal(a, 0.5), obs=y[rows])


def scaled_prior(y):
    with handlers.scale(scale=2.0):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a, 0.5), obs=y)


def numpy_simulator(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(np.sin(np.asarray(a)), 0.5), obs=y)


def branching(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a if a > 0 else -a, 0.5), obs=y)


MODELS = {
    "no-observed-site": (good, (), r"no observed site: give one obs=.*run\(rng_key, ..., y=y\) \(latent sites: a, y\)"),
    "no-latent-site": (lambda y: numpyro.sample("y", dist.Normal(), obs=y), (Y,), "no latent site: every sample"),
    "discrete": (with_prior(dist.Poisson(3.0)), (Y,), r"latent site 'slope': Poisson is discrete.*marginalise"),
    "improper": (
        with_prior(dist.ImproperUniform(dist.constraints.real, (), ())),
        (Y,),
        r"latent site 'slope': ImproperUniform cannot be sampled.*dist.Normal\(0, 100\)",
    ),
    "unsupported": (
        with_prior(dist.TruncatedPolyaGamma()),
        (Y,),
        r"latent site 'slope': TruncatedPolyaGamma has no closed quantiles; learn it with fit_prior\(fn\)",
    ),
    "subsampling": (subsampling, (Y,), "plate 'data' subsamples 1 of 2: .*drop subsample_size"),
    "scaled-prior": (scaled_prior, (Y,), "latent site 'a' is under handlers.scale"),
    "nan-data": (good, (Y * jnp.nan,), r"data of observed site 'y' hold NaN: leave the missing ones out, or mask them"),
    "numpy": (numpy_simulator, (Y,), r"host code such as NumPy or SciPy: wrap that function.*blackbox\(fn, shape"),
    "branch": (branching, (Y,), r"host code such as NumPy"),
}


@pytest.mark.parametrize(("model", "args", "words"), MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_inferred(model, args, words):
    with pytest.raises(ModelError, match=words) as caught:
        run(model, *args)
    assert str(caught.value).replace("e.g. ", "").count(". ") == 0, "one sentence"


@pytest.mark.parametrize("function", [EnKG.__init__, infer, guide, blackbox, train_prior])
def test_misspelt_arguments_are_explained_and_signatures_are_real(function):
    """Nothing takes arguments that it does not have: editors and type checkers see those that there are."""
    parameters = inspect.signature(function).parameters.values()
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters)
    name = next(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and len(p.name) > 4)
    with pytest.raises(TypeError, match=rf"^\w+ has no argument '{name}x'; did you mean '{name}'\?$"):
        function(**{f"{name}x": 1})
    with pytest.raises(TypeError, match=rf"^\w+ has no argument 'qqq'; it takes .*\b{name}\b"):
        function(qqq=1)
    with pytest.raises(TypeError, match="missing .* required positional argument"):
        function()


def test_the_argument_of_a_misspelling_is_the_users():
    with pytest.raises(TypeError, match=r"EnKG has no argument 'num_partcles'; did you mean 'num_particles'\?"):
        EnKG(good, num_partcles=8)
    assert list(inspect.signature(EnKG).parameters)[:3] == ["model", "num_particles", "num_ensembles"]


def test_misspelt_model_argument():
    with pytest.raises(TypeError, match=r"good\(y=None\) was called wrongly by run: .*'yy'; did you mean 'y'\?"):
        run(good, yy=Y)
    with pytest.raises(TypeError, match=r"'Y'; did you mean 'y'\?"):
        run(good, Y=Y)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_particle": 8}, TypeError, r"EnKG has no argument 'num_particle'; did you mean 'num_particles'\?"),
        ({"kernel": 8}, TypeError, "EnKG has no argument 'kernel'; it takes num_particles, num_ensembles"),
        ({"num_particles": 0}, ValueError, "num_particles as a whole number >= 4 .*got 0"),
        ({"num_particles": 1, "refine": None}, ValueError, "num_particles as a whole number >= 2 .*got 1"),
        ({"num_particles": 10.0}, ValueError, "num_particles as a whole number"),
        ({"num_ensembles": 0}, ValueError, "num_ensembles as a whole number >= 1"),
        (
            {"refine": "smc"},
            TypeError,
            r"refine must be 'auto', None or a refinement such as TemperedSMC\(\); got 'smc'",
        ),
        ({"correction": "kalman"}, TypeError, "correction must be a correction such as KalmanCorrection"),
        ({"schedule": [1, 2]}, TypeError, "schedule must be a schedule such as Karras"),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error, match=words):
        EnKG(good, **options)


def test_not_a_model():
    with pytest.raises(TypeError, match="EnKG needs a NumPyro model, a function with sample statements; got 3"):
        EnKG(3)


def test_no_draws_yet():
    enkg = EnKG(good)
    for ask in (enkg.get_samples, enkg.diagnostics, enkg.print_summary, enkg.to_arviz, enkg.get_extra_fields):
        with pytest.raises(RuntimeError, match=r"no draws yet: call run\(rng_key, ...\) first"):
            ask()
    with pytest.raises(RuntimeError, match="no draws yet"):
        _ = enkg.num_forward_evaluations
    assert "not run yet" in repr(enkg)


def test_no_random_key():
    with pytest.raises(TypeError, match=r"run needs a random key first, as in run\(jax.random.key\(0\), ...\); got 0"):
        EnKG(good).run(0, Y)
    with pytest.raises(TypeError, match="run needs a random key first"):
        EnKG(good).run(Y)


def test_unknown_extra_field():
    with pytest.raises(ValueError, match="extra_fields may hold potential_energy and log_likelihood; got 'energy'"):
        EnKG(good).run(KEY, Y, extra_fields=("energy",))


def test_no_warmup():
    with pytest.raises(TypeError, match="EnKG has no warm-up phase"):
        EnKG(good).warmup(KEY)


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda a: np.zeros(3), r"simulate returned shape \(3,\) where \(2,\) is due"),
        (lambda a: np.full(2, np.nan), r"simulate returned NaN for a="),
        (
            lambda a: 1 / 0,
            r"simulate raised ZeroDivisionError: division by zero, for a=.*all 3 simulations so far failed: mend the "
            r"simulator, or the prior",
        ),
    ],
    ids=["shape", "nan", "raises"],
)
def test_a_failing_simulator(fn, words):
    simulate = blackbox(fn, (2,), name="simulate")

    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(simulate(a), 0.5).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=J, progress_bar=False)
    with pytest.raises(BlackBoxError, match=words):
        enkg.run(KEY, Y)
    assert enkg._result is None


def test_nothing_is_lost_when_a_second_run_fails():
    enkg = EnKG(good, num_particles=J, progress_bar=False, refine=EllipticalSlice(max_cycles=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two cycles are few
        enkg.run(KEY, Y)
    before = enkg.get_samples()
    with pytest.raises(ModelError):
        enkg.run(KEY)
    np.testing.assert_array_equal(enkg.get_samples()["a"], before["a"])


def test_guidance_alone_needs_something_to_predict():
    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.factor("f", -(a**2))

    enkg = EnKG(model, num_particles=J, refine=None, progress_bar=False)
    with pytest.raises(ModelError, match=r"guidance can use no observed site \('f': numpyro.factor has no data"):
        enkg.run(KEY)


def test_the_simulator_is_never_differentiated():
    """In the whole default path: a custom rule raises where the simulator is traced for a gradient."""

    @jax.custom_jvp
    def guarded(a):
        return jnp.stack([a, a**2])

    @guarded.defjvp
    def _(primals, tangents):
        raise AssertionError("the simulator was differentiated")

    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(guarded(a), 0.5).to_event(1), obs=y)

    run(model, Y)
    with pytest.raises(AssertionError, match="was differentiated"):
        jax.grad(lambda a: guarded(a).sum())(1.0)


# -- data ------------------------------------------------------------------------------------------------------------


def two_points(y=None):
    a = numpyro.sample("a", dist.Normal())
    numpyro.sample("y", dist.Normal(a * jnp.array([1.0, 2.0]), 0.5).to_event(1), obs=y)


def test_a_list_of_numbers_is_data():
    """The draws are those of an array, bit for bit."""
    found = []
    for y in (jnp.array([1.0, 2.5]), [1.0, 2.5], (1.0, 2.5)):
        enkg = EnKG(two_points, num_particles=64, refine=None, progress_bar=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few particles
            enkg.run(jr.key(0), y=y)
        found.append(np.asarray(enkg.get_samples()["a"]))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (["1", "2"], "the data of observed site 'y' are a list of <U1: pass an array of numbers"),
        ([[1.0], [1.0, 2.0]], "the data of observed site 'y' are a list that makes no array"),
        (jnp.ones(3), r"the data of observed site 'y' have shape \(3,\) where its distribution has \(2,\): pass data"),
    ],
)
def test_data_that_do_not_fit_are_told_with_their_site(y, words):
    with pytest.raises(ModelError, match=words):
        EnKG(two_points, progress_bar=False).run(jr.key(0), y=y)


def test_a_scalar_black_box_in_a_plate_is_told_with_the_plate():
    simulate = blackbox(lambda a: a**2, ())

    def model(y=None):
        with numpyro.plate("points", 3):
            numpyro.sample("y", dist.Normal(simulate(numpyro.sample("a", dist.Normal())), 0.5), obs=y)

    words = r"returned shape \(3,\) where \(\) is due.*plate 'points'.*plates=\"map\""
    with pytest.raises(BlackBoxError, match=words):
        EnKG(model, num_particles=8, progress_bar=False).run(jr.key(0), y=jnp.ones(3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TemperedSMC(num_scouts=8), "TemperedSMC has no argument 'num_scouts'; it is called pilot_size now"),
        (lambda: AdaptiveImportanceSampling(prior_share=0.1), "'prior_share'; it is called defensive_weight now"),
        (lambda: KalmanCorrection(memory=0.5), "'memory'; it is called forgetting_factor now"),
        (lambda: TemperedSMC(num_cmponents=3), "'num_cmponents'; did you mean 'num_components'?"),
        (lambda: DiffusionWaltz(memory=0.5), "DiffusionWaltz has no argument 'memory'; it takes "),
    ],
)
def test_settings_that_are_misspelt_or_renamed(make, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        make()
