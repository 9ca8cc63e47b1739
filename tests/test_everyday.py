"""Models as NumPyro users write them, each with everything that follows a run; and the posterior against NUTS."""

import warnings

import arviz as az
import jax
import jax.random as jr
import numpy as np
import pytest
import scipy.stats as st
from numpyro import handlers
from numpyro.infer import Predictive, log_likelihood
from numpyro.infer.util import log_density

from enkg_ppl import EnKG, TemperedSMC
from validation.posteriors import targets
from validation.posteriors.everyday import Everyday, everyday
from validation.target import flatten

MODELS = everyday()
TARGETS = {name.removeprefix("everyday/"): target for name, target in targets().items()}
FROM_FILES = {
    "kidscore": "posteriordb/kidscore_momiq",
    "gp_regr": "posteriordb/gp_regr",
    "sblri_blr": "posteriordb/sblri_blr",
    "bernoulli_glm": "sbibm/bernoulli_glm/1",
}
NAMES = [*MODELS, *FROM_FILES]
J = 128
QUICK = ("local_level",)
BY_MODEL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module")
def target_of(shared_data):
    """A target by the model's name; those whose data and truth are files skip where these are absent."""

    def find(name):
        if name in TARGETS:
            return TARGETS[name]
        return targets(shared_data("reference"))[FROM_FILES[name]]

    return find


@pytest.fixture(scope="module")
def fitted(target_of):
    """Every model fitted once, when a test first asks for it."""
    kept, models = {}, dict(MODELS)

    def fit(name):
        if name not in kept:
            if name not in models:
                target = target_of(name)
                models[name] = Everyday(target.model, target.args, target.kwargs, target.sites)
            one = models[name]
            kept[name] = EnKG(one.model, num_particles=J, num_ensembles=2, progress_bar=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # 128 particles are few; the comparison below has no such filter
                kept[name].run(jr.key(0), *one.args, **one.kwargs)
        return models[name], kept[name]

    return fit


@pytest.mark.parametrize("name", BY_MODEL)
def test_predictive(fitted, name):
    one, enkg = fitted(name)
    data = next(iter(one.kwargs))
    observed = "y" if name == "local_level" else data
    predicted = Predictive(one.model, enkg.get_samples())(jr.key(1), *one.args)[observed]
    assert predicted.shape == (2 * J, *np.shape(one.kwargs[data]))
    # The data lie among their replications: in the mean over data, within 4 sd of it.
    means = np.asarray(predicted, float).reshape(2 * J, -1).mean(axis=1)
    assert abs(np.mean(one.kwargs[data]) - means.mean()) < 4 * means.std()


@pytest.mark.parametrize("name", BY_MODEL)
def test_pointwise_log_likelihood(fitted, name):
    one, enkg = fitted(name)
    if name == "local_level":
        pytest.skip("numpyro.infer.log_likelihood does not look into a scan")
    for site, values in log_likelihood(one.model, enkg.get_samples(), *one.args, **one.kwargs).items():
        np.testing.assert_allclose(enkg.get_log_likelihood()[site], values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BY_MODEL)
def test_arviz(fitted, name):
    _, enkg = fitted(name)
    idata = enkg.to_arviz(log_likelihood=True, posterior_predictive=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # entries of a correlation matrix that never vary
        summary = az.summary(idata)
    assert len(summary) == sum(int(np.prod(a.shape[1:])) for a in enkg.get_samples().values())
    for site, draws in enkg.get_samples(group_by_chain=True).items():
        np.testing.assert_array_equal(idata["posterior"][site], draws)


@pytest.mark.parametrize("name", BY_MODEL)
def test_new_data_compile_nothing(fitted, name):
    """Nothing but what weighing or moving compiled for the first data: which of the two it takes, the data decide."""
    one, enkg = fitted(name)
    if "AdaptiveImportanceSampling" in enkg.diagnostics()["refinement"]:
        moving = EnKG(one.model, num_particles=J, num_ensembles=2, refine=TemperedSMC(), progress_bar=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            moving.run(jr.key(0), *one.args, **one.kwargs)
    compiled = []

    def note(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    again = EnKG(one.model, num_particles=J, num_ensembles=2, progress_bar=False)
    data = {key: np.flip(value, 0).copy() for key, value in one.kwargs.items()}
    if name == "admissions":  # no more than have applied, whose numbers are not turned round
        data = {key: np.maximum(value - 1, 0) for key, value in one.kwargs.items()}
    jax.monitoring.register_event_duration_secs_listener(note)  # pyright: ignore[reportArgumentType]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again.run(jr.key(1), *one.args, **data)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)  # pyright: ignore[reportArgumentType]
    assert not compiled
    assert any(not np.array_equal(draws, enkg.get_samples()[site]) for site, draws in again.get_samples().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_posterior_is_that_of_nuts(name, target_of):
    """Defaults: every mean within 0.15 sd, every sd within 15 %; a mean of 1,024 draws has an error of 0.03 sd."""
    target = target_of(name)
    assert target.model is not None
    truth = target.truth().draws
    enkg = EnKG(target.model, progress_bar=False)
    enkg.run(jr.key(0), *target.args, **target.kwargs)
    draws = flatten({site: np.asarray(values) for site, values in enkg.get_samples().items()}, target.sites)
    if name == "horseshoe":  # the common scale's tail (kurtosis 22) leaves its sd uncertain by 7 %: its logarithm
        draws[:, 6], truth[:, 6] = np.log(draws[:, 6]), np.log(truth[:, 6])
    errors = np.abs(draws.mean(axis=0) - truth.mean(axis=0)) / truth.std(axis=0)
    ratios = draws.std(axis=0) / truth.std(axis=0)
    assert errors.max() < 0.15
    assert np.abs(ratios - 1).max() < 0.15


def test_the_exact_truth_of_the_local_level():
    """Scales against SciPy's density on a coarser grid; levels given scales against the formulas of the Kalman gain."""
    y = np.asarray(MODELS["local_level"].kwargs["y"])
    draws = TARGETS["local_level"].truth().draws
    walk = np.minimum.outer(np.arange(1, 17), np.arange(1, 17)).astype(float)
    scale = np.linspace(0.005, 3.0, 150)
    log_density = np.array(
        [
            [st.multivariate_normal.logpdf(y, np.zeros(16), s**2 * walk + r**2 * np.eye(16)) for r in scale]
            for s in scale
        ]
    )
    log_density -= 0.5 * (scale[:, None] ** 2 + scale[None] ** 2)
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    for column, margin in ((0, weights.sum(axis=1)), (1, weights.sum(axis=0))):
        mean = margin @ scale
        sd = (margin @ (scale - mean) ** 2) ** 0.5
        assert abs(draws[:, column].mean() - mean) < 5 * sd / len(draws) ** 0.5 + 0.002  # the grids
        assert abs(draws[:, column].std() / sd - 1) < 0.05
    errors = []
    for step, noise, *level in draws[:200]:
        gain = step**2 * walk @ np.linalg.inv(step**2 * walk + noise**2 * np.eye(16))
        covariance = step**2 * walk - gain @ (step**2 * walk)
        errors.append(np.linalg.solve(np.linalg.cholesky(covariance), np.asarray(level) - gain @ y))
    errors = np.array(errors)
    assert abs(errors.mean()) < 5 / errors.size**0.5
    assert abs(errors.var() - 1) < 5 * (2 / errors.size) ** 0.5


def test_models_for_nuts_have_the_sites_that_are_compared():
    def values(one):
        sites = handlers.trace(handlers.seed(one.for_nuts, 0)).get_trace(*one.args, **one.kwargs)
        return {name: site["value"] for name, site in sites.items() if name in one.sites}

    for one in MODELS.values():
        if one.for_nuts is not None:
            assert set(jax.eval_shape(lambda one=one: values(one))) == set(one.sites)


def test_the_horseshoe_by_its_scales_is_the_horseshoe():
    """``p(y | scales) p(beta | scales, y) = p(beta, y | scales)``, the change from ``raw`` to ``raw`` included."""
    one = MODELS["horseshoe"]
    assert one.for_nuts is not None
    rng = np.random.default_rng(0)
    scales = {"local": rng.gamma(1.0, size=6), "common": rng.gamma(1.0), "precision": rng.gamma(3.0)}
    raw = rng.standard_normal(6)

    def joint(model, raw):
        return log_density(model, one.args, one.kwargs, {**scales, "raw": raw})

    def raw_of_prior(raw):
        beta = joint(one.for_nuts, raw)[1]["beta"]["value"]
        return (beta / (scales["common"] * scales["local"]),) * 2

    change, other = jax.jacobian(raw_of_prior, has_aux=True)(raw)
    expected = joint(one.model, other)[0] + np.linalg.slogdet(change)[1]
    np.testing.assert_allclose(joint(one.for_nuts, raw)[0], expected, rtol=1e-10)
