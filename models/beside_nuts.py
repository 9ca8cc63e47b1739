"""`EnKG` beside NUTS on three small problems: a stochastic epidemic, a hierarchy, an unknown noise level.

Each is written twice: the model that users write, with a black box in NumPy, and a twin in JAX with the same priors
and noise, on which NUTS can tell what the posterior is. All data are simulated, from fixed seeds.

    python -m models.beside_nuts --report report/beside_nuts.html

The epidemic's black box simulates people and its twin is the differential equation of a large population, so the two
posteriors differ, whatever the method: over 16 seeds of the clocks by 0.23, 0.14 and 0.38 posterior standard
deviations (root mean square) in the means of `transmission`, `recovery` and `infected`. What it is for the clocks used
is known without EnKG: draws of NUTS, reweighted by the ratio of the two likelihoods, are draws of the posterior under
the black box. The table compares EnKG with both.

References:
    W. O. Kermack and A. G. McKendrick, "A Contribution to the Mathematical Theory of Epidemics", Proceedings of the
    Royal Society A 115 (1927) 700-721: SIR.
    L. Michaelis and M. L. Menten, "Die Kinetik der Invertinwirkung", Biochemische Zeitschrift 49 (1913) 333-369:
    elimination that saturates.
    A. V. Hill, "The possible effects of the aggregation of the molecules of haemoglobin on its dissociation curves",
    Journal of Physiology 40 (1910) iv-vii: the dose-response curve.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from enkg_ppl import EnKG, blackbox
from models import _page, gillespie
from models._runge_kutta import runge_kutta
from validation.compare import MomentsRow, format_moments, moments_table, scalars
from validation.nuts import nuts

Draws = Mapping[str, Float[np.ndarray, "draws ..."]]
Simulator = Callable[..., Float[Array, "..."]]

# ---- an epidemic, simulated person by person

POPULATION, WEEKS = 2000, 12
# Epidemics averaged for each particle: over seeds of the clocks their mean has a sd of a sixth to a half of the noise.
REPLICATES = 4
# Common random numbers: the forward map is a function of the parameters, the same one at every call.
CLOCK_SEED = 1
# A case a week comes from elsewhere, so that no expectation is zero.
IMPORTED = 1.0
# Weekly counts have a relative sd of 1 / sqrt(concentration) at least; a single epidemic's own is below that.
CONCENTRATION = 12.0
# Runge-Kutta steps a week; the prior's fastest epidemics double in a few of them.
STEPS = 8


def epidemic_cases(
    transmission: Float[np.ndarray, " particles"],
    recovery: Float[np.ndarray, " particles"],
    infected: Float[np.ndarray, " particles"],
    seed: int = CLOCK_SEED,
) -> Float[np.ndarray, "particles 12"]:
    """Infections in every week, the mean of a few simulated epidemics: the black box. Units as in `gillespie`."""
    people = gillespie.simulate(
        transmission,
        recovery,
        infected,
        population=POPULATION,
        num_weeks=WEEKS,
        num_replicates=REPLICATES,
        seed=seed,
    )
    return -np.diff(people[..., 0], axis=-1).mean(axis=1)


def epidemic_cases_twin(
    transmission: Float[Array, ""], recovery: Float[Array, ""], infected: Float[Array, ""]
) -> Float[Array, "12"]:
    """What `epidemic_cases` tends to in a large population: SIR's differential equation, by Runge and Kutta."""

    def slope(state: Float[Array, "2"]) -> Float[Array, "2"]:
        susceptible, sick = state
        infections = transmission * susceptible * sick
        return jnp.stack([-infections, infections - recovery * sick])

    def step(state: Float[Array, "2"], _: Any) -> tuple[Float[Array, "2"], Float[Array, ""]]:
        state = runge_kutta(slope, state, 1 / STEPS)
        return state, state[0]

    start = jnp.stack([1 - infected, infected])
    _, susceptible = jax.lax.scan(step, start, None, length=WEEKS * STEPS)
    return -POPULATION * jnp.diff(jnp.concatenate([start[:1], susceptible[STEPS - 1 :: STEPS]]))


def _epidemic(simulate: Simulator, y: Float[ArrayLike, "12"] | None) -> None:
    transmission = numpyro.sample("transmission", dist.LogNormal(math.log(2.0), 0.5))
    recovery = numpyro.sample("recovery", dist.LogNormal(0.0, 0.5))
    infected = numpyro.sample("infected", dist.Beta(2.0, 98.0))
    cases = numpyro.deterministic("cases", IMPORTED + simulate(transmission, recovery, infected))
    numpyro.sample("y", dist.NegativeBinomial2(cases, CONCENTRATION).to_event(1), obs=y)


epidemic_blackbox = blackbox(epidemic_cases, shape=(WEEKS,), vectorized=True)


def epidemic(y: Float[ArrayLike, "12"] | None = None) -> None:
    """Weekly counts of an epidemic. Sites: `transmission`, `recovery` (per week), `infected` (share)."""
    _epidemic(epidemic_blackbox, y)


def epidemic_twin(y: Float[ArrayLike, "12"] | None = None) -> None:
    """`epidemic` with the differential equation in place of people."""
    _epidemic(epidemic_cases_twin, y)


# ---- a hierarchy, with the black box inside its plate

PATIENTS = 6
HOURS: Float[np.ndarray, "3"] = np.array([1.0, 2.0, 4.0])
# mg/l: after the dose, and where elimination runs at half its speed.
DOSE, HALF_SPEED = 10.0, 2.0
ASSAY_ERROR = 0.1  # of ln c


def log_concentration(log_speed: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """ln of a drug's concentration (mg/l) at `HOURS`, of any number of patients at once: the black box.

    With x = ln(c / K) Michaelis and Menten's c' = -v c / (K + c) integrates to e^x + x = b - v t / K, solved by
    halving an interval. `log_speed`: ln v, v in mg/l/h.
    """
    target = DOSE / HALF_SPEED + np.log(DOSE / HALF_SPEED) - np.exp(log_speed)[..., None] * HOURS / HALF_SPEED
    low, high = np.minimum(target, 1.0) - math.e, target
    for _ in range(64):
        middle = (low + high) / 2
        above = np.exp(middle) + middle > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.log(HALF_SPEED) + (low + high) / 2


def log_concentration_twin(log_speed: Float[Array, "*shape"]) -> Float[Array, "*shape 3"]:
    """`log_concentration` by Newton's method in JAX."""
    elapsed = jnp.multiply.outer(jnp.exp(log_speed), HOURS / HALF_SPEED)
    target = DOSE / HALF_SPEED + math.log(DOSE / HALF_SPEED) - elapsed
    # e^x + x is convex: from above the root Newton's steps come down to it and do not pass it.
    x = jnp.where(target > 1.0, jnp.log(jnp.maximum(target, 1.0)), target)
    for _ in range(8):
        x = x - (jnp.exp(x) + x - target) / (jnp.exp(x) + 1.0)
    return math.log(HALF_SPEED) + x


def _hierarchy(simulate: Simulator, y: Float[ArrayLike, "6 3"] | None) -> None:
    centre = numpyro.sample("centre", dist.Normal(0.5, 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(0.5))
    with numpyro.plate("patients", PATIENTS):
        log_speed = numpyro.sample("log_speed", dist.Normal(centre, spread))
        numpyro.sample("y", dist.Normal(simulate(log_speed), ASSAY_ERROR).to_event(1), obs=y)


concentration_blackbox = blackbox(log_concentration, shape=(PATIENTS, len(HOURS)), vectorized=True)


def hierarchy(y: Float[ArrayLike, "6 3"] | None = None) -> None:
    """Six patients' blood samples. Sites: `centre`, `spread` of the patients, and in the plate `log_speed (6,)`."""
    _hierarchy(concentration_blackbox, y)


def hierarchy_twin(y: Float[ArrayLike, "6 3"] | None = None) -> None:
    """`hierarchy` with Newton's method."""
    _hierarchy(log_concentration_twin, y)


# ---- a curve, with noise of unknown size

DOSES: Float[np.ndarray, "12"] = np.geomspace(0.05, 100.0, 12)


def response(
    top: Float[np.ndarray, " particles"],
    log_half: Float[np.ndarray, " particles"],
    slope: Float[np.ndarray, " particles"],
) -> Float[np.ndarray, "particles 12"]:
    """Hill's response at `DOSES`: the black box. `log_half`: ln of the dose with half the effect."""
    ratio = np.exp(log_half)[:, None] / DOSES
    return top[:, None] / (1.0 + ratio ** slope[:, None])


def response_twin(top: Float[Array, ""], log_half: Float[Array, ""], slope: Float[Array, ""]) -> Float[Array, "12"]:
    """`response` as a logistic curve of the log dose, in JAX."""
    return top * jax.nn.sigmoid(slope * (jnp.log(DOSES) - log_half))


def _dose_response(simulate: Simulator, y: Float[ArrayLike, "12"] | None) -> None:
    top = numpyro.sample("top", dist.Normal(1.0, 0.5))
    log_half = numpyro.sample("log_half", dist.Normal(1.0, 1.5))
    slope = numpyro.sample("slope", dist.LogNormal(0.0, 0.5))
    noise = numpyro.sample("noise", dist.HalfNormal(0.3))
    numpyro.sample("y", dist.Normal(simulate(top, log_half, slope), noise).to_event(1), obs=y)


response_blackbox = blackbox(response, shape=(len(DOSES),), vectorized=True)


def dose_response(y: Float[ArrayLike, "12"] | None = None) -> None:
    """Twelve noisy responses. Sites: `top`, `log_half`, `slope` of the curve, and `noise`, the unknown sd."""
    _dose_response(response_blackbox, y)


def dose_response_twin(y: Float[ArrayLike, "12"] | None = None) -> None:
    """`dose_response` with the curve in JAX."""
    _dose_response(response_twin, y)


# ---- side by side


class Problem(NamedTuple):
    """A model, its twin, its data, and the latent sites to compare."""

    title: str
    text: str
    model: Callable[..., None]
    twin: Callable[..., None]
    y: Float[np.ndarray, "..."]
    sites: tuple[str, ...]


def problems() -> dict[str, Problem]:
    """The three problems by name, with their data."""
    rng = np.random.default_rng(2)
    # One epidemic, not a mean of several, on clocks that inference does not use.
    people = gillespie.simulate(
        np.array([2.0]),
        np.array([1.0]),
        np.array([0.02]),
        population=POPULATION,
        num_weeks=WEEKS,
        num_replicates=1,
        seed=100,
    )
    expected = IMPORTED - np.diff(people[0, 0, :, 0])
    counts = rng.poisson(expected * rng.gamma(CONCENTRATION, 1 / CONCENTRATION, size=WEEKS))
    speeds = 0.8 + 0.35 * rng.standard_normal(PATIENTS)
    samples = log_concentration(speeds) + ASSAY_ERROR * rng.standard_normal((PATIENTS, len(HOURS)))
    curve = response(np.array([1.2]), np.array([0.7]), np.array([1.3]))[0]
    responses = curve + 0.08 * rng.standard_normal(len(DOSES))
    return {
        "epidemic": Problem(
            "An epidemic, person by person",
            "The black box draws every infection and every recovery of 2,000 people, four times over, on fixed random "
            "numbers; the twin is SIR&rsquo;s differential equation. The two are different models: the table has both "
            "the twin&rsquo;s posterior and that of the black box, by reweighting draws of NUTS.",
            epidemic,
            epidemic_twin,
            counts.astype(float),
            ("transmission", "recovery", "infected"),
        ),
        "hierarchy": Problem(
            "Six patients and a drug",
            "Each eliminates the drug at a speed of its own, drawn from a population whose centre and spread are "
            "unknown; the black box, called inside the plate, solves an equation by halving intervals.",
            hierarchy,
            hierarchy_twin,
            samples,
            ("centre", "spread", "log_speed"),
        ),
        "dose_response": Problem(
            "Noise of unknown size",
            "A dose-response curve from twelve measurements whose scatter is inferred with it.",
            dose_response,
            dose_response_twin,
            responses,
            ("top", "log_half", "slope", "noise"),
        ),
    }


def reweighted(draws: Draws, y: Float[np.ndarray, "12"], seed: int = CLOCK_SEED) -> tuple[dict[str, np.ndarray], float]:
    """Draws of `epidemic_twin` turned into draws of `epidemic`, and the effective number left of them.

    Weights are the ratio of the likelihoods; then as many draws are taken again, systematically. `seed`: of the
    clocks of the black box.
    """
    parameters = [np.asarray(draws[name]) for name in ("transmission", "recovery", "infected")]

    def log_likelihood(cases: Float[ArrayLike, "draws 12"]) -> Float[np.ndarray, " draws"]:
        return np.asarray(dist.NegativeBinomial2(jnp.asarray(cases), CONCENTRATION).log_prob(y[None, :]).sum(-1))

    log_ratio = log_likelihood(IMPORTED + epidemic_cases(*parameters, seed=seed)) - log_likelihood(draws["cases"])
    weights = np.exp(log_ratio - log_ratio.max())
    weights /= weights.sum()
    levels = (np.arange(len(weights)) + 0.5) / len(weights)
    chosen = np.searchsorted(np.cumsum(weights), levels).clip(max=len(weights) - 1)
    return {name: np.asarray(value)[chosen] for name, value in draws.items()}, float(1 / np.sum(weights**2))


class Comparison(NamedTuple):
    """One posterior of EnKG beside a reference.

    Attributes:
        problem: its name.
        reference: what EnKG is compared with.
        rows: moments of every scalar.
        calls: what EnKG cost, runs of the black box.
        gradients: what NUTS cost, gradients of the twin.
        seconds: of EnKG, compilation included.
        nuts_seconds: of NUTS, likewise.
    """

    problem: str
    reference: str
    rows: list[MomentsRow]
    calls: int
    gradients: int
    seconds: float
    nuts_seconds: float

    @property
    def shift(self) -> float:
        """The largest error of a mean, in sd of the reference."""
        return max(abs(row.shift) for row in self.rows)

    @property
    def ratios(self) -> tuple[float, float]:
        """The smallest and the largest ratio of sd."""
        ratios = [row.sd_ratio for row in self.rows]
        return min(ratios), max(ratios)


class Outcome(NamedTuple):
    """Draws of EnKG and of NUTS, what EnKG says of itself, and the comparisons made from them."""

    draws: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]
    diagnostics: Any
    comparisons: list[Comparison]


def solve(name: str, problem: Problem, seed: int = 0, num_particles: int = 1024, progress: bool = True) -> Outcome:
    """Run EnKG's defaults on the black box and NUTS on the twin, and compare."""
    enkg = EnKG(problem.model, num_particles=num_particles, progress_bar=progress)
    enkg.run(jax.random.key(seed), y=problem.y)
    draws = {site: np.asarray(value) for site, value in enkg.get_samples().items()}
    run = nuts(jax.random.key(seed + 1), problem.twin, y=problem.y, progress=progress, **NUTS_SETTINGS)
    if run.num_divergences or run.worst_r_hat > 1.01:
        print(f"NUTS on {name}: {run.num_divergences} divergences, R-hat {run.worst_r_hat:.3f}", flush=True)
    reference = run.flat()

    def compare(title: str, reference: Draws) -> Comparison:
        rows = moments_table(draws, reference, problem.sites)
        cost = (enkg.num_forward_evaluations, run.num_gradient_evaluations, enkg.seconds, run.seconds)
        return Comparison(name, title, rows, *cost)

    comparisons = [compare("NUTS on the twin", reference)]
    if name == "epidemic":
        exact, effective = reweighted(reference, problem.y)
        comparisons.append(compare(f"the same, reweighted ({effective:,.0f} effective)", exact))
    return Outcome(draws, reference, enkg.diagnostics(), comparisons)


HEADER = (
    "problem",
    "EnKG against",
    "worst mean, sd",
    "sd ratios",
    "runs by EnKG",
    "seconds",
    "gradients by NUTS",
    "seconds",
)


def cells(row: Comparison) -> list[str]:
    """A comparison as text, in the columns of `HEADER`."""
    low, high = row.ratios
    return [
        row.problem,
        row.reference,
        f"{row.shift:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row.calls:,}",
        f"{row.seconds:.0f}",
        f"{row.gradients:,}",
        f"{row.nuts_seconds:.0f}",
    ]


def format_table(comparisons: list[Comparison]) -> str:
    """All comparisons as plain text."""
    lines = [list(HEADER), *(cells(row) for row in comparisons)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(HEADER))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


# ---- demo

NAMES = ("EnKG", "NUTS")
NUTS_SETTINGS = {"num_warmup": 500, "num_samples": 2000, "num_chains": 4, "target_acceptance_rate": 0.9}


def build_page(outcomes: Mapping[str, Outcome], command: str) -> str:
    """The report as one HTML page."""
    known = problems()
    comparisons = [row for outcome in outcomes.values() for row in outcome.comparisons]
    same_model = [row for row in comparisons if row.problem != "epidemic" or row.reference != "NUTS on the twin"]
    lead = (
        "Three models with a simulator in NumPy that has no gradient, each beside a twin that has one. EnKG runs the "
        "simulator forward only, NUTS says what the answer should be: <strong>where both look at the same model, means "
        f"within {max(row.shift for row in same_model):.2f} posterior standard deviations</strong>."
    )
    sections = []
    for name, outcome in outcomes.items():
        pairs = [dict(scalars(draws, known[name].sites)) for draws in (outcome.draws, outcome.reference)]
        marginals = [_page.Scalar(label, "", pairs[0][label], pairs[1][label]) for label in pairs[0]]
        picture = _page.svg(_page.marginals_figure(marginals), f"Marginal posteriors: {name}")
        body = _page.figure_block([picture], _page.legend_html(NAMES), wide=True)
        body += "".join(_page.moments_block(row.rows, NAMES) for row in outcome.comparisons[-1:])
        sections.append(_page.Section(known[name].title, known[name].text, body))
    sections += [
        _page.Section("Agreement in numbers", "", _page.table(HEADER, [cells(row) for row in comparisons])),
        _page.Section("Make this page", "From a checkout, with every seed fixed:", _page.code_block(command)),
    ]
    facts = {
        "runs of black boxes by EnKG": f"{sum(o.comparisons[0].calls for o in outcomes.values()):,}",
        "gradients by NUTS": f"{sum(o.comparisons[0].gradients for o in outcomes.values()):,}",
    }
    return _page.page("Beside NUTS", lead, facts, sections)


def main(argv: list[str] | None = None) -> None:
    """Infer three models with EnKG, judge by NUTS, print one table; with --report write a page too."""
    parser = argparse.ArgumentParser(prog="python -m models.beside_nuts", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of both methods (default 0)")
    parser.add_argument("--num-particles", type=int, default=1024, help="ensemble size (default 1024)")
    parser.add_argument("--report", type=Path, help="where a page goes (default: none)")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)

    outcomes = {}
    for name, problem in problems().items():
        print(f"\n{problem.title}", flush=True)
        outcomes[name] = solve(name, problem, options.seed, options.num_particles)
        for row in outcomes[name].comparisons:
            print(f"\nagainst {row.reference}\n{format_moments(row.rows, NAMES)}", flush=True)
    print(f"\n{format_table([row for outcome in outcomes.values() for row in outcome.comparisons])}")
    if options.report is not None:
        command = f"python -m models.beside_nuts --seed {options.seed} --report {options.report}"
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(build_page(outcomes, command), "utf-8")
        print(options.report)


if __name__ == "__main__":
    main()
