"""The digit behind a camera: black box against its differentiable twin, comparison, page, demo."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from scipy.signal import convolve2d

from models.digits import (
    ALIVE,
    DEAD_PIXELS,
    NOISE,
    SIZE,
    STEP,
    model,
    photograph,
    photograph_twin,
    simulate,
    twin,
)
from validation.demos import digits
from validation.demos.digits import Row, build_page, compare, format_table, main, rounding_error


def scenes(size, seed=0):
    """Ink between 0 and 1, a little beyond at times, as draws of the prior have it."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.1, 1.1, size=(size, SIZE, SIZE))


def by_hand(scene):
    """The camera with a two-dimensional kernel and plain formulas."""
    ink = convolve2d(scene, np.outer([1, 2, 1], [1, 2, 1]) / 16, mode="same")
    tone = np.round(255 / (1 + np.exp(-(ink - 0.3) / 0.15))) / 255
    tone[tuple(np.transpose(DEAD_PIXELS))] = 0
    return tone


def test_camera_does_what_it_says():
    some = scenes(3)
    photos = photograph(some)
    for scene, photo in zip(some, photos, strict=True):
        np.testing.assert_allclose(photo, by_hand(scene), atol=1e-12)
        np.testing.assert_array_equal(photo, photograph(scene[None])[0])
    np.testing.assert_allclose(photos * 255, np.round(photos * 255), atol=1e-10)
    assert np.sum(ALIVE == 0) == len(DEAD_PIXELS)


def test_twin_differs_by_rounding_only():
    some = scenes(64)
    exact = jax.jit(jax.vmap(photograph_twin))(jnp.asarray(some))
    difference = np.abs(photograph(some) - exact)
    assert difference.max() <= 0.5 * STEP + 1e-12
    assert difference.max() > 0.45 * STEP
    assert NOISE > 10 * STEP


def test_model_and_twin_have_the_same_likelihood():
    truth, y = simulate(0, 3) if has_digits() else (scenes(1)[0], photograph(scenes(1))[0])
    scene, z = jnp.asarray(truth), jnp.zeros((SIZE, SIZE))
    seen = handlers.trace(handlers.substitute(model, data={"scene": scene})).get_trace(y=y)
    expected = -0.5 * ((y - by_hand(truth)) / NOISE) ** 2 - np.log(NOISE * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(seen["y"]["fn"].log_prob(y), expected.sum(), rtol=1e-6)
    smooth = handlers.trace(handlers.substitute(twin, data={"scene_z": z})).get_trace(y=y)
    np.testing.assert_allclose(smooth["photo"]["value"], photograph_twin(smooth["scene"]["value"]), rtol=1e-6)
    assert smooth["scene"]["value"].shape == (SIZE, SIZE)
    assert smooth["scene_z"]["type"] == "sample"
    assert not smooth["scene_z"]["is_observed"]


def has_digits():
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return False
    return True


def test_photographs_are_noisy_and_repeatable():
    pytest.importorskip("sklearn", reason="scikit-learn holds the digits")
    residual = np.concatenate([(y - photograph(t[None])[0])[ALIVE == 1] for t, y in (simulate(0, i) for i in range(8))])
    assert residual.std() == pytest.approx(NOISE, rel=5 / np.sqrt(2 * residual.size))
    np.testing.assert_array_equal(simulate(1, 2)[1], simulate(1, 2)[1])
    assert np.all(simulate(1, 2)[1][ALIVE == 0] == 0)


def test_comparison_measures_means_and_spreads():
    rng = np.random.default_rng(0)
    reference = 0.2 * rng.standard_normal((500, SIZE, SIZE)) + 0.5
    centre, sd = reference.mean(axis=0), reference.std(axis=0)
    draws = centre + 0.3 * sd + 0.8 * (reference - centre)
    draws[:, 0, 0] += 0.7 * sd[0, 0]
    row = compare("x", draws, reference, "7 calls", 1.0)
    np.testing.assert_allclose(row[1:6], (0.3, 1.0, 0.8, 0.8, 0.8), rtol=1e-6)
    assert format_table([row]).splitlines()[1].split() == [
        "x",
        "0.30",
        "1.00",
        "0.80",
        "0.80",
        "0.80",
        "7",
        "calls",
        "1",
    ]


def test_rounding_hardly_moves_a_posterior(monkeypatch):
    """Draws about as wide as a posterior; a camera that is wrong by more than rounding is seen."""
    rng = np.random.default_rng(0)
    truth = scenes(1)[0]
    draws = truth + 0.1 * rng.standard_normal((4000, SIZE, SIZE))
    y = photograph(truth[None])[0]
    moved, nats = rounding_error(draws, y)
    assert 0 < nats < 1.0
    # By chance: the weights scatter by `nats`, over the root of the number of draws; the largest of 64.
    assert moved < 5 * nats / np.sqrt(len(draws))
    monkeypatch.setattr(digits, "photograph", lambda scene: photograph(scene) + 0.05 * scene * ALIVE)
    wrongly_moved, wrong_nats = rounding_error(draws, y)
    assert wrong_nats > 3 * nats
    assert wrongly_moved > 3 * moved


@pytest.fixture(scope="module")
def page():
    rng = np.random.default_rng(0)
    truth = scenes(1)[0]
    draws, reference = (truth + 0.1 * rng.standard_normal((200, SIZE, SIZE)) for _ in range(2))
    rows = [
        compare("EnKG", draws, reference, "12,345 calls", 6.0),
        Row("NUTS, halves", 0, 0, 1, 1, 1, "9 gradients", 7),
    ]
    diagnostics = {"method": "a < b", "warnings": []}
    return build_page(
        truth, photograph(truth[None])[0], draws, reference, rows, diagnostics, {"n": "12"}, "python -m x"
    )


def test_page_is_self_contained(page):
    assert page.startswith("<!doctype html>")
    assert "http" not in page
    assert not re.search(r"<(script|link|img|iframe|object|image)\b|\bsrc=|@import|url\((?!#)", page)
    assert len(page) < 1_500_000
    assert page.count("<svg") == page.count("</svg>") == 3


def test_page_shows_numbers_and_escapes_text(page):
    for text in ("a &lt; b", "12,345 calls", "9 gradients", "Photograph", "dead pixel", "python -m x"):
        assert text in page


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:EnKG")  # a short run may well be warned of
def test_demo_runs(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn holds the digits")
    path = tmp_path / "digits.html"
    with jax.numpy_rank_promotion("allow"):  # NumPyro broadcasts in its distributions
        main(["--quick", "--report", str(path)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(path)
    assert "8-bit rounding" in printed
    [line] = [line for line in printed.splitlines() if line.split()[:1] == ["EnKG"] and "calls" in line]
    shift, ratio = float(line.split()[1]), float(line.split()[3])
    # NUTS has 20 correlated draws here: this sees a wrong camera or a wrong prior, no more.
    assert shift < 1.5
    assert 0.4 < ratio < 3
    assert path.read_text().count("<svg") == 3
