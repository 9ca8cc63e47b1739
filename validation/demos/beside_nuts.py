"""`EnKG` beside NUTS on three small problems: a stochastic epidemic, a hierarchy, an unknown noise level.

Each is written twice (`models.epidemic`, `models.elimination`, `models.dose_response`): the model that users write,
with a black box in NumPy, and a twin in JAX with the same priors and noise, on which NUTS can tell what the posterior
is. All data are simulated, from fixed seeds.

    python -m validation.demos.beside_nuts --report report/beside_nuts.html

The epidemic and its twin are different models. What the posterior is for the clocks used is known without EnKG: draws
of NUTS, reweighted by the ratio of the two likelihoods, are draws of the posterior under the black box. The table
compares EnKG with both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import ArrayLike, Float

from enkg_ppl import EnKG
from models import dose_response, elimination, epidemic, gillespie
from validation import figures, page
from validation.compare import MomentsRow, format_moments, moments_table, scalars
from validation.nuts import nuts
from validation.resampling import systematic

Draws = Mapping[str, Float[np.ndarray, "draws ..."]]


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
        population=epidemic.POPULATION,
        num_weeks=epidemic.WEEKS,
        num_replicates=1,
        seed=100,
    )
    expected = epidemic.IMPORTED - np.diff(people[0, 0, :, 0])
    counts = rng.poisson(expected * rng.gamma(epidemic.CONCENTRATION, 1 / epidemic.CONCENTRATION, size=epidemic.WEEKS))
    speeds = 0.8 + 0.35 * rng.standard_normal(elimination.PATIENTS)
    assay_noise = rng.standard_normal((elimination.PATIENTS, len(elimination.HOURS)))
    samples = elimination.log_concentration(speeds) + elimination.ASSAY_ERROR * assay_noise
    curve = dose_response.response(np.array([1.2]), np.array([0.7]), np.array([1.3]))[0]
    responses = curve + 0.08 * rng.standard_normal(len(dose_response.DOSES))
    return {
        "epidemic": Problem(
            "An epidemic, person by person",
            "The black box draws every infection and every recovery of 2,000 people, four times over, on fixed random "
            "numbers; the twin is SIR&rsquo;s differential equation. The two are different models: the table has both "
            "the twin&rsquo;s posterior and that of the black box, by reweighting draws of NUTS.",
            epidemic.model,
            epidemic.twin,
            counts.astype(float),
            ("transmission", "recovery", "infected"),
        ),
        "hierarchy": Problem(
            "Six patients and a drug",
            "Each eliminates the drug at a speed of its own, drawn from a population whose centre and spread are "
            "unknown; the black box, called inside the plate, solves an equation by halving intervals.",
            elimination.model,
            elimination.twin,
            samples,
            ("centre", "spread", "log_speed"),
        ),
        "dose_response": Problem(
            "Noise of unknown size",
            "A dose-response curve from twelve measurements whose scatter is inferred with it.",
            dose_response.model,
            dose_response.twin,
            responses,
            ("top", "log_half", "slope", "noise"),
        ),
    }


def reweighted(
    draws: Draws, y: Float[np.ndarray, "12"], seed: int = epidemic.CLOCK_SEED
) -> tuple[dict[str, np.ndarray], float]:
    """Draws of the epidemic's twin turned into draws of its model, and the effective number left of them.

    Weights are the ratio of the likelihoods; then as many draws are taken again, systematically. `seed`: of the
    clocks of the black box.
    """
    parameters = [np.asarray(draws[name]) for name in ("transmission", "recovery", "infected")]
    simulated = epidemic.IMPORTED + epidemic.weekly_cases(*parameters, seed=seed)

    def log_likelihood(cases: Float[ArrayLike, "draws 12"]) -> Float[np.ndarray, " draws"]:
        counts = dist.NegativeBinomial2(jnp.asarray(cases), epidemic.CONCENTRATION)
        return np.asarray(counts.log_prob(y[None, :]).sum(-1))

    log_ratio = log_likelihood(simulated) - log_likelihood(draws["cases"])
    weights = np.exp(log_ratio - log_ratio.max())
    weights /= weights.sum()
    effective = float(1 / np.sum(weights**2))
    chosen = systematic(0.5, log_ratio, len(log_ratio))
    return {name: np.asarray(value)[chosen] for name, value in draws.items()}, effective


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
        marginals = [figures.Scalar(label, "", pairs[0][label], pairs[1][label]) for label in pairs[0]]
        picture = page.svg(figures.marginals_figure(marginals), f"Marginal posteriors: {name}")
        body = page.figure_block([picture], page.legend_html(NAMES), wide=True)
        body += "".join(page.moments_block(row.rows, NAMES) for row in outcome.comparisons[-1:])
        sections.append(page.Section(known[name].title, known[name].text, body))
    sections += [
        page.Section("Agreement in numbers", "", page.table(HEADER, [cells(row) for row in comparisons])),
        page.Section("Make this page", "From a checkout, with every seed fixed:", page.code_block(command)),
    ]
    facts = {
        "runs of black boxes by EnKG": f"{sum(o.comparisons[0].calls for o in outcomes.values()):,}",
        "gradients by NUTS": f"{sum(o.comparisons[0].gradients for o in outcomes.values()):,}",
    }
    return page.page("Beside NUTS", lead, facts, sections)


def main(argv: list[str] | None = None) -> None:
    """Infer three models with EnKG, judge by NUTS, print one table; with --report write a page too."""
    parser = argparse.ArgumentParser(prog="python -m validation.demos.beside_nuts", description=main.__doc__)
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
        command = f"python -m validation.demos.beside_nuts --seed {options.seed} --report {options.report}"
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(build_page(outcomes, command), "utf-8")
        print(options.report)


if __name__ == "__main__":
    main()
