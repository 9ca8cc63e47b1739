"""One account of all simulations: no call over the limit, every call counted, and a run cut short says so."""

import warnings
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import (
    DiffusionWaltz,
    EllipticalSlice,
    EnKG,
    KalmanCorrection,
    Karras,
    Posterior,
    PublishedCorrection,
    TemperedSMC,
    VarianceExploding,
    blackbox,
)
from enkg_ppl.evaluation._ledger import BudgetEnd, Ledger
from enkg_ppl.refinement import Refinement

Y = jnp.array([0.6, 0.1])
simulate = blackbox(lambda x: np.stack([np.tanh(3 * x[:, 0]), x[:, 0] * x[:, 1]], 1), (2,), vectorized=True)


def model(y=None):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(simulate(x), 0.1).to_event(1), obs=y)


CORRECTIONS = [
    None,
    KalmanCorrection(num_steps=40),
    KalmanCorrection(num_steps=5),
    PublishedCorrection(),
    PublishedCorrection(0.5, num_updates=3, start_fraction=0.3),
]
SCHEDULES = [None, Karras(40, 0.05, 2.0), Karras(3, 0.1, 2.0), VarianceExploding(12, 0.05, 3.0)]
REFINEMENTS = [
    "auto",
    None,
    TemperedSMC(),
    TemperedSMC(pilot_size=8),
    EllipticalSlice(max_cycles=6),
    DiffusionWaltz(max_rounds=3, steps_per_round=4),
]


def spent(seed: int, **options: Any) -> tuple[int, list[str] | ValueError, int | None]:
    """Calls of the black box, what was said of the budget (or the refusal), and what the run itself counted."""
    enkg = EnKG(model, progress_bar=False, **options)
    before = simulate.num_calls
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            enkg.run(jr.key(seed), y=Y)
        except ValueError as refusal:
            return simulate.num_calls - before, refusal, None
    said = [str(w.message) for w in seen if "max_forward_evaluations" in str(w.message)]
    return simulate.num_calls - before, said, enkg.num_forward_evaluations


def check_combinations(num: int, seed: int, num_budgets: int = 3) -> int:
    """Random settings with budgets about what they would take without one; returns how many were tried."""
    rng = np.random.default_rng(seed)
    refused = cut = 0
    for i in range(num):
        options = {
            "correction": CORRECTIONS[rng.integers(len(CORRECTIONS))],
            "schedule": SCHEDULES[rng.integers(len(SCHEDULES))],
            "refine": REFINEMENTS[rng.integers(len(REFINEMENTS))],
            "num_particles": int(rng.choice([8, 16])),
            "num_ensembles": int(rng.integers(1, 4)),
            "ensemble_method": str(rng.choice(["sequential", "vectorized"])),
        }
        free, said, counted = spent(i, **options)
        assert free == counted, options
        assert not isinstance(said, ValueError)
        assert said == [] or "EllipticalSlice" in said[0], (options, said)  # cycles ran out, not evaluations
        for budget in rng.integers(1, int(1.2 * free), num_budgets):
            calls, said, counted = spent(i, max_forward_evaluations=int(budget), **options)
            assert calls <= budget, (options, budget)
            if isinstance(said, ValueError):
                refused += 1
                assert calls == 0, (options, budget, said)
                assert f"max_forward_evaluations={budget} is too few" in str(said)
            else:
                assert calls == counted, (options, budget)
                if free > budget and options["refine"] != "auto":  # with less, weighted draws may be enough sooner
                    cut += 1
                    assert said, (options, budget, free)
    assert refused >= num / 4
    assert cut >= num / 4
    return num * (1 + num_budgets)


def test_no_call_over_the_limit():
    assert check_combinations(5, 0) >= 20


@pytest.mark.slow
def test_no_call_over_the_limit_in_hundreds_of_runs():
    assert check_combinations(70, 1) >= 280


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"correction": KalmanCorrection(num_steps=40), "refine": None},
            "KalmanCorrection on 40 noise levels, which makes 2,560 simulations (40 of each of 64 particles) beside 64 "
            "that are kept for what follows: allow at least 2,624, or take fewer levels",
        ),
        (
            {"schedule": Karras(40, 0.05, 2.0)},
            "KalmanCorrection on 40 noise levels, which makes 2,560 simulations (40 of each of 64 particles) beside "
            "320 that are kept for what follows: allow at least 2,880, or",
        ),
        (
            {"correction": PublishedCorrection(), "num_ensembles": 2},
            "PublishedCorrection on 80 noise levels, which makes 9,088 simulations (142 of each of 64 particles) "
            "beside 320 that are kept for what follows in each of 2 ensembles: allow at least 18,816, or",
        ),
        (
            {"num_ensembles": 16},
            "num_particles=64 in each of 16 ensembles: allow at least 2,048, or lower num_particles",
        ),
        (
            {"num_ensembles": 4, "refine": TemperedSMC()},
            "num_particles=64 in each of 4 ensembles: allow at least 1,280, or lower num_particles",
        ),
        ({"refine": None, "num_particles": 400}, "num_particles=400: allow at least 1,200, or lower num_particles"),
    ],
    ids=["correction", "schedule", "published", "weighted", "refinement", "guided"],
)
@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_what_does_not_fit_is_refused_before_the_first_simulation(options, words, method):
    options = {"num_particles": 64, "ensemble_method": method} | options
    calls, refusal, _ = spent(0, max_forward_evaluations=1000, **options)
    assert calls == 0
    assert isinstance(refusal, ValueError)
    assert words in str(refusal)
    assert str(refusal).startswith("max_forward_evaluations=1000 is too few for ")
    assert str(refusal).count(". ") == 0, "one sentence"


def test_what_is_named_suffices():
    """The budget that a refusal names is accepted, one less is not."""
    options = {"num_particles": 8, "correction": KalmanCorrection(num_steps=5), "num_ensembles": 2}
    assert isinstance(spent(0, max_forward_evaluations=2 * (5 + 4 + 1) * 8 - 1, **options)[1], ValueError)
    calls, said, _ = spent(0, max_forward_evaluations=2 * (5 + 4 + 1) * 8, **options)
    assert 0 < calls <= 160
    assert not isinstance(said, ValueError)


def test_levels_that_the_budget_cut_are_told():
    calls, said, _ = spent(0, refine=None, num_particles=16, max_forward_evaluations=16 * 7)
    assert calls == 16 * 7
    assert said == [
        "EnKG: the budget of forward evaluations cut the guided flow to 6 of 20 noise levels: raise "
        "max_forward_evaluations, or lower num_particles"
    ]


class Modest(Refinement):
    """Does without what it cannot have, and says nothing of it."""

    num: int = 0

    def run(self, key, problem, *, num_particles, guided=None, evaluator=None, progress=None):
        assert guided is not None
        assert evaluator is not None
        evaluator.affords(self.num)
        return Posterior(guided, 0, "Modest", log_likelihood=evaluator.log_likelihood(guided))


def test_whatever_was_left_undone_for_want_of_simulations_is_told():
    options = {"num_particles": 16, "max_forward_evaluations": 16 * (8 * 2 + 5)}
    assert spent(0, refine=Modest(16 * 12), **options) == (16 * 10, [], 16 * 10)
    calls, said, counted = spent(0, refine=Modest(16 * 12 + 1), **options)
    assert calls == counted == 16 * 10
    assert said == [
        "EnKG: the budget of forward evaluations cut the run short: raise max_forward_evaluations, or lower "
        "num_particles"
    ]


class Greedy(KalmanCorrection):
    """Simulates ten times where it announces one."""

    def step(self, key, x, level, problem, respond, memory):
        for _ in range(9):
            respond(np.asarray(x))
        return super().step(key, x, level, problem, respond, memory)


def test_a_correction_that_asks_for_more_than_it_announced_is_stopped():
    enkg = EnKG(model, num_particles=8, correction=Greedy(4), max_forward_evaluations=100, progress_bar=False)
    before = simulate.num_calls
    with pytest.raises(
        BudgetEnd, match=r"8 simulations were asked for where 4 are left of max_forward_evaluations=100"
    ):
        enkg.run(jr.key(0), y=Y)
    assert simulate.num_calls - before == enkg.partial.num_forward_evaluations == 56


def test_an_account():
    first, second = Ledger.shared(101, 2)
    assert (first.limit, second.limit) == (50, 50)
    first.book(20)
    with first.reserving(10):
        assert first.remaining == 20
        assert first.affords(20)
        assert not first.short
        assert not first.affords(21)
        with pytest.raises(BudgetEnd):
            first.book(21)
    assert first.short
    assert (first.count, first.remaining) == (20, 30)
    assert (second.count, second.remaining, second.short) == (0, 50, False)
    assert Ledger().affords(1e12)


def test_failures_of_every_stage_are_counted_and_reported():
    """NaN for a > 0.2: those of the guided flow too, and where nothing refines it."""
    seen = []

    def fails(a):
        seen.append(np.isnan(np.where(a > 0.2, np.nan, a)))
        return np.where(a > 0.2, np.nan, a)[:, None]

    picky = blackbox(fails, (1,), vectorized=True, on_failure="reject")

    def half(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(picky(a), 0.3).to_event(1), obs=y)

    for refine in ("auto", None):
        seen.clear()
        enkg = EnKG(half, num_particles=64, num_ensembles=2, refine=refine, progress_bar=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            enkg.run(jr.key(0), y=jnp.array([-1.0]))
        failed, total = (int(np.concatenate(seen).sum()), sum(map(len, seen)))
        assert failed > 0.05 * total
        assert any(f"{failed:,} of {total:,} simulations failed" in str(w.message) for w in caught), refine


@pytest.mark.slow
def test_no_call_over_the_limit_where_starts_are_tried():
    """An unknown scale: two starts are compared by simulations of their own, which the ensemble's may not lack."""

    def scaled(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        s = numpyro.sample("s", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.Normal(simulate(a * jnp.ones(2)), s).to_event(1), obs=y)

    for per_particle in range(5, 17):
        budget = 32 * per_particle + 13
        enkg = EnKG(scaled, num_particles=32, refine=TemperedSMC(), max_forward_evaluations=budget, progress_bar=False)
        before = simulate.num_calls
        with pytest.warns(UserWarning, match="max_forward_evaluations"):
            enkg.run(jr.key(0), y=Y)
        assert simulate.num_calls - before == enkg.num_forward_evaluations <= budget
