"""What follows a run, as after `MCMC(NUTS(model))`: utilities of NumPyro and ArviZ, files; one compilation."""

import pickle
import warnings

import arviz as az
import jax
import jax.random as jr
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import print_summary
from numpyro.infer import MCMC, NUTS, Predictive, log_likelihood

from enkg_ppl import EnKG

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 2))
Y = 1 + X @ np.array([0.5, -1.0]) + 0.5 * RNG.normal(size=20)
J = 256
LABELS = {"coords": {"covariate": ["age", "dose"], "row": np.arange(20)}, "dims": {"b": ["covariate"], "y": ["row"]}}


def regression(X, y=None):
    a = numpyro.sample("a", dist.Normal(0, 5))
    with numpyro.plate("covariates", X.shape[1]):
        b = numpyro.sample("b", dist.Normal(0, 2))
    noise = numpyro.sample("noise", dist.HalfNormal(2))
    with numpyro.plate("rows", X.shape[0]):
        numpyro.sample("y", dist.Normal(a + X @ b, noise), obs=y)


@pytest.fixture(scope="module")
def enkg():
    fitted = EnKG(regression, num_particles=J, num_ensembles=2, progress_bar=False)
    fitted.run(jr.PRNGKey(0), X, y=Y)
    return fitted


@pytest.fixture(scope="module")
def nuts():
    fitted = MCMC(NUTS(regression), num_warmup=300, num_samples=500, num_chains=1, progress_bar=False)
    fitted.run(jr.PRNGKey(0), X, y=Y)
    return fitted


def log_likelihood_of(fitted):
    """ArviZ's own reading of a fit, which asks for the log likelihood in 1.x only."""
    options = {} if az.__version__.startswith("0.") else {"log_likelihood": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return az.from_numpyro(fitted, **options, **LABELS)


def test_numpyros_summary(enkg, capsys):
    print_summary(enkg.get_samples(group_by_chain=True))
    table = capsys.readouterr().out
    assert all(name in table for name in ("a ", "b[0]", "b[1]", "noise", "r_hat"))


def test_posterior_predictive_in_three_ways(enkg):
    flat, grouped = enkg.get_samples(), enkg.get_samples(group_by_chain=True)
    in_turn = Predictive(regression, flat)(jr.key(1), X)["y"]
    at_once = Predictive(regression, flat, parallel=True)(jr.key(1), X)["y"]
    by_chain = Predictive(regression, grouped, batch_ndims=2)(jr.key(1), X)["y"]
    assert in_turn.shape == at_once.shape == (2 * J, 20)
    assert by_chain.shape == (2, J, 20)
    np.testing.assert_allclose(in_turn, at_once, rtol=1e-12, atol=1e-13)
    # 20 means of 512 replicated data, each with the noise of the data and of the posterior
    assert np.abs(in_turn.mean(0) - Y).max() < 4 * 0.6


def test_log_likelihood_by_chain(enkg):
    grouped = enkg.get_samples(group_by_chain=True)
    pointwise = log_likelihood(regression, grouped, X, y=Y, batch_ndims=2)["y"]
    np.testing.assert_allclose(pointwise, enkg.get_log_likelihood(group_by_chain=True)["y"], rtol=1e-9)


def test_arviz_reads_it_as_it_reads_mcmc(enkg):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        idata = az.from_numpyro(
            enkg,
            prior=Predictive(regression, num_samples=50)(jr.key(2), X),
            posterior_predictive=Predictive(regression, enkg.get_samples())(jr.key(1), X),
            **LABELS,
        )
    assert idata["posterior"]["b"].dims == ("chain", "draw", "covariate")
    assert list(idata["posterior"]["covariate"].values) == ["age", "dose"]
    assert idata["posterior_predictive"]["y"].shape == (2, J, 20)
    assert idata["prior"]["a"].size == 50
    np.testing.assert_array_equal(idata["observed_data"]["y"], Y)
    np.testing.assert_array_equal(idata["posterior"]["a"], enkg.get_samples(group_by_chain=True)["a"])


def test_means_are_those_of_nuts(enkg, nuts):
    """512 draws against 500 with autocorrelation: 5 standard errors of the difference."""
    ours, theirs = (np.asarray(fit.get_samples()["b"]) for fit in (enkg, nuts))
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 5 * theirs.std(0).max() * (1 / 512 + 1 / 250) ** 0.5


def test_loo_and_compare_with_a_nuts_fit(enkg, nuts):
    ours, theirs = log_likelihood_of(enkg), log_likelihood_of(nuts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # ArviZ 0.23 on pandas 3
        warnings.filterwarnings("ignore", "The inplace keyword")
        # One datum has a k of .4 to .65 with 4,000 draws of NUTS, about what ArviZ admits for 512.
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        table = az.compare({"enkg": ours, "nuts": theirs})
        one, other = az.loo(ours), az.loo(theirs)
    assert set(table.index) == {"enkg", "nuts"}
    elpd = "elpd_loo" if hasattr(one, "elpd_loo") else "elpd"  # ArviZ 0.23 and 1.x
    # In nats; over six seeds either had a Monte Carlo sd of 0.13.
    assert abs(getattr(one, elpd) - getattr(other, elpd)) < 0.9


@pytest.mark.parametrize("plot", ["plot_trace", "plot_forest", "plot_rank", "plot_ess", "plot_autocorr", "plot_pair"])
def test_arviz_draws_it(enkg, plot):
    matplotlib.use("agg")
    if not hasattr(az, plot):
        pytest.skip(f"this ArviZ has no {plot}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # layouts and colours are ArviZ's own affair
        assert getattr(az, plot)(enkg.to_arviz(), var_names=["a", "noise"]) is not None
    matplotlib.pyplot.close("all")


def test_to_a_file_and_back(enkg, tmp_path):
    idata = enkg.to_arviz(log_likelihood=True, posterior_predictive=True, **LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the file's library
        idata.to_netcdf(str(tmp_path / "fit.nc"))
        back = az.from_netcdf(str(tmp_path / "fit.nc"))
    for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "observed_data"):
        for name in idata[group].data_vars:
            np.testing.assert_array_equal(back[group][name], idata[group][name])


def test_a_finished_fit_is_pickled(enkg):
    back = pickle.loads(pickle.dumps(enkg))
    for name, draws in enkg.get_samples().items():
        np.testing.assert_array_equal(back.get_samples()[name], draws)
    assert str(back.diagnostics()) == str(enkg.diagnostics())
    assert back.to_arviz()["posterior"]["a"].shape == (2, J)


def test_new_data_of_the_same_shape_compile_nothing(enkg):
    before = {name: np.asarray(draws) for name, draws in enkg.get_samples().items()}
    compiled = []
    again = EnKG(regression, num_particles=J, num_ensembles=2, progress_bar=False)
    again.run(jr.key(0), X, y=Y)
    for name, draws in before.items():  # and the same key is the same draws, raw or typed
        np.testing.assert_array_equal(again.get_samples()[name], draws)

    def note(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        again.run(jr.key(3), X + 0.1, y=Y + 1)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert not compiled
