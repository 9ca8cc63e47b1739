"""The reference sampler against closed forms, and the table that compares two posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from validation.compare import format_moments, moments_table, scalars
from validation.nuts import nuts

# Monte Carlo tolerances are in standard errors. None of 20 seeds failed: worst error 3.1 standard errors,
# worst R-hat 1.011, smallest effective number of draws 504.
STANDARD_ERRORS = 4.0


def conjugate(counts, y=None):
    """A correlated Gaussian posterior and a Gamma one, both known."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    total = numpyro.deterministic("total", theta[0] + theta[1])
    numpyro.sample("y", dist.Normal(jnp.stack([total, 2.0 * theta[0]]), 0.5).to_event(1), obs=y)
    numpyro.sample("counts", dist.Poisson(rate).expand([counts.size]).to_event(1), obs=counts)


def test_nuts_finds_the_moments_of_a_conjugate_posterior():
    y, counts = np.array([1.0, -0.6]), np.array([2, 0, 3, 1])
    result = nuts(
        jax.random.key(0),
        conjugate,
        counts,
        y=y,
        num_warmup=300,
        num_samples=500,
        num_chains=2,
        progress=False,
    )

    design = np.array([[1.0, 1.0], [2.0, 0.0]])
    covariance = np.linalg.inv(np.eye(2) + design.T @ design / 0.25)
    mean = covariance @ design.T @ y / 0.25
    shape, scale = 3.0 + counts.sum(), 1.0 / (2.0 + counts.size)

    assert result.samples["theta"].shape == (2, 500, 2)
    assert result.samples["total"].shape == (2, 500)
    np.testing.assert_allclose(result.samples["total"], result.samples["theta"].sum(-1))
    flat = result.flat()
    error = np.sqrt(np.diag(covariance) / result.ess["theta"])
    np.testing.assert_array_less(np.abs(flat["theta"].mean(0) - mean), STANDARD_ERRORS * error)
    # Var of a sample covariance of Gaussians: (C_ii C_jj + C_ij^2) / n.
    diagonal = np.diag(covariance)
    spread = np.sqrt((np.outer(diagonal, diagonal) + covariance**2) / result.ess["theta"].min())
    np.testing.assert_array_less(np.abs(np.cov(flat["theta"].T) - covariance), STANDARD_ERRORS * spread)
    rate_error = np.sqrt(shape) * scale / np.sqrt(result.ess["rate"])
    assert abs(flat["rate"].mean() - shape * scale) < STANDARD_ERRORS * rate_error

    assert result.worst_r_hat < 1.02
    assert result.smallest_ess > 200
    assert result.num_divergences == 0
    # At least one leapfrog step per transition.
    assert result.num_gradient_evaluations >= 2 * (300 + 500)
    assert result.seconds > 0
    assert set(result.r_hat) == {"theta", "rate"}


def test_descents_start_the_chains_in_the_better_mode():
    def two_modes():
        x = numpyro.sample("x", dist.Normal(0.0, 10.0))
        # The mode at -6 is wide and catches most starts; that at +6 is e^20 times as high.
        wide = dist.Normal(-6.0, 3.0).log_prob(x)
        high = 20.0 + dist.StudentT(2.0, 6.0, 0.3).log_prob(x)
        numpyro.factor("modes", jnp.logaddexp(wide, high))

    result = nuts(
        jax.random.key(3),
        two_modes,
        num_warmup=100,
        num_samples=50,
        num_chains=2,
        num_starts=8,
        num_descents=8,
        dense_mass_matrix=True,
        progress=False,
    )
    np.testing.assert_allclose(np.median(result.samples["x"]), 6.0, atol=0.5)


@pytest.mark.parametrize(
    ("name", "value"), [("num_warmup", 0), ("num_samples", 3), ("num_chains", 0), ("num_descents", -1)]
)
def test_counts_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} >= .*; got {name}={value}"):
        nuts(jax.random.key(0), conjugate, np.array([1]), progress=False, **{name: value})


def test_discrete_sites_and_impossible_data_are_refused():
    def discrete():
        numpyro.sample("k", dist.Poisson(2.0))

    def impossible():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("never", -jnp.inf + 0.0 * x)

    with pytest.raises(ValueError, match=r"\['k'\] are discrete"):
        nuts(jax.random.key(0), discrete, progress=False)
    with pytest.raises(ValueError, match="no start of finite posterior density"):
        nuts(jax.random.key(0), impossible, num_starts=2, progress=False)


def test_scalars_are_named_by_site_and_index():
    draws = np.arange(24.0).reshape(2, 3, 4)
    named = dict(scalars({"a": draws[:, 0, 0], "b": draws[:, 0, :2], "c": draws}))
    assert list(named) == ["a", "b[0]", "b[1]", *(f"c[{i},{j}]" for i in range(3) for j in range(4))]
    np.testing.assert_array_equal(named["c[2,1]"], draws[:, 2, 1])


def test_moments_table_measures_in_sd_of_the_reference():
    reference = {"a": np.array([-1.0, 0.0, 1.0]), "only_here": np.zeros(3)}
    (row,) = moments_table({"a": np.array([0.0, 2.0, 4.0, 6.0]) / 2}, reference)
    assert row.shift == pytest.approx(1.5)
    assert row.sd_ratio == pytest.approx(np.std([0.0, 1.0, 2.0, 3.0], ddof=1))
    text = format_moments([row], ("ours", "theirs"))
    assert "ours mean" in text
    assert "+1.50" in text
    assert "largest difference of means 1.50 sd; sd ratio farthest from one 1.29" in text


def test_moments_table_refuses_unlike_shapes():
    with pytest.raises(ValueError, match=r"site 'a' has shape \(2,\) in samples but \(3,\)"):
        moments_table({"a": np.zeros((4, 2))}, {"a": np.zeros((4, 3))})
