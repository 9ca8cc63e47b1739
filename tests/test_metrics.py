"""Metrics against values known in closed form; bounds by chance against simulated exact draws."""

import math

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra 'validation'")

from enkg_ppl import calibration
from validation import metrics, scoring


@pytest.fixture
def rng():
    return np.random.default_rng(42)


def test_c2st_reaches_the_accuracy_of_the_best_classifier(rng):
    # Two unit Gaussians 2 apart: the best rule is right in a share Phi(1) = 0.841 of all cases.
    reference = rng.standard_normal((1000, 2))
    draws = rng.standard_normal((700, 2)) + np.array([2.0, 0.0])
    # sd over 1,400 cases is 0.010
    assert abs(metrics.c2st(draws, reference) - 0.841) < 0.035
    assert abs(metrics.c2st(rng.standard_normal((700, 2)), reference) - 0.5) < 0.045
    # Standardised by the reference: units do not matter.
    units = np.array([1e6, 1e-6])
    assert metrics.c2st(draws * units, reference * units) == pytest.approx(metrics.c2st(draws, reference), abs=0.01)


def test_c2st_refuses_what_it_cannot_tell(rng):
    good = rng.standard_normal((50, 2))
    bad = good.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="draws must be finite; got 1 rows"):
        metrics.c2st(bad, good)
    with pytest.raises(ValueError, match=r"got \(50, 2\) and \(50, 1\)"):
        metrics.c2st(good, good[:, :1])
    with pytest.raises(ValueError, match="at most 64 columns; got 65: use sliced_wasserstein"):
        metrics.c2st(np.zeros((10, 65)), np.zeros((10, 65)))


def test_sliced_wasserstein(rng):
    # A shift by delta: |delta . direction| along a direction, root mean square ||delta|| / sqrt(d).
    reference = rng.standard_normal((4000, 3))
    assert metrics.sliced_wasserstein(reference[:2000] + 5.0, reference[2000:], num_projections=4000) == pytest.approx(
        5.0, rel=0.03
    )
    ot = pytest.importorskip("ot")
    draws = 1.5 * rng.standard_normal((500, 3))
    theirs = ot.sliced_wasserstein_distance(draws, reference[:500], n_projections=4000, p=2, seed=0)
    assert metrics.sliced_wasserstein(draws, reference[:1000], num_projections=4000) == pytest.approx(theirs, rel=0.1)


def test_sliced_wasserstein_of_exact_draws_is_at_its_floor(rng):
    reference = rng.standard_normal((4000, 3))
    floor = metrics.sliced_wasserstein_floor(reference, 500)
    fresh = [metrics.sliced_wasserstein(rng.standard_normal((500, 3)), reference) for _ in range(20)]
    assert np.mean(fresh) == pytest.approx(floor, rel=0.2)


def test_mean_error_and_its_floor(rng):
    assert metrics.mean_error(np.array([[1.0, 2.0], [3.0, 2.0]]), [0.0, 2.0], [4.0, 1.0]) == pytest.approx(
        (0.5, 0.5 / math.sqrt(2))
    )
    root = np.array([[1.0, 0.0], [0.9, 0.44]])
    reference = rng.standard_normal((5000, 2)) @ root.T
    floor = metrics.mean_error_floor(reference, 100, mean_is_exact=True)
    sd = np.sqrt(np.diag(root @ root.T))
    errors = [metrics.mean_error(rng.standard_normal((100, 2)) @ root.T, np.zeros(2), sd) for _ in range(1000)]
    # 1,000 cases: 95 % to within 0.7 %, and the bound's own 4,000 to within 0.35 %
    assert np.mean([error.worst < floor.worst for error in errors]) == pytest.approx(0.95, abs=0.025)
    assert np.mean([error.rms < floor.rms for error in errors]) == pytest.approx(0.95, abs=0.025)
    inexact = metrics.mean_error_floor(reference[:100], 100)
    assert inexact.worst == pytest.approx(math.sqrt(2) * floor.worst, rel=0.15)


def test_sd_ratio_and_its_floor(rng):
    draws = np.array([[0.0, 0.0], [2.0, 4.0]])
    assert metrics.sd_ratio(draws, [math.sqrt(2), math.sqrt(2)]) == pytest.approx((1.0, 2.0))
    reference = rng.standard_t(8, (50_000, 3))
    floor = metrics.sd_ratio_floor(reference, 200)
    sd = np.full(3, math.sqrt(8 / 6))
    ratios = np.array([metrics.sd_ratio(rng.standard_t(8, (200, 3)), sd) for _ in range(1000)])
    assert np.mean(ratios[:, 0] > floor.smallest) == pytest.approx(0.95, abs=0.04)
    assert np.mean(ratios[:, 1] < floor.largest) == pytest.approx(0.95, abs=0.04)


def test_mode_masses():
    reference = np.repeat([0, 1, 3], [50, 25, 25])
    assert metrics.mode_masses(reference, reference) == 0
    assert metrics.mode_masses(np.repeat([0, 1, 3], [50, 20, 30]), reference) == pytest.approx(0.2)
    assert metrics.mode_masses(np.repeat([0, 1], [75, 25]), reference) == 1  # a mode lost
    assert metrics.mode_masses(np.repeat([0, 1, 3, -1], [40, 20, 20, 20]), reference) == pytest.approx(0.2)
    # A mode too light to be seen does not count.
    assert metrics.mode_mass_error(np.repeat([0, 1], 50), [0.5, 0.499, 0.001]) < 0.01
    with pytest.raises(ValueError, match="a mass of at least min_mass=0.01"):
        metrics.mode_mass_error(np.array([0]), [0.0])


def test_relative_l2():
    assert metrics.relative_l2([3.0, 4.0], [0.0, 4.0]) == pytest.approx(0.75)


def test_validation_scores_by_the_library(rng):
    """They are in one place, with their sources and tests: `calibration`."""
    draws, truth = rng.normal(size=(40, 6)), rng.normal(size=6)
    found = scoring._against(truth, draws)
    assert found["ssr"] == calibration.spread_skill_ratio(draws, truth)
    assert found["crps"] == np.mean(calibration.crps(draws, truth))
