"""`python -m validation sbc`: its models, its tables and pictures, and the study of a field."""

import csv

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import pytest
import scipy.stats as st
from scipy.integrate import solve_ivp

from enkg_ppl import calibration
from models import navier_stokes
from validation import sbc as sbc_command


class ExactSign:
    """Posterior draws of the model with four modes, in closed form.

    u = (a + b) / sqrt 2 and v = (b - a) / sqrt 2 are independent, each normal before and seen as |u|, |v| + noise; so
    each is a mixture of two truncated normals.
    """

    def run(self, rng_key, y):
        rng = np.random.default_rng(np.asarray(jr.key_data(rng_key)))
        u, v = (self._one(mean, seen, rng) for mean, seen in zip((0.3 / 2**0.5, -0.3 / 2**0.5), y, strict=True))
        self.samples = {"a": (u - v) / 2**0.5, "b": (u + v) / 2**0.5}

    def _one(self, mean, seen, rng):
        precision = 1 + 1 / 0.15**2
        sd = precision**-0.5
        loc = np.array([mean + seen / 0.15**2, mean - seen / 0.15**2]) / precision  # where u > 0, where u < 0
        log_mass = 0.5 * loc**2 * precision + st.norm.logcdf(loc * [1, -1] / sd)
        positive = rng.uniform(size=200) < 1 / (1 + np.exp(log_mass[1] - log_mass[0]))
        above = st.truncnorm.rvs(-loc[0] / sd, np.inf, loc[0], sd, size=200, random_state=rng)
        below_zero = st.truncnorm.rvs(-np.inf, -loc[1] / sd, loc[1], sd, size=200, random_state=rng)
        return np.where(positive, above, below_zero)

    def get_samples(self):
        return self.samples


def test_the_model_with_four_modes_has_the_posterior_it_should():
    """The exact draws are calibrated on it; p-values above 0.01 fail for 3 % of seeds, and not for this one."""
    result = calibration.sbc(sbc_command.CASES["sign"].model, ExactSign(), rng_key=jr.key(0), progress_bar=False)
    assert min(result.p_values().values()) > 0.01
    assert calibration.coverage(result).inside


def test_the_command_writes_tables_pictures_and_files(tmp_path, capsys, monkeypatch):
    """The exact posterior of the model with four modes passes; one that is far too narrow is told by the status."""
    options = ["--models", "epidemic", "sign", "--method", "nuts", "--datasets", "60", "--quiet", "--out"]
    monkeypatch.setattr(sbc_command, "inference", lambda *_: ExactSign())
    assert sbc_command.main([*options, str(tmp_path / "right")]) == 0
    printed = capsys.readouterr().out
    assert "epidemic: a black box has no gradient" in printed
    assert "all 3 scalars are inside" in printed
    written = {path.name for path in (tmp_path / "right").iterdir()}
    assert written == {"sign-nuts.csv", "sign-nuts.npz", "sign-nuts.png", "sbc-nuts.csv"}
    with (tmp_path / "right" / "sign-nuts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["data set", "a", "b", "log_likelihood"]
    assert len(rows) == 60
    with (tmp_path / "right" / "sbc-nuts.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["calibrated"], row["failed"]) == ("sign", "True", "0")
    monkeypatch.setattr(sbc_command, "inference", lambda *_: Narrow())
    assert sbc_command.main([*options, str(tmp_path / "wrong")]) == 1
    assert "NOT calibrated" in capsys.readouterr().out


class Narrow(ExactSign):
    """All draws crowd around one of them."""

    def get_samples(self):
        return {name: draws[:1] + 0.05 * (draws - draws[:1]) for name, draws in self.samples.items()}


def test_the_epidemic_follows_its_equations():
    """Against SciPy's solver: Euler steps of a quarter of a day are within 5 % of the peak."""
    transmission, recovery, seed = 0.5, 0.15, 0.01

    def slope(_, state):
        s, i = state
        return [-transmission * s * i, transmission * s * i - recovery * i]

    exact = solve_ivp(slope, (0, 40), [1 - seed, seed], t_eval=sbc_command.DAYS, rtol=1e-9).y[1]
    ours = sbc_command.epidemic([transmission], [recovery], [seed])[0]
    assert np.abs(ours - exact).max() < 0.05 * exact.max()


def test_what_is_ranked_of_a_field():
    """Four bands that hold all of the field's power, points of the grid, its enstrophy, means over quarters; what is
    seen is the flow at every second point, with a tenth of the field's spread as noise.
    """
    w = navier_stokes.kolmogorov.random_starts(np.random.default_rng(0), 1, 32)[0]
    model = numpyro.handlers.substitute(sbc_command.kolmogorov, data={"field": jnp.asarray(w)[None]})
    sites = numpyro.handlers.trace(numpyro.handlers.seed(model, jr.key(0))).get_trace()
    bands, points, integrals = (np.asarray(sites[name]["value"]) for name in ("bands", "points", "integrals"))
    assert np.sum(bands**2) == pytest.approx(np.mean(w**2), rel=1e-5)
    assert bands[0] > bands[2] > bands[3] > 0
    np.testing.assert_allclose(points, [w[1, 4], w[8, 27], w[17, 13], w[26, 22]], rtol=1e-6)
    assert integrals[0] == pytest.approx(np.mean(w**2), rel=1e-5)
    np.testing.assert_allclose(integrals[1:], [w[:16, :16].mean(), w[:16, 16:].mean(), w[16:, :16].mean()], rtol=1e-4)
    after = navier_stokes.kolmogorov.advance(1.0, 32)(jnp.asarray(w)[None])[0, ::2, ::2].ravel()
    noise = sites["seen"]["value"] - after
    assert np.std(noise) == pytest.approx(0.216, rel=4 / 512**0.5)  # four standard errors of 256 numbers


def test_a_model_may_ask_for_the_prior_while_it_is_traced():
    """What is kept for later is no part of the trace, for the flow and its prior alike."""
    caches = navier_stokes.prior, navier_stokes.look
    for cached in caches:
        cached.cache_clear()
    jax.eval_shape(lambda: (navier_stokes.prior().location, navier_stokes.look(1.0)(jnp.zeros(1024))))
    kept = jax.tree.leaves((navier_stokes.prior(), navier_stokes.look(1.0).step))
    assert len(kept) > 100
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in kept)


def test_a_field_is_studied_as_it_is_inferred(monkeypatch, tmp_path):
    """Only where it is asked for: 100 data sets, 100 particles, no refinement, JAX's default precision."""
    asked = {}

    def study(model, inference, **options):
        asked.update(options, model=model, inference=inference, x64=jax.config.jax_enable_x64)
        raise KeyboardInterrupt

    assert "kolmogorov" not in sbc_command._parser().parse_args([]).models
    with pytest.raises(SystemExit):
        sbc_command.main(["--datasets", "9"])
    monkeypatch.setattr(sbc_command.calibration, "sbc", study)
    with pytest.raises(KeyboardInterrupt):
        sbc_command.main(["--models", "kolmogorov", "--out", str(tmp_path)])
    jax.config.update("jax_enable_x64", True)
    assert asked["num_datasets"] == 100
    assert asked["sites"] == ("bands", "points", "integrals")
    assert not asked["x64"]
    enkg = asked["inference"](asked["model"])
    assert (enkg.num_particles, enkg.refine) == (100, None)
