"""Noise levels against their formulas in NumPy, and the sentences for bad ones."""

import numpy as np
import pytest

from enkg_ppl import Karras, VarianceExploding, VariancePreserving

SCHEDULES = [Karras(18), Karras(1), VariancePreserving(20), VarianceExploding(20)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_levels_fall_to_zero(schedule):
    levels = np.asarray(schedule.levels())
    assert levels.shape == (schedule.num_steps + 1,)
    assert np.all(np.diff(levels) < 0)
    assert levels[-1] == 0


def test_karras_formula():
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(Karras(18).levels()[:-1], expected, rtol=1e-12)


def test_variance_preserving_formula():
    """sigma^2 = (1 - alpha) / alpha with alpha = exp(-integral of beta)."""
    t = np.linspace(1, 1e-3, 20)
    alpha = np.exp(-(0.1 * t + (20 - 0.1) * t**2 / 2))
    np.testing.assert_allclose(VariancePreserving(20).levels()[:-1], np.sqrt((1 - alpha) / alpha), rtol=1e-9)


def test_variance_exploding_formula():
    np.testing.assert_allclose(VarianceExploding(20).levels()[:-1], np.geomspace(100, 0.02, 20), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Karras(10, 2.0, 1.0), r"Karras needs 0 < sigma_min < sigma_max; got sigma_min=2.0, sigma_max=1.0"),
        (lambda: Karras(0), r"Karras needs num_steps as a whole number >= 1; got 0"),
        (lambda: Karras(10, rho=0.0), r"Karras needs rho > 0"),
        (lambda: VarianceExploding(10, sigma_min=-1.0), r"VarianceExploding needs 0 < sigma_min"),
        (lambda: VariancePreserving(10, epsilon=2.0), r"VariancePreserving needs 0 < epsilon < 1"),
    ],
)
def test_bad_schedules(make, words):
    with pytest.raises(ValueError, match=words):
        make()
