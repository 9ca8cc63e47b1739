"""Where did the flow come from? A vorticity field from a sparse, noisy look at what became of it.

The Kolmogorov flow of `models.kolmogorov` (viscosity 1/40) carries a vorticity field w on a grid of 32 x 32 points over
a time T of 1 or 5; every second point of the result is seen, 16 x 16 numbers, with noise of .1 or 1 of the field's
standard deviation. Unknown is w itself: 1,024 numbers, the prior being the network of `models.kolmogorov`.

    python -m models.navier_stokes                       the table: eight truths in each of four settings, some hours
    python -m models.navier_stokes --quick               one truth at T = 1, 32 particles, five levels
    python -m models.navier_stokes --methods published   the same by the paper's own correction and noise levels
    python -m models.navier_stokes --picture FILE.png    truth, data, mean and spread of one case

Truths are fields of fresh trajectories, which no training has seen. The method `gaussian` has the plain alternative to
a network as its prior: a stationary Gaussian field with the mean and the spectrum of the data.

Source of the setting: Takao et al. (2026), "Noise, Denoise, Correct", there on 64 x 64 points.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from enkg_ppl import InverseProblem, KalmanCorrection, Posterior, PublishedCorrection, calibration, infer
from enkg_ppl.likelihood import GaussianLikelihood
from models import kolmogorov, pictures

SIZE, STRIDE = 32, 2
NUM_PARTICLES = 96
# Standard deviation of the vorticity of the flow, over many trajectories.
FIELD_SD = 2.16
TRUTHS_SEED, NUM_TRUTHS = 2, 8  # seeds 0 and 1 made the fields of the training


@dataclasses.dataclass(frozen=True)
class Setting:
    """`duration`: T. `noise_share`: standard deviation of the noise over that of the field. `budget`: evaluations."""

    name: str
    duration: float
    noise_share: float
    budget: int


SETTINGS = {
    s.name: s
    for s in (
        Setting("T1_low", 1.0, 0.1, 3_000),
        Setting("T1_high", 1.0, 1.0, 3_000),
        Setting("T5_low", 5.0, 0.1, 8_000),
        Setting("T5_high", 5.0, 1.0, 5_000),
    )
}


class Look:
    """The forward map: the flow over a time T, and every second point of the result."""

    def __init__(self, duration: float):
        self.step = kolmogorov.solver(SIZE)
        self.num_steps = round(duration / kolmogorov.TIME_STEP)

    def __call__(self, w: Float[Array | np.ndarray, "1024"]) -> Float[Array, "256"]:
        start = jnp.asarray(w, jnp.result_type(float)).reshape(1, SIZE, SIZE)  # the solver's own precision
        after = jax.lax.fori_loop(0, self.num_steps, lambda _, w: self.step(w), start)
        return after[0, ::STRIDE, ::STRIDE].ravel().astype(w.dtype)


@functools.cache
def look(duration: float) -> Look:
    with jax.ensure_compile_time_eval():  # what is kept must not be part of a program that is being traced
        return Look(duration)


@functools.cache
def truths(num: int = NUM_TRUTHS) -> Float[np.ndarray, "truths 1024"]:
    """Fields of fresh trajectories, one each, after the spin-up."""
    starts = kolmogorov.random_starts(np.random.default_rng(TRUTHS_SEED), num, kolmogorov.FINE)
    fields = kolmogorov.advance(kolmogorov.SPIN_UP, kolmogorov.FINE)(jnp.asarray(starts))
    return kolmogorov.truncate(np.asarray(fields), SIZE).reshape(num, -1).astype(np.float32)


@functools.cache
def prior():
    with jax.ensure_compile_time_eval():
        return kolmogorov.load()


@functools.cache
def gaussian_prior():
    with jax.ensure_compile_time_eval():
        return kolmogorov.load_gaussian()


METHODS = {
    "enkg": "the library's defaults",
    "published": "the paper's correction and noise levels, without a budget",
    "gaussian": "the defaults under a stationary Gaussian prior",
}


def problem(setting: Setting, truth: Float[np.ndarray, "1024"], seed: int = 0, method: str = "enkg") -> InverseProblem:
    """What is seen of one truth, with noise from this seed, under the prior of this method."""
    forward, sd = look(setting.duration), setting.noise_share * FIELD_SD
    noise = sd * np.random.default_rng((3, seed)).standard_normal((SIZE // STRIDE) ** 2)
    y = np.asarray(jax.jit(forward)(jnp.asarray(truth))) + noise
    chosen = gaussian_prior() if method == "gaussian" else prior()
    return InverseProblem(chosen, forward, GaussianLikelihood(jnp.asarray(y, jnp.float32), sd))


def score(draws, truth, problem: InverseProblem) -> dict[str, float]:
    """`l2`: relative error of the mean. `crps`: over the field's standard deviation. `ssr`: spread over skill.
    `chi2`: see there.
    """
    draws = np.asarray(draws, float)
    return {
        "l2": float(np.linalg.norm(draws.mean(axis=0) - truth) / np.linalg.norm(truth)),
        "crps": float(np.mean(calibration.crps(draws, truth))) / FIELD_SD,
        "ssr": calibration.spread_skill_ratio(draws, truth),
        "chi2": chi2(draws, problem),
    }


def chi2(draws, problem: InverseProblem) -> float:
    """Chi-square per datum, mean over the draws (their own simulations, which no method is charged for)."""
    seen = np.asarray(jax.jit(jax.vmap(problem.forward))(jnp.asarray(draws, jnp.float32)), float)
    likelihood: Any = problem.likelihood
    return float(np.mean(((seen - np.asarray(likelihood.y)) / np.asarray(likelihood.noise_sd)) ** 2))


FIGURES = ("l2", "crps", "ssr", "chi2")


def run(
    setting: Setting,
    number: int,
    *,
    num_particles: int = NUM_PARTICLES,
    quick: bool = False,
    method: str = "enkg",
) -> dict[str, Any]:
    """One row of the table: one seed for a truth, its data and its draws."""
    truth = truths()[number]
    case = problem(setting, truth, number, method)
    began = time.perf_counter()
    posterior = solve(case, setting, number, num_particles, quick, method)
    return {
        "setting": setting.name,
        "method": method,
        "truth": number,
        **score(posterior.draws, truth, case),
        "evaluations": posterior.num_forward_evaluations,
        "seconds": time.perf_counter() - began,
        "cycles": posterior.stats.get("num_cycles", 0),
        "messages": posterior.messages,
    }


def solve(
    case: InverseProblem,
    setting: Setting,
    seed: int,
    num_particles: int,
    quick: bool = False,
    method: str = "enkg",
) -> Posterior:
    """The guided ensemble of a method, or for a look in five levels."""
    options: dict[str, Any] = {"max_forward_evaluations": setting.budget, "refine": None}
    if method == "published":
        options = {"correction": PublishedCorrection(), "refine": None}
    elif quick:
        options["correction"] = KalmanCorrection.for_problem(case, num_steps=5)
    return infer(jax.random.key(seed), case, num_particles=num_particles, **options)


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over the truths, as Markdown."""
    lines = [
        "| | method | truths | relative L2 | CRPS | SSR | chi^2 | evaluations | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, method in itertools.product(SETTINGS, METHODS):
        own = [row for row in rows if (row["setting"], row["method"]) == (name, method)]
        if own:
            middle = {key: float(np.median([row[key] for row in own])) for key in (*FIGURES, "evaluations", "seconds")}
            figures = " | ".join(f"{middle[key]:.3f}" for key in FIGURES)
            cost = f"{middle['evaluations']:,.0f} | {middle['seconds']:.0f}"
            lines.append(f"| {name} | {method} | {len(own)} | {figures} | {cost} |")
    return "\n".join(lines)


def picture(setting: Setting, number: int, posterior: Posterior, case: InverseProblem) -> Figure:
    """Truth, what is seen of its future, posterior mean, spread, and two draws."""
    truth, likelihood = truths()[number], case.likelihood
    draws = np.asarray(posterior.draws, float)
    seen: Any = getattr(likelihood, "y")  # noqa: B009
    panels = [
        ("truth", truth),
        (f"seen at T = {setting.duration:g}", np.asarray(seen)),
        ("posterior mean", draws.mean(axis=0)),
        ("a draw", draws[0]),
        ("another draw", draws[1]),
        ("standard deviation", draws.std(axis=0)),
    ]
    bound = 3 * FIELD_SD
    with pictures.style():
        figure, axes = plt.subplots(1, len(panels), figsize=(15, 3), layout="constrained")
        for ax, (title, field) in zip(axes, panels, strict=True):
            size = round(len(field) ** 0.5)
            spread = title == "standard deviation"
            image = ax.imshow(
                field.reshape(size, size).T,  # x to the right
                cmap="viridis" if spread else "RdBu_r",
                vmin=0 if spread else -bound,
                vmax=None if spread else bound,
                origin="lower",
            )
            ax.set(title=title)
            ax.set_axis_off()
            if spread or title.startswith("seen"):
                figure.colorbar(image, ax=ax, shrink=0.8)
        plt.close(figure)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.navier_stokes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["enkg"])
    parser.add_argument("--truths", type=int, default=NUM_TRUTHS, help=f"of each setting, at most {NUM_TRUTHS}")
    parser.add_argument("--particles", type=int, default=NUM_PARTICLES)
    parser.add_argument("--quick", action="store_true", help="T1_low, one truth, 32 particles, five levels")
    parser.add_argument("--out", type=Path, help="file of rows, one JSON object a line; finished rows are kept")
    parser.add_argument("--picture", type=Path, help="draw the first truth of the first setting instead")
    options = parser.parse_args(argv)
    if not 1 <= options.truths <= NUM_TRUTHS:
        parser.error(f"--truths must be 1 to {NUM_TRUTHS}; got {options.truths}")
    if options.quick and "published" in options.methods:
        parser.error("--quick has no method published, whose noise levels are the paper's: leave one of them out")
    if options.picture and options.methods != ["enkg"]:
        parser.error("--picture draws the method enkg only: leave --methods out")
    if options.quick:
        options.settings, options.truths, options.particles = ["T1_low"], 1, 32
    if options.picture:
        setting = SETTINGS[options.settings[0]]
        case = problem(setting, truths()[0])
        posterior = solve(case, setting, 0, options.particles, options.quick)
        pictures.save_png(picture(setting, 0, posterior, case), options.picture, 1500, few_colours=False)
        print(options.picture)
        return
    kept = options.out and options.out.exists()
    rows = [json.loads(line) for line in options.out.read_text("utf-8").splitlines()] if kept else []
    if not all("method" in row for row in rows):
        parser.error(
            f"{options.out} holds rows that do not name their method, of an earlier version: take another file"
        )
    done = {(row["setting"], row["method"], row["truth"]) for row in rows}
    wanted = [(s, m, t) for s in options.settings for m in options.methods for t in range(options.truths)]
    for name, method, number in wanted:
        if (name, method, number) in done:
            continue
        row = run(SETTINGS[name], number, num_particles=options.particles, quick=options.quick, method=method)
        rows.append(row)
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
