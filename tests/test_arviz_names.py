"""Sites whose names ArviZ cannot hold reach it under others, in every group and through a file."""

import re
import warnings

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import EnKG
from enkg_ppl.numpyro._renamed import new_names


def awkward(y=None, z=None):
    a = numpyro.sample("draw", dist.Normal())
    c = numpyro.sample("chain", dist.Normal())
    x = numpyro.sample("x", dist.Normal().expand([2]).to_event(1))
    b = numpyro.sample("x_dim_0", dist.Normal())
    numpyro.deterministic("sum/of", jnp.stack([a, b]))
    with numpyro.plate("a/plate", 3):
        v = numpyro.sample("scope/v", dist.Normal())
    numpyro.sample("o/y", dist.Normal(a + c + x[0] + b + v, 0.5), obs=y)
    numpyro.sample("z_dim_0", dist.Normal(a, 0.5), obs=z)
    numpyro.sample("z", dist.Normal(c, 0.5), obs=z)


KEPT = {
    "draw": "draw_site",
    "chain": "chain_site",
    "x": "x",
    "x_dim_0": "x_dim_0_site",
    "sum/of": "sum.of",
    "scope/v": "scope.v",
    "o/y": "o.y",
    "z": "z",
    "z_dim_0": "z_dim_0_site",
}


@pytest.fixture(scope="module")
def fitted():
    enkg = EnKG(awkward, num_particles=64, num_ensembles=2, refine=None, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few particles
        enkg.run(jax.random.key(0), y=jnp.ones(3), z=0.5)
    return enkg


def test_all_groups_through_a_file(fitted, tmp_path):
    with pytest.warns(UserWarning, match="to_arviz keeps .*'draw' as 'draw_site'.*'scope/v' as 'scope.v'"):
        idata = fitted.to_arviz(prior=True, posterior_predictive=True, log_likelihood=True)
    file = tmp_path / "fit.nc"
    idata.to_netcdf(file)
    draws, pointwise = fitted.get_samples(group_by_chain=True), fitted.get_log_likelihood(group_by_chain=True)
    for read in (idata, az.from_netcdf(file)):
        assert set(read["posterior"].data_vars) == {KEPT[name] for name in draws}
        for name, value in draws.items():
            np.testing.assert_array_equal(read["posterior"][KEPT[name]].values, value)
            assert read["posterior"][KEPT[name]].dims[:2] == ("chain", "draw")
        for name, value in pointwise.items():
            np.testing.assert_allclose(read["log_likelihood"][KEPT[name]].values, value)
        assert read["posterior"]["scope.v"].dims[2] == "a.plate"
        assert set(read["prior"].data_vars) == {KEPT[name] for name in draws}
        for group in ("posterior_predictive", "prior_predictive", "observed_data"):
            assert set(read[group].data_vars) == {"o.y", "z", "z_dim_0_site"}
        np.testing.assert_array_equal(read["observed_data"]["o.y"].values, np.ones(3))
    assert set(fitted.get_samples()) == set(draws)  # the run keeps its own names


def test_names_that_can_stay_do():
    assert new_names({"x": 2, "y": 0, "x_dim_2": 0, "sample": 0}, ["data"]) == {}
    assert new_names({"data": 1, "a/b": 0, "a.b": 0}, ["data"]) == {"data": "data_site", "a/b": "a.b_"}
    assert new_names({"x": 1}, ["draw"]) == {"draw": "draw_plate"}


# -- arguments that are another library's ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("num_samples", "pass num_particles="),
        ("num_chains", "pass num_ensembles="),
        ("num_warmup", "no warm-up"),
        ("num_steps", "refine=TemperedSMC"),
        ("kernel", "the model itself in place of a kernel"),
        ("num_particle", "did you mean 'num_particles'"),
    ],
)
def test_arguments_of_mcmc_are_translated(argument, words):
    with pytest.raises(TypeError, match=re.escape(f"EnKG has no argument '{argument}'; ") + ".*" + re.escape(words)):
        EnKG(awkward, **{argument: 3})


def test_a_kernel_is_no_model():
    with pytest.raises(TypeError, match=re.escape("takes the place of NUTS: pass the model itself, as in EnKG(model)")):
        EnKG(numpyro.infer.NUTS(awkward))
