"""`print_summary`: digits that mean something, draws worth what their weights say, warnings in sight."""

import numpy as np
import numpyro.diagnostics
import pytest

from enkg_ppl import EnKG, Posterior
from enkg_ppl.diagnostics._diagnose import diagnose
from enkg_ppl.numpyro._result import Result

N = 512
RNG = np.random.default_rng(0)
FAILED = np.where(np.arange(N) == 3, 0.0, -20.0 * RNG.random(N) - 5)  # one particle has nearly all the weight


def shown(capsys, samples, log_weights=None, **options):
    """The table of an object with these draws, as lines of words; `samples` lead with (ensemble, particle)."""
    first = next(iter(samples.values()))
    draws = [np.asarray(z, float).reshape(len(z), -1) for z in first]
    given = [Posterior(z, 100, "method", log_weights=log_weights) for z in draws]
    diagnostics = diagnose(given, None, 0, np.zeros(first.shape[:2]))
    enkg = EnKG(lambda: None, num_particles=first.shape[1], num_ensembles=first.shape[0])
    enkg._result = Result(
        samples=samples,
        latent_names=list(samples),
        diffusion_names=options.pop("diffusion", ()),
        diagnostics=diagnostics,
    )
    enkg.print_summary(**options)
    return capsys.readouterr().out, diagnostics


def rows(text):
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip() and "warning" not in line}


def test_draws_of_a_run_that_failed_are_worth_what_their_weights_are(capsys):
    text, diagnostics = shown(capsys, {"x": RNG.standard_normal((1, N))}, FAILED)
    weights = np.exp(FAILED)
    worth = weights.sum() ** 2 / np.sum(weights**2)
    assert worth < 3
    assert float(rows(text)["x"][5]) == pytest.approx(worth, rel=0.05)
    assert rows(text)["x"][6] == "-"  # r_hat of one ensemble
    (sentence,) = diagnostics.warnings
    assert "the 512 last importance weights are worth 1." in sentence  # k-hat sees no tail in one large weight
    assert "warning: " + sentence in " ".join(line.strip() for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 100
    assert "n_eff from 1" in shown(capsys, {"x": RNG.standard_normal((1, N, 81))}, FAILED, diffusion=("x",))[0]


def test_repeated_draws_count_once(capsys):
    repeated = np.tile(RNG.standard_normal((2, N // 8)), (1, 8))
    text, _ = shown(capsys, {"x": repeated})
    assert float(rows(text)["x"][5]) <= 2 * N / 8


def test_the_columns_are_numpyros(capsys):
    samples = {"x": RNG.standard_normal((2, N)), "v": 1 + RNG.random((2, N, 2))}
    text, _ = shown(capsys, samples, prob=0.8)
    numpyro.diagnostics.print_summary(samples, prob=0.8)
    theirs = capsys.readouterr().out
    assert text.splitlines()[1].split() == theirs.splitlines()[1].split()
    found, expected = rows(text), rows(theirs)
    assert list(found) == list(expected)
    for name in ("x", "v[0]", "v[1]"):
        np.testing.assert_allclose(np.array(found[name][:5], float), np.array(expected[name][:5], float), atol=0.011)
        assert abs(float(found[name][6]) - float(expected[name][6])) < 0.011


@pytest.mark.parametrize(
    ("location", "scale", "dtype"),
    [
        (0.0, 1.0, np.float64),
        (0.0, 1e-6, np.float64),
        (3e-4, 2e-9, np.float64),
        (2457000.5, 0.3, np.float64),
        (2457000.5, 2.0, np.float32),
        (1e12, 3e11, np.float32),
        (-4e8, 0.5, np.float64),
        (1e-30, 1e-31, np.float64),
        (5e5, 1e5, np.float64),
    ],
)
def test_digits_tell_mean_and_sd(capsys, location, scale, dtype):
    """The printed numbers are those of the draws to a hundredth of the sd, and no longer than they need."""
    draws = (location + scale * RNG.standard_normal((1, N))).astype(dtype)
    values = rows(shown(capsys, {"x": draws})[0])["x"]
    exact = draws.astype(float)
    assert abs(float(values[0]) - exact.mean()) <= 0.0051 * exact.std()
    assert abs(float(values[1]) / exact.std(ddof=1) - 1) < 0.01
    assert abs(float(values[2]) - np.median(exact)) <= 0.0051 * exact.std()
    assert max(map(len, values)) <= 15


def test_constants_and_what_is_not_finite_are_shown(capsys):
    draws = np.stack([np.full((1, N), 2.0), np.where(np.arange(N) == 1, np.inf, 1.0)[None]], axis=-1)
    samples = {"x": RNG.standard_normal((1, N)), "c": draws}
    found = rows(shown(capsys, samples)[0])
    assert found["c[0]"][:2] == ["2.000000", "0.000000"]
    assert found["c[1]"][0] == "inf"
