"""`EnKG` where NUTS would stand: the surface, and posteriors of several kinds against closed forms."""

import copy
import warnings

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.infer import Predictive, log_likelihood

from enkg_ppl import EnKG, PublishedCorrection, TemperedSMC, blackbox

J = 256
Y = jnp.array([1.0, 0.5, 1.5])


def simulator(a, b):
    return np.stack([a + b, a * b, b**2], axis=-1)


@pytest.fixture(scope="module")
def fitted():
    """A black box, a plate, a deterministic site and two ensembles."""
    simulate = blackbox(simulator, (3,), vectorized=True)

    def model(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.LogNormal(0.0, 0.5))
        mean = numpyro.deterministic("mean", simulate(a, b))
        with numpyro.plate("data", 3):
            numpyro.sample("y", dist.Normal(mean, 0.3), obs=y)

    enkg = EnKG(model, num_particles=J, num_ensembles=2, progress_bar=False)
    assert enkg.run(jr.key(0), y=Y, extra_fields=("log_likelihood",)) is None
    return enkg, simulate, simulate.num_calls


def test_shapes_of_samples(fitted):
    enkg, *_ = fitted
    flat, grouped = enkg.get_samples(), enkg.get_samples(group_by_chain=True)
    assert {name: a.shape for name, a in flat.items()} == {"a": (2 * J,), "b": (2 * J,), "mean": (2 * J, 3)}
    assert {name: a.shape for name, a in grouped.items()} == {"a": (2, J), "b": (2, J), "mean": (2, J, 3)}
    np.testing.assert_array_equal(flat["a"], grouped["a"].reshape(-1))
    np.testing.assert_allclose(flat["mean"], simulator(np.asarray(flat["a"]), np.asarray(flat["b"])), rtol=1e-9)


def test_the_count_is_exact(fitted):
    enkg, _, calls = fitted
    assert enkg.num_forward_evaluations == calls
    assert f"{calls:,} forward evaluations" in repr(enkg)


def test_the_posterior_is_the_grids(fitted):
    """Means and sds of both sites on a grid of the two-dimensional posterior, within 5 standard errors (2 J draws)."""
    enkg, *_ = fitted
    a, b = np.meshgrid(np.linspace(-1.5, 2, 400), np.linspace(0.3, 2, 400), indexing="ij")
    log_post = st.norm.logpdf(a) + st.lognorm.logpdf(b, 0.5)
    log_post += st.norm.logpdf(np.asarray(Y), simulator(a, b), 0.3).sum(-1)
    weights = np.exp(log_post - log_post.max())
    evidence = np.log(weights.sum() * (3.5 / 399) * (1.7 / 399)) + log_post.max()
    for name, grid in (("a", a), ("b", b)):
        mean = np.average(grid, weights=weights)
        sd = np.average((grid - mean) ** 2, weights=weights) ** 0.5
        draws = np.asarray(enkg.get_samples()[name])
        assert abs(draws.mean() - mean) < 5 * sd / (2 * J) ** 0.5
        assert abs(draws.std() / sd - 1) < 5 / (4 * J) ** 0.5
    assert abs(enkg.log_evidence - evidence) < 4 * enkg.log_evidence_error
    assert 0.001 < enkg.log_evidence_error < 0.2


def test_extra_fields(fitted):
    enkg, *_ = fitted
    fields = enkg.get_extra_fields(group_by_chain=True)
    assert set(fields) == {"potential_energy", "log_likelihood"}
    expected = st.norm.logpdf(np.asarray(Y), enkg.get_samples()["mean"], 0.3).sum(-1)
    np.testing.assert_allclose(fields["log_likelihood"].reshape(-1), expected, rtol=1e-9)
    prior = st.norm.logpdf(enkg.get_samples()["a"]) + st.norm.logpdf(np.log(enkg.get_samples()["b"]) / 0.5)
    np.testing.assert_allclose(fields["potential_energy"].reshape(-1), -(prior + expected), rtol=1e-9)


def test_print_summary(fitted, capsys):
    enkg, *_ = fitted
    enkg.print_summary()
    text = capsys.readouterr().out
    assert "r_hat" in text
    assert "mean[0]" not in text
    enkg.print_summary(exclude_deterministic=False)
    assert "mean[0]" in capsys.readouterr().out
    numpyro.diagnostics.print_summary(enkg.get_samples(True))


def test_predictive_and_log_likelihood(fitted):
    enkg, *_ = fitted
    predicted = Predictive(enkg.model, enkg.get_samples())(jr.key(1))
    assert predicted["y"].shape == (2 * J, 3)
    pointwise = log_likelihood(enkg.model, enkg.get_samples(), y=Y)["y"]
    np.testing.assert_allclose(pointwise, enkg.get_log_likelihood()["y"], rtol=1e-9)


def test_to_arviz(fitted):
    enkg, simulate, _ = fitted
    calls = simulate.num_calls
    idata = enkg.to_arviz(posterior_predictive=True, log_likelihood=True, coords={"data": ["p", "q", "r"]})
    assert simulate.num_calls - calls <= 2, "the simulator ran again"
    assert idata["posterior"]["a"].dims == ("chain", "draw")
    assert idata["posterior"]["a"].shape == (2, J)
    assert list(idata["observed_data"]["y"].coords["data"].values) == ["p", "q", "r"]
    assert idata["posterior_predictive"]["y"].shape == (2, J, 3)
    np.testing.assert_allclose(
        idata["log_likelihood"]["y"].values, enkg.get_log_likelihood(group_by_chain=True)["y"], rtol=1e-9
    )
    np.testing.assert_allclose(
        idata["sample_stats"]["lp"].values, -enkg.get_extra_fields(group_by_chain=True)["potential_energy"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three data, one of them influential
        assert np.isfinite(az.loo(idata).p_loo if hasattr(az.loo(idata), "p_loo") else az.loo(idata).p)
    summary = az.summary(idata, var_names=["a", "b"])
    np.testing.assert_allclose(float(summary["mean"].iloc[0]), float(enkg.get_samples()["a"].mean()), atol=0.01)


def test_prior_group(fitted):
    enkg, *_ = fitted
    idata = enkg.to_arviz(prior=True)
    prior = idata["prior"]["a"]
    assert prior.dims == ("chain", "draw")
    assert prior.size == 2 * J
    assert abs(float(prior.mean())) < 5 / (2 * J) ** 0.5
    assert idata["prior_predictive"]["y"].shape[-1] == 3


def test_from_numpyro_unmodified(fitted):
    enkg, *_ = fitted
    idata = az.from_numpyro(enkg, log_likelihood=False)
    assert idata["posterior"]["mean"].shape == (2, J, 3)
    assert len(az.summary(idata)) == 5


def test_diagnostics(fitted):
    enkg, *_ = fitted
    diagnostics = enkg.diagnostics()
    assert diagnostics["method"] == "AdaptiveImportanceSampling"
    assert diagnostics["num_forward_evaluations"] == enkg.num_forward_evaluations
    assert diagnostics.warnings == []
    text = str(diagnostics)
    assert "chi2_per_datum" in text
    assert f"{enkg.num_forward_evaluations:,}" in text


def test_copies(fitted):
    enkg, *_ = fitted
    np.testing.assert_array_equal(copy.copy(enkg).get_samples()["a"], enkg.get_samples()["a"])
    enkg.transfer_states_to_host()
    assert isinstance(enkg.get_samples(group_by_chain=True)["a"], np.ndarray)
    assert (enkg.last_state, enkg.post_warmup_state) == (None, None)


LINE = jnp.array([0.9, 1.5, 0.5])


def linear(y=None):
    a = numpyro.sample("a", dist.Normal(1.0, 2.0))
    numpyro.sample("y", dist.Normal(a * jnp.array([1.0, 2.0, 0.5]), 0.3).to_event(1), obs=y)


def test_keys():
    """Old and new keys are the same randomness; another key is not; the progress bar changes nothing."""
    draws = []
    for key, bar in ((jr.key(3), False), (jr.PRNGKey(3), True), (jr.key(4), False)):
        enkg = EnKG(linear, num_particles=J, progress_bar=bar)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            enkg.run(key, LINE)
        draws.append(np.asarray(enkg.get_samples()["a"]))
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0.01


def test_guided_ensemble_alone():
    enkg = EnKG(linear, num_particles=J, refine=None, progress_bar=False)
    enkg.run(jr.key(5), LINE)
    assert enkg.log_evidence is None
    assert "gives no evidence" in enkg.diagnostics()["log_evidence"]
    assert enkg.num_forward_evaluations == J * 21
    precision = 1 / 4 + 5.25 / 0.09
    mean = (1 / 4 + (0.9 + 3.0 + 0.25) / 0.09) / precision
    assert abs(enkg.get_samples()["a"].mean() - mean) < 5 / (precision * J) ** 0.5


def test_unknown_noise_scale():
    """Conjugate: a Normal mean with unknown variance, its posterior a Student-t (5 standard errors of J draws)."""
    data = np.array([2.1, 1.4, 2.9, 2.2, 1.8, 3.1, 2.4, 1.9])

    def model(y):
        variance = numpyro.sample("variance", dist.InverseGamma(3.0, 2.0))
        mean = numpyro.sample("mean", dist.Normal(0.0, jnp.sqrt(variance / 0.1)))
        numpyro.sample("y", dist.Normal(mean, jnp.sqrt(variance)).expand([8]).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=J, num_ensembles=2, progress_bar=False)
    enkg.run(jr.key(6), jnp.asarray(data))
    n, kappa = 8, 0.1
    shape = 3 + n / 2
    rate = 2 + 0.5 * ((data - data.mean()) ** 2).sum() + 0.5 * kappa * n * data.mean() ** 2 / (kappa + n)
    variance = np.asarray(enkg.get_samples()["variance"])
    exact = st.invgamma(shape, scale=rate)
    assert abs(variance.mean() - exact.mean()) < 5 * exact.std() / (2 * J) ** 0.5
    mean = np.asarray(enkg.get_samples()["mean"])
    exact = st.t(2 * shape, n * data.mean() / (kappa + n), (rate / shape / (kappa + n)) ** 0.5)
    assert abs(mean.mean() - exact.mean()) < 5 * exact.std() / (2 * J) ** 0.5
    assert abs(mean.std() / exact.std() - 1) < 5 / (4 * J) ** 0.5


@pytest.mark.parametrize("kind", ["poisson", "binomial"])
def test_counts(kind):
    """Conjugate: Gamma-Poisson and Beta-Binomial."""
    counts = jnp.array([3, 5, 4, 6])

    def model(y):
        if kind == "poisson":
            rate = numpyro.sample("p", dist.Gamma(2.0, 0.5))
            numpyro.sample("y", dist.Poisson(rate).expand([4]).to_event(1), obs=y)
        else:
            p = numpyro.sample("p", dist.Beta(2.0, 3.0))
            numpyro.sample("y", dist.Binomial(10, p).expand([4]).to_event(1), obs=y)

    exact = st.gamma(2 + 18, scale=1 / 4.5) if kind == "poisson" else st.beta(2 + 18, 3 + 22)
    enkg = EnKG(model, num_particles=J, progress_bar=False)
    enkg.run(jr.key(7), counts)
    draws = np.asarray(enkg.get_samples()["p"])
    assert abs(draws.mean() - exact.mean()) < 5 * exact.std() / J**0.5
    assert abs(draws.std() / exact.std() - 1) < 5 / (2 * J) ** 0.5


def test_misfit_is_told():
    """A simulator that cannot reach the data: the run ends with a warning that says so."""

    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jnp.tanh(a), 0.05).expand([4]).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=J, progress_bar=False)
    with pytest.warns(UserWarning, match="EnKG: the draws miss the data by more than the noise allows"):
        enkg.run(jr.key(8), jnp.full(4, 3.0))
    assert enkg.diagnostics().warnings


def test_collapse_is_told():
    """The published correction with as many data as unknowns; the default correction on the same says nothing."""

    def square(y):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(2 * b, 0.1).to_event(1), obs=y)

    published, default = (
        EnKG(square, num_particles=J, progress_bar=False, correction=correction, refine=None)
        for correction in (PublishedCorrection(0.5), None)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        published.run(jr.key(12), LINE)
    assert any("EnKG: the predictions vary too little" in str(w.message) for w in caught)
    assert any("the ensemble has collapsed; use the default correction" in str(w.message) for w in caught)
    default.run(jr.key(12), LINE)
    spreads = [float(enkg.get_samples()["b"].std(axis=0).mean()) for enkg in (published, default)]
    assert spreads[0] < 0.001
    assert 0.8 < default.diagnostics()["data_spread"] < 1.25
    assert 0.04 < spreads[1] < 0.06  # 1 / sqrt(1 + 400) = 0.0499


def test_too_few_moves_are_told():
    enkg = EnKG(linear, num_particles=J, progress_bar=False, refine=TemperedSMC(min_cycles=(0, 0), max_cycles=(0, 0)))
    with pytest.warns(UserWarning, match="particles still remember where they were resampled"):
        enkg.run(jr.key(9), LINE)


def test_progress_is_shown(capsys):
    EnKG(linear, num_particles=J, refine=TemperedSMC()).run(jr.key(10), LINE)
    text = capsys.readouterr().err
    assert "guiding, level 8 of 8" in text
    assert "temperature 1" in text
    assert "done" in text
    EnKG(linear, num_particles=J).run(jr.key(10), LINE)
    text = capsys.readouterr().err
    assert "searching for modes" in text
    assert f"of {0.9 * J:,.0f} effective draws" in text
    assert "done" in text


def test_float32_runs():
    """The default of JAX users: 32-bit floats, the same posterior."""
    with jax.enable_x64(False):
        enkg = EnKG(linear, num_particles=J, progress_bar=False)
        enkg.run(jr.key(11), jnp.asarray(LINE, jnp.float32))
        draws = enkg.get_samples()["a"]
        assert draws.dtype == jnp.float32
    precision = 1 / 4 + 5.25 / 0.09
    mean = (1 / 4 + (0.9 + 3.0 + 0.25) / 0.09) / precision
    assert abs(float(draws.mean()) - mean) < 5 / (precision * J) ** 0.5
