"""The Kolmogorov flow and its shipped prior: solver, symmetries, data, samples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

pytest.importorskip("exponax")
pytest.importorskip("matplotlib")

from enkg_ppl import load_prior, save_prior
from enkg_ppl.networks import SongUNet
from models import kolmogorov as flow


def grid(size):
    points = 2 * np.pi * np.arange(size) / size
    return points[:, None], points[None, :]


# ---- the solver


def test_solver_agrees_with_the_reference(shared_data):
    """Over a unit of time at Reynolds number 200, where steps of half the length are right to 5e-5; 7e-4 was found."""
    with np.load(shared_data("navier_stokes/fields_64.npz")) as stored:
        start, right = stored["w0"][:4], stored["ref_exponax_etdrk4_fp64"][:4]
    found = flow.advance(1.0, 64, viscosity=1 / 200)(jnp.asarray(start))
    assert np.linalg.norm(found - right) < 1.5e-3 * np.linalg.norm(right)
    assert np.linalg.norm(start - right) > 0.3 * np.linalg.norm(right)  # the fields do move


def test_solver_has_every_term_of_the_equation():
    """For ``w = cos x + cos 2y`` the velocity is ``(-sin(2y) / 2, sin x)``, so that u . grad w = -1.5 sin x sin 2y."""
    x, y = grid(16)
    w = np.cos(x) + np.cos(2 * y)
    rate = 1.5 * np.sin(x) * np.sin(2 * y) - (np.cos(x) + 4 * np.cos(2 * y)) / 40 - 4 * np.cos(4 * y)
    change = np.asarray(flow.advance(1e-5, 16, dt=1e-5)(jnp.asarray(w[None])))[0] - w
    np.testing.assert_allclose(change / 1e-5, rate, atol=1e-3)


def test_duration_must_be_whole_steps():
    with pytest.raises(ValueError, match=r"multiple of dt; got duration=0\.05, dt=0\.02"):
        flow.advance(0.05, 16)


# ---- its symmetries


@pytest.fixture(scope="module")
def moving():
    """A field, and what becomes of any field in a little while."""
    start = flow.random_starts(np.random.default_rng(3), 1, 16)
    run = flow.advance(0.2, 16)
    assert np.abs(run(jnp.asarray(start)) - start).max() > 0.5
    return start, lambda fields: np.asarray(run(jnp.asarray(fields)))


@pytest.mark.parametrize("symmetry", [(3, 0, False), (0, 1, False), (0, 2, False), (0, 0, True), (5, 3, True)])
def test_symmetries_commute_with_the_flow(moving, symmetry):
    start, run = moving
    transform = flow.Symmetry(*symmetry)
    assert np.abs(transform(start) - start).max() > 0.5
    np.testing.assert_allclose(run(transform(start)), transform(run(start)), atol=1e-9)


@pytest.mark.parametrize(
    "transform",
    [
        lambda w: -w,
        lambda w: np.roll(w, 2, axis=-1),  # half a wave of the forcing without the reflection
        lambda w: -np.roll(w[..., ::-1, :], 1, axis=-2),  # and the reverse
        lambda w: np.swapaxes(w, -1, -2),
    ],
)
def test_other_transformations_do_not(moving, transform):
    start, run = moving
    assert np.abs(run(transform(start)) - transform(run(start))).max() > 0.1


def test_there_are_512_symmetries_on_the_grid():
    field = np.random.default_rng(0).standard_normal((32, 32))
    images = {
        flow.Symmetry(a, b, turned)(field).tobytes() for a in range(32) for b in range(8) for turned in (False, True)
    }
    assert len(images) == 512
    rng = np.random.default_rng(1)
    assert all(flow.Symmetry.random(rng, 32)(field).tobytes() in images for _ in range(50))


def test_symmetries_need_a_grid_that_holds_them():
    with pytest.raises(ValueError, match="no whole number of points on 12 x 12"):
        flow.Symmetry(0, 1, False)(np.zeros((12, 12)))


# ---- fields and figures


def test_truncation_cuts_modes_off_and_folds_none():
    (x, y), (x2, y2) = grid(64), grid(32)
    kept = np.cos(3 * x - 5 * y) + 2 * np.sin(15 * y) + 0.5
    lost = np.cos(16 * x) + np.sin(20 * x + y)
    found = flow.truncate((kept + lost)[None], 32)[0]
    np.testing.assert_allclose(found, np.cos(3 * x2 - 5 * y2) + 2 * np.sin(15 * y2) + 0.5, atol=1e-12)


def test_enstrophy_and_spectrum_of_single_waves():
    """For ``w = a cos(k . x)``: mean square a^2 / 2, energy a^2 / (4 k^2) in the shell of |k|."""
    x, y = grid(32)
    w = (2 * np.cos(3 * x) + np.cos(4 * x - 3 * y))[None]
    np.testing.assert_allclose(flow.enstrophy(w), 2 + 0.5)
    expected = np.zeros(15)
    expected[[2, 4]] = 4 / (4 * 9), 1 / (4 * 25)
    np.testing.assert_allclose(flow.spectrum(w), expected, atol=1e-12)


def test_starts_are_smooth_and_of_the_size_announced():
    fields = flow.random_starts(np.random.default_rng(0), 4, 64)
    np.testing.assert_allclose(fields.std(axis=(1, 2)), 3)
    np.testing.assert_allclose(fields.mean(axis=(1, 2)), 0, atol=1e-12)
    assert flow.spectrum(fields)[20:].sum() < 1e-6 * flow.spectrum(fields).sum()


# ---- the marks of a network on a periodic domain


def test_marks_tell_a_network_the_place():
    """With a wave along the columns, shifts along them are seen but for a whole wave; along the rows none is."""
    net = SongUNet(
        (1, 16, 16), width=4, multipliers=(1,), num_blocks=1, padding="periodic", waves=((0, 4),), key=jr.key(0)
    )
    # The last layer starts at zero.
    net = eqx.tree_at(lambda net: net.decoder_levels[-1].out.weight, net, replace_fn=jnp.ones_like)
    event, noise = jr.normal(jr.key(1), (1, 16, 16)), jnp.asarray(0.3)
    apply = jax.jit(lambda event, noise: net(event, noise))  # a module is no key of jit's cache
    out = apply(event, noise)

    def moved(shift):
        return jnp.roll(apply(jnp.roll(event, shift, (1, 2)), noise), (-shift[0], -shift[1]), (1, 2))

    np.testing.assert_allclose(moved((5, 4)), out, atol=1e-10)
    assert float(jnp.abs(moved((0, 2)) - out).max()) > 1e-3 * float(jnp.abs(out).max())
    assert net.config()["waves"] == [[0, 4]]
    angle = np.broadcast_to(2 * np.pi * 4 * np.arange(16) / 16, (16, 16))
    (marks,) = net._marks(jnp.float64)
    np.testing.assert_allclose(marks, np.stack([np.cos(angle), np.sin(angle)], axis=-1), atol=1e-12)
    with pytest.raises(ValueError, match=r"SongUNet needs waves as pairs of whole wave numbers"):
        SongUNet((1, 16, 16), waves=((0, 0.5),), key=jr.key(0))  # pyright: ignore[reportArgumentType]


# ---- the shipped prior


@pytest.fixture(scope="module")
def prior():
    return flow.load()


def test_prior_is_small_and_tells_where_it_comes_from(prior):
    assert prior.event_shape == (1, 32, 32)
    assert sum(file.stat().st_size for file in flow.WEIGHTS.iterdir()) < 1_000_000
    assert prior.record["flow"]["train"]["fields"] == flow.TRAIN_TRAJECTORIES * flow.SNAPSHOTS
    assert (flow.WEIGHTS / "card.md").exists()


def test_prior_has_the_shifts_of_the_flow(prior):
    """By four points, the lowest resolution's pixel, along x; by one wave of the forcing, eight points, along y.

    Half a wave alone is no symmetry of the flow, and the denoiser must not have it.
    """
    x = jr.normal(jr.key(0), (1024,), jnp.float32) * 3
    denoise = jax.jit(lambda x: prior.denoise(x, 3.0))

    def moved(shift):
        out = denoise(jnp.roll(x.reshape(32, 32), shift, (0, 1)).reshape(-1))
        return jnp.roll(out.reshape(32, 32), (-shift[0], -shift[1]), (0, 1)).reshape(-1)

    out = denoise(x)
    size = float(jnp.abs(out - prior.location.astype(jnp.float32)).max())
    # `location` is of a sample, and symmetric only as far as that goes; only beyond `sigma_max` does it matter.
    for shift in ((4, 0), (0, 8), (12, 16)):
        np.testing.assert_allclose(moved(shift), out, atol=1e-4 * size)
    assert float(jnp.abs(moved((0, 4)) - out).max()) > 0.05 * size


def test_prior_knows_the_mean_flow(prior):
    """Noise so strong that it tells little else leaves the denoiser the mean field, a cosine of four waves along y."""
    sigma = 0.75 * float(prior.scale)
    noise = jr.normal(jr.key(0), (16, 1024), jnp.float32)
    mean = np.mean(jax.jit(jax.vmap(lambda noise: prior.denoise(sigma * noise, sigma)))(noise), axis=0)
    profile = 2 * np.fft.fft(mean.reshape(32, 32).mean(axis=0))[4] / 32
    right = prior.record["flow"]["train"]["forced_wave"]
    assert abs(profile - right) < 0.2 * abs(right)


@pytest.mark.slow
def test_samples_have_the_statistics_of_the_data(prior):
    """Of 32 samples. In 256, shells have 0.9 to 1.1 of the data's energy up to wave number 14."""
    own, right = flow.summary(flow.samples(prior, 32, seed=1)), prior.record["flow"]["train"]
    assert abs(own["enstrophy"] - right["enstrophy"]) < 3 * right["enstrophy_sd"] / 32**0.5
    ratio = np.array(own["spectrum"][:14]) / np.array(right["spectrum"][:14])
    assert ((ratio > 0.5) & (ratio < 1.5)).all()
    assert abs(own["forced_wave"] - right["forced_wave"]) < 0.2


# ---- the plain alternative


def test_gaussian_prior_has_the_moments_and_the_symmetries_of_its_fields():
    """Of white noise with a mean profile: draws have both, and no symmetry of the flow changes either."""
    rng = np.random.default_rng(0)
    profile = np.cos(2 * np.pi * 4 * np.arange(16) / 16)
    fields = 2.0 * rng.standard_normal((400, 16, 16)) - profile
    mean, power = flow.gaussian_moments(fields)
    np.testing.assert_allclose(mean, np.broadcast_to(-profile, (16, 16)), atol=4 * 2.0 / (400 * 256 / 4) ** 0.5)
    # 400 squares of each mode, and those of its images under the symmetries.
    np.testing.assert_allclose(power, 4.0, rtol=4 * (2 / 400) ** 0.5)
    for symmetry in (flow.Symmetry(3, 1, False), flow.Symmetry(0, 5, True)):
        for ours, moved in zip((mean, power), flow.gaussian_moments(symmetry(fields)), strict=True):
            np.testing.assert_allclose(moved, ours, atol=1e-9)
    prior = flow.gaussian(fields)
    draws = jax.vmap(prior.decode)(jr.normal(jr.key(0), (4000, 256))).reshape(-1, 16, 16)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=5 * 2.0 / 4000**0.5)
    np.testing.assert_allclose(draws.std(axis=0), 2.0, rtol=5 / 8000**0.5)
    # A field whose modes are all one has the covariance of that mode.
    one = np.cos(2 * np.pi * (2 * np.arange(16)[:, None] + np.arange(16)[None]) / 16 + rng.uniform(0, 7, (50, 1, 1)))
    single = flow.gaussian(one)
    shell = np.sort(np.asarray(single.variances))[::-1]
    assert shell[3] > 0.9 * shell[0]  # (2, 1), (-2, -1) and, as x and -x are alike, (2, -1), (-2, 1)
    assert shell[4] <= 2 * flow.LEAST_VARIANCE * shell[0]


def test_shipped_gaussian_has_the_spectrum_of_the_training(prior):
    own = flow.load_gaussian()
    draws = np.asarray(jax.vmap(own.decode)(jr.normal(jr.key(0), (256, 1024)))).reshape(-1, 32, 32)
    ours, right = flow.summary(draws), prior.record["flow"]["train"]
    # Of 256 draws; a shell has 8 modes or more, and the training's fields are correlated in time.
    np.testing.assert_allclose(ours["spectrum"], right["spectrum"], rtol=0.15)
    assert ours["forced_wave"] == pytest.approx(right["forced_wave"], abs=0.06)


# ---- the recipe


@pytest.mark.slow
def test_recipe_runs_from_simulation_to_card(tmp_path, monkeypatch):
    """In the small: tiny grids, networks and runs."""
    small = {"FINE": 32, "COARSE": 16, "SPIN_UP": 0.4, "INTERVAL": 0.2, "SNAPSHOTS": 4, "TOGETHER": 4}
    small |= {"TRAIN_TRAJECTORIES": 8, "HELD_OUT_TRAJECTORIES": 4, "COPIES": 4}
    for name, value in small.items():
        monkeypatch.setattr(flow, name, value)
    network = {"width": 4, "multipliers": (1,), "num_blocks": 1, "padding": "periodic", "waves": ((0, 4),)}
    monkeypatch.setattr(flow, "NETWORK", network)
    flow.main(["data", "--data", str(tmp_path)])
    assert np.load(tmp_path / "train.npy").shape == (8 * 4 * 4, 1, 16, 16)
    assert np.load(tmp_path / "held_out.npy").shape == (4 * 4, 1, 16, 16)
    with np.load(tmp_path / "series.npz") as series:
        assert series["train"].shape == (2, 8, 1 + 2 + 4)
    folder = tmp_path / "prior"
    flow.main(["train", "--data", str(tmp_path), "--folder", str(folder), "--num-steps", "4"])
    assert load_prior(folder).record["flow"]["train"]["fields"] == 32
    flow.main(["gaussian", "--data", str(tmp_path), "--folder", str(folder)])
    assert flow.load_gaussian(folder).dim == 256
    flow.main(["card", "--data", str(tmp_path), "--folder", str(folder), "--samples", "16"])
    assert "| enstrophy: mean square of the vorticity |" in (folder / "card.md").read_text("utf-8")
    assert (folder / "card.png").exists()
    save_prior(flow.load(folder), tmp_path / "copy")
