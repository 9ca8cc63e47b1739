"""A run that raises part-way loses nothing of what was done, and says what that is."""

# pyright: reportOptionalMemberAccess=false

import copy
import warnings

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import BlackBoxError, DiffusionWaltz, EllipticalSlice, EnKG, TemperedSMC, blackbox

Y = jnp.array([0.6, 0.1])
J = 32
SLOWLY = TemperedSMC(target_ess=(0.9, 0.5))  # several temperatures


BROKEN: BaseException = RuntimeError("licence server unreachable")


class Flaky:
    """A simulator that fails for good after so many calls for a particle."""

    def __init__(self):
        self.left, self.error = 10**9, BROKEN

    def __call__(self, x):
        self.left -= len(x)
        if self.left < 0:
            raise self.error
        return np.stack([np.tanh(3 * x[:, 0]), x[:, 0] * x[:, 1]], 1)


FLAKY = Flaky()
simulate = blackbox(FLAKY, (2,), vectorized=True, name="solver")


def model(y=None):
    x = numpyro.sample("x", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    f = numpyro.deterministic("f", simulate(jnp.log(x)))
    numpyro.sample("y", dist.Normal(f, 0.3).to_event(1), obs=y)


def failing(after: int, **options):
    """A run that fails after so many calls, and its error."""
    enkg = EnKG(model, num_particles=J, progress_bar=False, **options)
    FLAKY.left = after
    with pytest.raises(BlackBoxError, match="solver raised RuntimeError: licence server unreachable") as caught:
        enkg.run(jr.key(0), y=Y)
    FLAKY.left = 10**9
    return enkg, caught.value


def ended_well(refine):
    """Calls of one ensemble, and its draws; nothing is partial then."""
    enkg = EnKG(model, num_particles=J, refine=refine, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few particles are not enough
        enkg.run(jr.key(0), y=Y)
    assert enkg.partial is None
    return enkg.num_forward_evaluations, enkg.get_samples()


@pytest.fixture(scope="module")
def whole():
    return ended_well(SLOWLY)


@pytest.mark.parametrize(
    ("after", "stage"),
    [(2.5, "guided to level 2 of 8"), (None, "tempered to"), (0.5, "in its first stage")],
)
def test_the_ensemble_under_way(after, stage, whole):
    enkg, error = failing(int(after * J) if after else whole[0] - J - 1, refine=SLOWLY)
    partial = enkg.partial
    assert not partial.is_complete
    (one,) = partial.under_way
    assert (one.ensemble, partial.posteriors, partial.get_samples()) == (0, {}, {})
    assert one.stage.startswith(stage)
    assert "not a posterior: 0 of 1 ensembles finished, ensemble 1 " + one.stage in repr(partial)
    assert f"{partial.num_forward_evaluations:,} forward evaluations" in repr(partial)
    assert error.__notes__ == [f"What was done before this error is kept in enkg.partial: {partial!r}"]
    if stage == "in its first stage":
        assert one.draws is None
        return
    calls = FLAKY.left
    sites = partial.sites(one.draws)
    assert FLAKY.left == calls, "nothing is simulated for it"
    np.testing.assert_allclose(jnp.log(sites["x"]), one.draws, rtol=1e-9)
    assert sites["x"].shape == (J, 2)
    with pytest.raises(RuntimeError, match="no draws yet"):
        enkg.get_samples()


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_ensembles_that_were_finished_are_kept(method, whole):
    count, draws = whole
    options = {"refine": SLOWLY, "num_ensembles": 2, "ensemble_method": method}
    after = {"sequential": count + 2 * J, "vectorized": int(1.6 * count)}[method]
    enkg, error = failing(after - J, **options)
    partial = enkg.partial
    assert len(partial.posteriors) + len(partial.under_way) == 2
    assert "enkg.partial" in error.__notes__[0]
    if method == "sequential":
        assert list(partial.posteriors) == [0]
        found = partial.get_samples()["x"]
        np.testing.assert_allclose(found, draws["x"], rtol=1e-9)
        np.testing.assert_array_equal(partial.get_samples(group_by_chain=True)["x"][0], found)


def test_only_the_last_look_failed(whole):
    count, draws = whole
    enkg, _ = failing(count - 1, refine=SLOWLY)
    assert enkg.partial.is_complete
    assert repr(enkg.partial).startswith("PartialResult(all 1 ensembles finished, not yet looked over; ")
    np.testing.assert_allclose(enkg.partial.get_samples()["x"], draws["x"], rtol=1e-9)
    assert enkg.partial.num_forward_evaluations == count


@pytest.mark.parametrize("refine", [EllipticalSlice(max_cycles=9), DiffusionWaltz(max_rounds=5, steps_per_round=2)])
def test_other_refinements(refine):
    count, _ = ended_well(refine)
    enkg, _ = failing(count - J - 1, refine=refine)
    (one,) = enkg.partial.under_way
    assert one.stage.startswith("moved for ")
    assert np.isfinite(one.draws).all()


def test_a_new_run_begins_with_nothing(whole):
    enkg, _ = failing(3 * J, refine=SLOWLY)
    assert repr(copy.copy(enkg).partial) == repr(enkg.partial)
    with pytest.raises(ValueError, match="no observed site"):
        enkg.run(jr.key(0))
    assert enkg.partial is None


def test_ctrl_c():
    FLAKY.error = KeyboardInterrupt()
    try:
        enkg = EnKG(model, num_particles=J, progress_bar=False)
        FLAKY.left = 3 * J
        with pytest.raises(BaseException) as caught:  # noqa: PT011 (XLA wraps it)
            enkg.run(jr.key(0), y=Y)
    finally:
        FLAKY.left, FLAKY.error = 10**9, BROKEN
    assert "enkg.partial" in caught.value.__notes__[-1]
    assert enkg.partial.under_way[0].stage == "searching for modes"


def test_sites_behind_a_black_box_are_left_as_vectors():
    def nested(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        z = numpyro.sample("z", dist.Normal(simulate(x)[0], 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    enkg = EnKG(nested, num_particles=J, progress_bar=False)
    FLAKY.left = 3 * J
    with pytest.raises(BlackBoxError):
        enkg.run(jr.key(0), y=0.3)
    FLAKY.left = 10**9
    (one,) = enkg.partial.under_way
    assert one.draws.shape[1] == 3
    with pytest.raises(RuntimeError, match=r"depends on a black box.*use the latent vectors in partial.posteriors"):
        enkg.partial.sites(one.draws)
