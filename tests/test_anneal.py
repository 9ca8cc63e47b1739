"""Cycles of the guided flow: none where it has arrived, more where the simulator bends, never beyond the budget."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl import GaussianPrior, InverseProblem, KalmanCorrection, guide, infer
from enkg_ppl.diagnostics._fields import EnsembleCheck
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.guidance._anneal import CYCLE_LEVELS, MAX_CYCLES, anneal, has_arrived
from enkg_ppl.likelihood import GaussianLikelihood
from models import navier_stokes

DIM, J, NOISE = 24, 64, 0.05
A = jr.normal(jr.key(5), (DIM, DIM)) / DIM**0.5


def problem(bend):
    """Unknowns seen through ``sinh(bend x) / bend``, nearly the identity for small bends, mixed by A."""
    forward = lambda x: A @ (jnp.sinh(bend * x) / bend)  # noqa: E731
    truth = jr.normal(jr.key(1), (DIM,))
    y = forward(truth) + NOISE * jr.normal(jr.key(2), (DIM,))
    return InverseProblem(GaussianPrior.standard(DIM), forward, GaussianLikelihood(y, NOISE))


def test_a_linear_simulator_needs_no_cycle():
    usual = KalmanCorrection()
    posterior = infer(jr.key(0), problem(1e-3), num_particles=J, refine=None)
    assert posterior.stats["num_cycles"] == 0
    assert posterior.stats["cycles"] == "arrived"
    assert posterior.num_forward_evaluations == (usual.num_steps + 1) * J
    alone = guide(jr.split(jr.key(0))[0], problem(1e-3), num_particles=J)
    np.testing.assert_allclose(posterior.draws, alone.draws, rtol=1e-6, atol=1e-6)


def test_cycles_bring_a_simulator_that_bends_nearer():
    """Chi-square per datum after the first pass and at the end, five seeds; every simulation is counted."""
    bent, before, after = problem(1.0), [], []
    for seed in range(5):
        first = infer(jr.key(seed), bent, num_particles=J, refine=None, max_forward_evaluations=21 * J)
        whole = infer(jr.key(seed), bent, num_particles=J, refine=None)
        assert first.stats["num_cycles"] == 0
        assert "budget has no room" in first.stats["cycles"]
        cycles = whole.stats["num_cycles"]
        assert 1 <= cycles <= MAX_CYCLES
        assert whole.num_forward_evaluations == (21 + cycles * (CYCLE_LEVELS + 1)) * J
        before.append(first.stats["chi2_per_datum"])
        after.append(whole.stats["chi2_per_datum"])
    assert np.mean(after) < 0.8 * np.mean(before)


@pytest.mark.parametrize("budget", [10, 21, 33, 34, 40, 47])
def test_budgets_hold(budget):
    posterior = infer(jr.key(0), problem(1.0), num_particles=J, refine=None, max_forward_evaluations=budget * J)
    assert posterior.num_forward_evaluations <= budget * J
    assert ("arrived" in posterior.stats["cycles"]) == ("chi2_per_datum" in posterior.stats)
    if budget >= 34:
        assert posterior.stats["num_cycles"] >= 1


def check(chi2, tail, unexplained):
    return EnsembleCheck(chi2, tail, 1.0, 1.0, unexplained)


def test_when_it_has_arrived():
    assert has_arrived(check(1.1, 1e-9, 0.5))
    assert has_arrived(check(2.0, 0.2, 0.5))  # two data: chance
    assert not has_arrived(check(2.0, 1e-9, 0.5))
    assert not has_arrived(check(1.0, 0.5, 3.0))
    assert not has_arrived(check(np.inf, 0.0, np.inf))


@pytest.mark.parametrize(("limit", "remedy"), [(30 * J, "raise max_forward_evaluations, or use"), (None, "use")])
def test_one_that_has_not_arrived_says_so(limit, remedy):
    """Also where chi-square is not so far out that it alone would be told: 1.5 at a chance of a thousandth."""
    evaluate = Evaluator(problem(1e-3), J)
    evaluate.ledger.limit = limit
    correction = KalmanCorrection()
    posterior = anneal(jr.key(0), problem(1e-3), correction, evaluate, J, lambda _: check(1.5, 1e-3, 0.1))
    assert posterior.stats["cycles"].startswith("not arrived")
    (sentence,) = posterior.messages
    assert "chi-square per datum 1.5, where 1 is due" in sentence
    assert sentence.endswith(f"has not arrived at the posterior; {remedy} a refinement")
    evaluate.ledger.limit = None
    assert not anneal(jr.key(0), problem(1e-3), correction, evaluate, J, lambda _: check(1.1, 0.3, 0.1)).messages


def test_the_navier_stokes_cases():
    """Data are the flow's, at every second point; the last setting's noise is ten times the first's."""
    truth = navier_stokes.truths(2)[0]
    low, high = (navier_stokes.problem(navier_stokes.SETTINGS[name], truth, 0) for name in ("T1_low", "T1_high"))
    seen = np.asarray(jax.jit(low.forward)(jnp.asarray(truth)))
    assert seen.shape == (256,)
    np.testing.assert_allclose((high.likelihood.y - seen) / (low.likelihood.y - seen), 10.0, rtol=2e-3)
    fine = navier_stokes.kolmogorov.advance(1.0, 32, dt=0.01)(jnp.asarray(truth, float).reshape(1, 32, 32))[0]
    np.testing.assert_allclose(seen, np.asarray(fine[::2, ::2]).ravel(), atol=1e-3 * navier_stokes.FIELD_SD)
    assert low.prior.grid == (1, (32, 32), True)


def test_methods_of_the_navier_stokes_table():
    """The prior of each, and rows of two methods in a table of medians."""
    truth, setting = navier_stokes.truths(2)[0], navier_stokes.SETTINGS["T1_low"]
    cases = {name: navier_stokes.problem(setting, truth, 0, name) for name in navier_stokes.METHODS}
    assert isinstance(cases["gaussian"].prior, GaussianPrior)
    assert cases["published"].prior is cases["enkg"].prior
    np.testing.assert_array_equal(cases["gaussian"].likelihood.y, cases["enkg"].likelihood.y)
    row = {"setting": "T1_low", "method": "enkg", "l2": 1.0, "crps": 0.1, "ssr": 2.0, "chi2": 3.0}
    rows = [row | {"evaluations": n, "seconds": n} for n in (10, 30, 20)]
    rows.append(row | {"method": "published", "crps": 0.5, "evaluations": 13824, "seconds": 7})
    assert navier_stokes.table(rows).splitlines()[2:] == [
        "| T1_low | enkg | 3 | 1.000 | 0.100 | 2.000 | 3.000 | 20 | 20 |",
        "| T1_low | published | 1 | 1.000 | 0.500 | 2.000 | 3.000 | 13,824 | 7 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quick", "--methods", "published"], "--quick has no method published"),
        (["--picture", "a.png", "--methods", "gaussian"], "--picture draws the method enkg only"),
        (["--out", "rows.json"], "do not name their method"),
    ],
)
def test_what_the_table_refuses(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text('{"setting": "T1_low", "truth": 0}\n')
    with pytest.raises(SystemExit):
        navier_stokes.main(arguments)
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_table(capsys, tmp_path):
    navier_stokes.main(["--quick", "--out", str(tmp_path / "rows.json")])
    assert "| T1_low | enkg | 1 |" in capsys.readouterr().out
    navier_stokes.main(["--quick", "--out", str(tmp_path / "rows.json")])  # at once
    assert "| T1_low | enkg | 1 |" in capsys.readouterr().out
