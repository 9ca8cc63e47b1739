"""Posteriors that rounding decides on: said in one sentence that names the site and 64 bits, and only there."""

import re
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st

from enkg_ppl import EnKG
from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.numpyro._observation import Observation, SiteLikelihood
from enkg_ppl.numpyro._refusals import ModelError
from enkg_ppl.numpyro._resolution import check_resolution

REMEDY = r"run in 64 bits \(numpyro.enable_x64\(\) before anything else of JAX\)"
DAYS = 2457000.5 + np.linspace(0.0, 4.0, 30)


def nothing(*args, **kwargs):
    pass


def found(fn_of, parameter, value, x64=False, model=nothing, args=(), kwargs=None):
    """What is said of draws whose parameters are these, shape (1, draws)."""
    with jax.enable_x64(x64), jax.numpy_rank_promotion("allow"):  # NumPyro's own algebra
        likelihood = SiteLikelihood(("y",))

        def look(parameter):
            observations = {"y": Observation(fn_of(parameter), jnp.asarray(value), None)}
            return observations, likelihood.response(observations), likelihood.log_prob(observations)

        draws = jax.jit(jax.vmap(jax.vmap(look)))(jnp.asarray(parameter)[None])
        return check_resolution(model, args, kwargs or {}, draws[0], ("y",), *draws[1:]), np.asarray(draws[2])[0]


@pytest.mark.parametrize(
    ("offset", "noise", "x64", "words"),
    [
        (2457000.5, 0.002, False, r"near 2457000.5 numbers of 32 bits are 0.25 apart, and its .* is 0.002; " + REMEDY),
        (2457000.5, 2.0, False, None),
        (1e6, 1.0, False, None),
        (1e5, 0.02, False, "numbers of 32 bits are 0.0078 apart"),
        (0.0, 1e-6, False, None),
        (2457000.5, 0.002, True, None),
        (1e9, 1e-7, True, "numbers of 64 bits are 1.2e-07 apart, .*; take an offset off data and simulator"),
    ],
)
def test_data_finer_than_the_numbers(offset, noise, x64, words):
    a = offset + noise * np.random.default_rng(0).normal(size=(64, 5))
    sentences, _ = found(lambda a: dist.Normal(a, noise).to_event(1), a, a[0], x64)
    assert len(sentences) == (words is not None)
    if words is not None:
        assert re.match(f"the noise of observed site 'y' is lost in rounding: .*{words}", sentences[0])


@pytest.mark.parametrize("mean", [100, 10_000, 10_000_000])
def test_the_log_likelihood_of_large_counts(mean):
    """What rounding does to it is told to within a few percent, SciPy's density of the same rates being the truth."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(mean, 10)
    rates = (counts.mean() + (mean / 10) ** 0.5 * rng.normal(size=64)).astype(np.float32)
    sentences, log_likelihood = found(lambda r: dist.Poisson(r).expand([10]), rates, counts.astype(np.float32))
    errors = log_likelihood - st.poisson.logpmf(counts, rates[:, None].astype(float)).sum(axis=1)
    if mean < 1e6:
        assert not sentences
        assert errors.std() < 0.1
        return
    assert errors.std() > 0.5
    scatter, shift = f"{errors.std():.2g}", f"{errors.mean():.2g}"
    assert f"32 bits round the log likelihood by {scatter} nats from draw to draw and by {shift} in all" in sentences[0]
    assert "at observed site 'y': run in 64 bits" in sentences[0]


def test_arguments_that_jax_rounds():
    def model(t, y):
        pass

    a = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    observed = lambda a: dist.Normal(a, 1.0).to_event(1)  # noqa: E731
    for args, kwargs in (((DAYS, a[0]), {}), ((), {"t": DAYS, "y": a[0]})):
        (sentence,), _ = found(observed, a, a[0], model=model, args=args, kwargs=kwargs)
        assert sentence.startswith("argument 't' of the model is lost in rounding: near 2457004.5 numbers of 32 bits")
        assert "are 0.25 apart, and its values have a standard deviation of 1.2; run in 64 bits" in sentence
    for harmless in (DAYS - 2457000.5, DAYS.astype(np.float32), np.full(3, 0.1), 1e5 * DAYS / DAYS):
        assert not found(observed, a, a[0], model=model, args=(harmless, a[0]))[0]
    assert not found(observed, a, a[0], x64=True, model=model, args=(DAYS, a[0]))[0]


def test_noise_that_vanishes():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a, 1e-46), obs=y)

    NumPyroModel(model, (jnp.ones(2),), {})
    with (
        jax.enable_x64(False),
        pytest.raises(ModelError, match="site 'y' has the parameter 1e-46, which is zero in 32"),
    ):
        NumPyroModel(model, (np.ones(2, np.float32),), {})


def test_a_run_says_so():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(DAYS[:4] + 0.01 * a, 0.002).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=32, refine=None, progress_bar=False)
    with jax.enable_x64(False), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        enkg.run(jr.key(0), DAYS[:4] + 0.007)
    assert "EnKG: the noise of observed site 'y' is lost in rounding" in str(said[0].message)
