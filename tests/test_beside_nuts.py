"""Three problems beside NUTS: black boxes against their twins, the law of the epidemic, both methods' posteriors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import lambertw
from scipy.stats import binom, kstest

from enkg_ppl import EnKG
from models import gillespie
from models.dose_response import DOSES, response, response_twin
from models.elimination import ASSAY_ERROR, DOSE, HALF_SPEED, HOURS, log_concentration, log_concentration_twin
from models.epidemic import CONCENTRATION, IMPORTED, POPULATION, WEEKS, weekly_cases, weekly_cases_twin
from validation.compare import moments_table
from validation.demos.beside_nuts import Comparison, Outcome, build_page, format_table, problems, reweighted, solve

PROBLEMS = problems()


def outbreak(transmission, recovery, infected, replicates, weeks=6, population=200, seed=0):
    parameters = (np.atleast_1d(np.asarray(value, float)) for value in (transmission, recovery, infected))
    return gillespie.simulate(*parameters, population=population, num_weeks=weeks, num_replicates=replicates, seed=seed)


# ---- the stochastic simulator


def test_nobody_is_lost_and_everybody_moves_one_way():
    rng = np.random.default_rng(0)
    transmission, recovery = np.exp(rng.standard_normal((2, 64)))
    people = outbreak(transmission, recovery, rng.beta(1, 3, size=64), replicates=3)
    assert people.shape == (64, 3, 7, 3)
    assert np.all(people >= 0)
    np.testing.assert_array_equal(people.sum(axis=-1), 200)
    assert np.all(np.diff(people[..., 0], axis=-1) <= 0)
    assert np.all(np.diff(people[..., 2], axis=-1) >= 0)


def test_same_parameters_give_the_same_epidemic_in_any_company():
    rng = np.random.default_rng(1)
    transmission, recovery = np.exp(rng.standard_normal((2, 20)))
    infected = rng.beta(2, 20, size=20)
    together = outbreak(transmission, recovery, infected, replicates=2)
    np.testing.assert_array_equal(outbreak(transmission, recovery, infected, replicates=2), together)
    np.testing.assert_array_equal(outbreak(transmission[7], recovery[7], infected[7], replicates=2), together[7:8])
    assert np.any(outbreak(transmission, recovery, infected, replicates=2, seed=1) != together)


def test_without_transmission_those_still_sick_are_binomial():
    """Every one of 50 people recovers at rate gamma on their own: Binomial(50, exp(-gamma t)) after t weeks."""
    sick = outbreak(0.0, 0.4, 0.25, replicates=4000)[0, ..., 1]
    for week in (1, 3, 6):
        law = binom(50, np.exp(-0.4 * week))
        # Means and variances of 4,000 replicates, four standard errors.
        assert abs(sick[:, week].mean() - law.mean()) < 4 * law.std() / np.sqrt(4000)
        assert sick[:, week].var() == pytest.approx(law.var(), rel=4 * np.sqrt(2 / 4000))
    late = np.arange(51)
    observed = np.bincount(sick[:, 1], minlength=51)[late].cumsum() / 4000
    assert np.max(np.abs(observed - binom(50, np.exp(-0.4)).cdf(late))) < 1.95 / np.sqrt(4000)  # chance 0.001


def test_without_recovery_the_first_infection_waits_an_exponential_time():
    """At the rate beta S I / N; a week is as short as one likes, in units of 1 / beta."""
    beta = 0.02
    people = outbreak(beta, 0.0, 0.005, replicates=3000, weeks=60)[0]  # one of 200
    first = np.argmax(people[..., 0] < 199, axis=-1)
    happened = people[:, -1, 0] < 199
    rate = beta * 199 / 200
    assert happened.mean() == pytest.approx(1 - np.exp(-60 * rate), abs=4 * 0.5 / np.sqrt(3000))
    # The week in which an exponential time falls, smeared evenly inside it by its own law: uniform ranks.
    jitter = np.random.default_rng(0).uniform(size=happened.sum())
    low, high = (1 - np.exp(-rate * (first[happened] - shift)) for shift in (1, 0))
    ranks = (low + jitter * (high - low)) / (1 - np.exp(-60 * rate))
    assert kstest(ranks, "uniform").pvalue > 1e-3


def test_final_size_of_a_household_is_that_of_its_chains():
    """One sick of three, infections at beta S I / 3: the chance of no further case is in closed form."""
    beta, gamma = 1.5, 1.0
    people = outbreak(beta, gamma, 1 / 3, replicates=6000, weeks=60, population=3)[0]
    escaped = people[:, -1, 0]
    np.testing.assert_array_equal(people[:, -1, 1], 0)  # all over
    infect, recover = beta * np.array([[0.0, 1.0, 2.0]]) / 3, gamma  # per sick person, by susceptibles

    def size(susceptible, sick):
        """Chances of 0, 1, 2 susceptibles left, by the jump chain."""
        if sick == 0:
            return np.eye(3)[susceptible]
        up = infect[0, susceptible] / (infect[0, susceptible] + recover)
        onward = size(susceptible - 1, sick + 1) if susceptible else np.zeros(3)
        return up * onward + (1 - up) * size(susceptible, sick - 1)

    shares = np.bincount(escaped, minlength=3) / 6000
    np.testing.assert_allclose(shares, size(2, 1), atol=4 * 0.5 / np.sqrt(6000))


def test_replicates_keep_a_fraction_of_a_person():
    people = outbreak(np.zeros(3), np.zeros(3), [0.0123, 1e-6, 1.0], replicates=10)
    np.testing.assert_allclose(people[:, :, 0, 1].mean(axis=1), [2.5, 1.0, 200.0])


# ---- black boxes and twins


def test_epidemic_tends_to_its_twin():
    """The mean of 60 seeds, four standard errors, and 6 % of the peak: a mean of people is not quite the equation."""
    parameters = np.array([[2.0, 1.0, 0.02], [1.6, 0.7, 0.03], [3.0, 1.5, 0.01]]).T
    simulated = np.array([weekly_cases(*parameters, seed=seed) for seed in range(60)])
    exact = np.asarray(jax.vmap(weekly_cases_twin)(*jnp.asarray(parameters)))
    error = np.abs(simulated.mean(axis=0) - exact)
    assert np.all(error < 4 * simulated.std(axis=0) / np.sqrt(60) + 0.06 * exact.max(axis=1, keepdims=True))


def test_epidemic_of_a_larger_town_is_closer_to_its_twin():
    parameters = np.array([2.0]), np.array([1.0]), np.array([0.02])
    exact = np.asarray(weekly_cases_twin(*(jnp.asarray(value[0]) for value in parameters))) / POPULATION
    errors = []
    for population in (250, 4000):
        people = outbreak(*parameters, replicates=100, weeks=WEEKS, population=population)
        errors.append(np.abs(-np.diff(people[0, ..., 0].mean(axis=0)) / population - exact).sum())
    # Bias falls as 1 / population (16), Monte Carlo error as its root (4).
    assert errors[1] < errors[0] / 3


def test_twin_of_the_epidemic_solves_its_equation():
    def field(_, state):
        infections = 2.4 * state[0] * state[1]
        return [-infections, infections - 0.8 * state[1]]

    truth = solve_ivp(field, (0, WEEKS), [0.99, 0.01], "LSODA", t_eval=np.arange(WEEKS + 1), rtol=1e-10, atol=1e-12)
    cases = weekly_cases_twin(*(jnp.asarray(value) for value in (2.4, 0.8, 0.01)))
    np.testing.assert_allclose(cases, -POPULATION * np.diff(truth.y[0]), rtol=1e-4)


def test_concentration_is_that_of_its_twin_and_of_lambert_w():
    speed = np.linspace(-3.0, 3.0, 13)
    ours = log_concentration(speed)
    np.testing.assert_allclose(ours, log_concentration_twin(jnp.asarray(speed)), rtol=1e-12, atol=1e-12)
    argument = DOSE / HALF_SPEED * np.exp((DOSE - np.exp(speed)[:, None] * HOURS) / HALF_SPEED)
    # c = K W(c0 / K exp((c0 - v t) / K)), Schnell and Mendoza (1997).
    np.testing.assert_allclose(ours, np.log(HALF_SPEED * lambertw(argument).real), rtol=1e-9, atol=1e-9)


def test_concentration_twin_has_the_gradient_of_the_implicit_function():
    speed = jnp.linspace(-2.0, 2.0, 5)
    slope = jax.vmap(jax.jacfwd(log_concentration_twin))(speed)
    concentration = np.exp(log_concentration(np.asarray(speed)))
    # c + K ln c = ... - v t: d ln c / d ln v = -v t / (K + c).
    expected = -np.exp(np.asarray(speed))[:, None] * HOURS / (HALF_SPEED + concentration)
    np.testing.assert_allclose(slope, expected, rtol=1e-8)


def test_response_is_that_of_its_twin():
    rng = np.random.default_rng(3)
    parameters = rng.normal(1.0, 0.5, 16), rng.normal(1.0, 1.5, 16), np.exp(0.5 * rng.standard_normal(16))
    twin = jax.vmap(response_twin)(*(jnp.asarray(value) for value in parameters))
    np.testing.assert_allclose(response(*parameters), twin, rtol=1e-12)
    # Half the effect at the half dose.
    np.testing.assert_allclose(response(np.array([3.0]), np.log(DOSES[4:5]), np.array([2.0]))[0, 4], 1.5)


# ---- comparison


def test_reweighting_moves_towards_what_the_black_box_says():
    """Weights by hand on a dozen draws: their weighted mean within the resolution of systematic resampling."""
    rng = np.random.default_rng(4)
    num = 400
    y = PROBLEMS["epidemic"].y
    draws = {
        "transmission": 1.6 * np.exp(0.05 * rng.standard_normal(num)),
        "recovery": 0.7 * np.exp(0.05 * rng.standard_normal(num)),
        "infected": 0.02 * np.exp(0.1 * rng.standard_normal(num)),
    }
    draws["cases"] = IMPORTED + np.asarray(jax.vmap(weekly_cases_twin)(*map(jnp.asarray, draws.values())))
    simulated = IMPORTED + weekly_cases(draws["transmission"], draws["recovery"], draws["infected"])

    def log_likelihood(mean):
        # The negative binomial's terms that depend on its mean.
        return (y * np.log(mean) - (y + CONCENTRATION) * np.log(mean + CONCENTRATION)).sum(axis=1)

    weights = np.exp(log_likelihood(simulated) - log_likelihood(draws["cases"]))
    weights /= weights.sum()
    moved, effective = reweighted(draws, y)
    assert effective == pytest.approx(1 / np.sum(weights**2))
    for name in ("transmission", "recovery", "infected"):
        expected = weights @ draws[name]
        assert moved[name].mean() == pytest.approx(expected, abs=0.1 * draws[name].std())
        assert moved[name].shape == (num,)


def stand_in(seed):
    """Draws of every problem, from nowhere in particular."""
    rng = np.random.default_rng(seed)
    shapes = {"log_speed": (6,)}
    return {
        name: {site: rng.standard_normal((200, *shapes.get(site, ()))) for site in problem.sites}
        for name, problem in PROBLEMS.items()
    }


def test_page_shows_every_problem_and_nothing_from_elsewhere():
    ours, theirs = stand_in(0), stand_in(1)
    outcomes = {}
    for name, problem in PROBLEMS.items():
        rows = moments_table(ours[name], theirs[name], problem.sites)
        comparison = Comparison(name, "a < b", rows, 12345, 678, 1.0, 2.0)
        outcomes[name] = Outcome(ours[name], theirs[name], {}, [comparison])
    page = build_page(outcomes, "python -m validation.demos.beside_nuts")
    assert page.count("<svg") == page.count("</svg>") == 3
    assert not re.search(r"<(script|link|img|iframe|object)\b|\bsrc=|@import|url\((?!#)", page)
    for text in ("a &lt; b", "12,345", "log_speed[5]", "person by person"):
        assert text in page
    table = format_table([outcome.comparisons[0] for outcome in outcomes.values()])
    assert len(table.splitlines()) == 4
    assert f"{outcomes['hierarchy'].comparisons[0].shift:.2f}" in table


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_small_ensemble_finishes_without_a_warning(name):
    problem = PROBLEMS[name]
    enkg = EnKG(problem.model, num_particles=256, progress_bar=False)
    enkg.run(jax.random.key(0), y=problem.y)
    for site in problem.sites:
        assert np.all(np.isfinite(enkg.get_samples()[site]))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_defaults_agree_with_nuts(name):
    """Against the same model: the epidemic's is that of the black box, by reweighting."""
    outcome = solve(name, PROBLEMS[name], progress=False)
    same_model = outcome.comparisons[-1]
    assert same_model.shift < 0.15
    assert same_model.ratios[0] > 0.85
    assert same_model.ratios[1] < 1.15
    if name == "epidemic":
        # The twin is another model. These clocks move its posterior by 0.31 sd, whatever the method; 0.15 on top.
        assert outcome.comparisons[0].shift < 0.31 + 0.15
    if name == "hierarchy":
        mean, sd = spread_by_quadrature(PROBLEMS[name].y)
        # Effective draws of NUTS are a thousand or more: 0.03 sd of the mean, 4 % of the sd of a skewed posterior.
        assert outcome.reference["spread"].mean() == pytest.approx(mean, abs=0.12 * sd)
        assert outcome.reference["spread"].std() == pytest.approx(sd, rel=0.12)


def spread_by_quadrature(y):
    """Mean and sd of the hierarchy's spread on grids: patients integrated out, one by one."""
    speed, centre, spread = np.linspace(-4, 4, 1001), np.linspace(-3, 4, 141), np.geomspace(0.03, 2.5, 120)
    residual = (y[:, None, :] - log_concentration(speed)[None]) / ASSAY_ERROR
    log_likelihood = -0.5 * (residual**2).sum(axis=-1)
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    log_posterior = np.empty((len(centre), len(spread)))
    for k, scale in enumerate(spread):
        density = np.exp(-0.5 * ((speed[None] - centre[:, None]) / scale) ** 2) / scale
        # The grid of the spread is geometric: its own step is part of the density.
        prior = -0.5 * (centre - 0.5) ** 2 - 0.5 * (scale / 0.5) ** 2 + np.log(scale)
        log_posterior[:, k] = np.log(density @ likelihood.T + 1e-300).sum(axis=1) + prior
    mass = np.exp(log_posterior - log_posterior.max()).sum(axis=0)
    mass /= mass.sum()
    mean = mass @ spread
    return mean, np.sqrt(mass @ (spread - mean) ** 2)
