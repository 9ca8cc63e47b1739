"""A digit behind a black-box camera: `EnKG` beside NUTS on the camera's twin and tempered SMC, and a page of all.

The problem is that of `models.digits`; all three look at the posterior under the very same network.

    python -m validation.demos.digits --report report/digits.html
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from enkg_ppl import EnKG
from models.digits import ALIVE, NOISE, SIZE, Images, model, photograph, photograph_twin, simulate, twin
from models.pictures import METHOD, MUTED, REFERENCE, style
from validation import page
from validation.methods import smc
from validation.nuts import nuts
from validation.target import Target


class Row(NamedTuple):
    """One posterior beside that of NUTS; errors of means are in posterior sd, over the 64 pixels.

    Attributes:
        name: of the method.
        shift: median of the absolute error of the mean.
        worst_shift: the largest.
        ratio: median of the ratio of standard deviations.
        lowest_ratio: the smallest.
        highest_ratio: the largest.
        calls: of the camera, or gradients of its twin.
        seconds: compilation included.
    """

    name: str
    shift: float
    worst_shift: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float
    calls: str
    seconds: float


def compare(name: str, draws: Images, reference: Images, calls: str, seconds: float) -> Row:
    """Draws `(draws, 8, 8)` against those of the reference."""
    shift = np.abs(draws.mean(axis=0) - reference.mean(axis=0)) / reference.std(axis=0)
    ratio = draws.std(axis=0) / reference.std(axis=0)
    return Row(
        name=name,
        shift=float(np.median(shift)),
        worst_shift=float(shift.max()),
        ratio=float(np.median(ratio)),
        lowest_ratio=float(ratio.min()),
        highest_ratio=float(ratio.max()),
        calls=calls,
        seconds=seconds,
    )


HEADER = ("", "error of means, median", "worst", "sd ratio, median", "smallest", "largest", "cost", "seconds")


def cells(row: Row) -> list[str]:
    """A row as text, in the columns of `HEADER`."""
    return [row.name, *(f"{value:.2f}" for value in row[1:6]), row.calls, f"{row.seconds:.0f}"]


def format_table(rows: list[Row]) -> str:
    """The comparison as plain text."""
    lines = [list(HEADER), *(cells(row) for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(HEADER))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def rounding_error(scenes: Images, y: Float[np.ndarray, "8 8"]) -> tuple[float, float]:
    """How far 8-bit rounding moves the posterior, by reweighting draws of the twin.

    Returns the largest change of a pixel's mean in posterior sd, and the standard deviation in nats of the log
    likelihood ratio. Reweighting is itself noisy: the change cannot be told from zero below the second over the root
    of the number of draws.
    """
    exact = np.asarray(jax.jit(jax.vmap(photograph_twin))(jnp.asarray(scenes)))
    log_ratio = 0.5 * (((y - exact) / NOISE) ** 2 - ((y - photograph(scenes)) / NOISE) ** 2).sum(axis=(1, 2))
    weights = np.exp(log_ratio - log_ratio.max())
    weights /= weights.sum()
    moved = np.tensordot(weights, scenes, 1) - scenes.mean(axis=0)
    return float((np.abs(moved) / scenes.std(axis=0)).max()), float(log_ratio.std())


# ---- page

NAMES = ("EnKG", "NUTS")
MODEL_CODE = """\
prior = load_prior("models/weights/digits")
camera = blackbox(photograph, shape=(8, 8), vectorized=True)   # NumPy: blur, film, dead pixels, 8 bits

def model(y=None):
    scene = numpyro.sample("scene", DiffusionPrior(prior))
    photo = numpyro.deterministic("photo", camera(scene))
    numpyro.sample("y", dist.Normal(photo, 0.05).to_event(2), obs=y)

enkg = EnKG(model, num_particles=1024)
enkg.run(jax.random.key(0), y=y)
"""


def _show(axes, image, title: str, top: float = 1.0, cmap: Any = "gray_r") -> None:
    # Rectangles, not a bitmap, for sharpness at any size; their edges are drawn, or seams would show.
    axes.pcolormesh(np.asarray(image)[::-1], cmap=cmap, vmin=0, vmax=top, edgecolors="face", linewidth=0.4)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)


def overview(truth, y, draws: Images, reference: Images) -> Figure:
    """Truth, photograph, and mean and sd of both posteriors."""
    top = max(draws.std(axis=0).max(), reference.std(axis=0).max())
    with style():
        figure, axes = plt.subplots(1, 6, figsize=(10, 2.0), layout="constrained")
        _show(axes[0], truth, "Truth")
        _show(axes[1], np.where(ALIVE == 1, y, np.nan), "Photograph")
        _show(axes[1], np.where(ALIVE == 0, 1.0, np.nan), "Photograph", cmap=ListedColormap([REFERENCE]))
        for ax, draws_of, name in ((axes[2], draws, NAMES[0]), (axes[4], reference, NAMES[1])):
            _show(ax, draws_of.mean(axis=0), f"{name}: mean")
        for ax, draws_of, name in ((axes[3], draws, NAMES[0]), (axes[5], reference, NAMES[1])):
            _show(ax, draws_of.std(axis=0), f"{name}: sd, 0 to {top:.2f}", top, "magma")
        plt.close(figure)
    return figure


def draws_figure(draws: Images, reference: Images, num: int = 10) -> Figure:
    """Draws of both posteriors, one row each."""
    with style():
        figure, axes = plt.subplots(2, num, figsize=(10, 2.2), layout="constrained")
        for row, some, name in zip(axes, (draws, reference), NAMES, strict=True):
            chosen = some[np.linspace(0, len(some) - 1, num).astype(int)]
            for k, (ax, image) in enumerate(zip(row, chosen, strict=True)):
                _show(ax, image, name if k == 0 else "")
        plt.close(figure)
    return figure


def scatter_figure(draws: Images, reference: Images) -> Figure:
    """Mean and sd of every pixel, one posterior against the other."""
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
        for ax, moment, title in zip(axes, (np.mean, np.std), ("Means", "Standard deviations"), strict=True):
            x, y = (moment(some, axis=0).ravel() for some in (reference, draws))
            low, high = min(x.min(), y.min()), max(x.max(), y.max())
            ax.plot([low, high], [low, high], color=MUTED, linewidth=0.8)
            for alive, marker, label in ((1, "o", "alive"), (0, "s", "dead pixel")):
                chosen = ALIVE.ravel() == alive
                colour = METHOD if alive else REFERENCE
                ax.plot(x[chosen], y[chosen], marker, color=colour, markersize=4, label=label)
            ax.set(title=title, xlabel=NAMES[1], ylabel=NAMES[0])
        axes[0].legend()
        plt.close(figure)
    return figure


def build_page(
    truth, y, draws: Images, reference: Images, rows: list[Row], diagnostics: Any, notes: Mapping[str, str], command
) -> str:
    """The report as one HTML page; `draws` are EnKG's, `reference` those of NUTS, `notes` the large numbers."""
    best = rows[0]
    lead = (
        "A handwritten digit seen through optics that blur, film that saturates, ten dead pixels and an 8-bit "
        "converter, in host code without a gradient. The prior is a diffusion model. EnKG runs the camera forward "
        "only; NUTS, given a differentiable copy of it and the same network, says what the answer should be: "
        f"<strong>means within {best.shift:.2f} posterior standard deviations (median over the pixels), standard "
        f"deviations {best.ratio:.2f} times as large</strong>."
    )
    sections = [
        page.Section(
            "What was there, what was seen, what is inferred",
            "Dead pixels are orange. Where the photograph says little (behind the dead block, and where the film is "
            "saturated) the posterior is wide, and the prior knows what strokes look like.",
            page.figure_block([page.svg(overview(truth, y, draws, reference), "Truth, photograph, posteriors")], ""),
        ),
        page.Section(
            "Digits that the photograph leaves possible",
            "Draws of both posteriors.",
            page.figure_block([page.svg(draws_figure(draws, reference), "Posterior draws")], ""),
        ),
        page.Section(
            "Agreement in numbers",
            "Errors of means are in posterior standard deviations of NUTS; the last row is NUTS against itself, one "
            "half of its draws against the other.",
            page.table(HEADER, [cells(row) for row in rows])
            + page.figure_block([page.svg(scatter_figure(draws, reference), "Moments of every pixel")], ""),
        ),
        page.Section("What EnKG says of itself", "Known without any reference.", page.diagnostics_block(diagnostics)),
        page.Section("Model", "What a user writes; the camera is NumPy&rsquo;s:", page.code_block(MODEL_CODE)),
        page.Section("Make this page", "From a checkout, with every seed fixed:", page.code_block(command)),
    ]
    return page.page("A digit behind a camera", lead, notes, sections)


# ---- demo


class Settings(NamedTuple):
    """Effort of the three methods; `smc_budget` is camera calls, None for BlackJAX's usual 20 steps a level."""

    num_particles: int = 1024
    num_warmup: int = 200
    num_samples: int = 200
    num_chains: int = 4
    num_smc: int = 512
    smc_budget: int | None = None


QUICK = Settings(num_particles=512, num_warmup=10, num_samples=10, num_chains=2, num_smc=64, smc_budget=2000)


def main(argv: list[str] | None = None) -> None:
    """Infer with EnKG, judge by NUTS and SMC, print a table, write the page; its path is the last line printed."""
    parser = argparse.ArgumentParser(prog="python -m validation.demos.digits", description=main.__doc__)
    parser.add_argument("--digit", type=int, default=0, help="which of the 180 held-out images (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of all methods (default 0)")
    parser.add_argument("--num-particles", type=int, help="ensemble size of EnKG (default 1024)")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that all works")
    parser.add_argument("--report", type=Path, default=Path("report/digits.html"), help="where the page goes")
    options = parser.parse_args(argv)
    settings = QUICK if options.quick else Settings()
    if options.num_particles:
        settings = settings._replace(num_particles=options.num_particles)
    truth, y = simulate(options.seed, options.digit)

    print(f"EnKG on the black box, {settings.num_particles} particles", flush=True)
    enkg = EnKG(model, num_particles=settings.num_particles)
    enkg.run(jax.random.key(options.seed), y=y)
    draws = np.asarray(enkg.get_samples()["scene"])

    print("NUTS on the differentiable twin", flush=True)
    truth_run = nuts(
        jax.random.key(options.seed + 1),
        twin,
        y=y,
        num_warmup=settings.num_warmup,
        num_samples=settings.num_samples,
        num_chains=settings.num_chains,
    )
    chains = truth_run.samples["scene"]
    reference = truth_run.flat()["scene"]

    print("Tempered SMC on the black box", flush=True)
    target = Target("digits", (), lambda: None, model=model, kwargs={"y": y}, sites=("scene",))  # pyright: ignore
    other = smc.run(target, options.seed + 2, settings.num_smc, True, budget=settings.smc_budget)

    half = settings.num_samples // 2
    evaluations = enkg.num_forward_evaluations
    gradients = f"{truth_run.num_gradient_evaluations:,} gradients"
    rows = [
        compare("EnKG", draws, reference, f"{evaluations:,} calls", enkg.seconds),
        compare(
            "tempered SMC",
            other.draws.reshape(-1, SIZE, SIZE),
            reference,
            f"{other.num_forward_evaluations:,} calls",
            other.seconds,
        ),
        compare(
            "NUTS, halves",
            chains[:, :half].reshape(-1, SIZE, SIZE),
            chains[:, half:].reshape(-1, SIZE, SIZE),
            gradients,
            truth_run.seconds,
        ),
    ]
    moved, nats = rounding_error(reference, y)
    print(f"\n{format_table(rows)}\n")
    print(
        f"NUTS: R-hat {truth_run.worst_r_hat:.3f}, effective draws {truth_run.smallest_ess:.0f} or more, "
        f"{truth_run.num_divergences} divergences"
    )
    if enkg.log_evidence is not None and other.log_evidence is not None:
        print(
            f"log evidence: EnKG {enkg.log_evidence:.2f} +- {enkg.log_evidence_error:.2f}, SMC {other.log_evidence:.2f}"
        )
    print(f"8-bit rounding moves the posterior mean of a pixel by at most {moved:.3f} sd (log likelihood: {nats:.2f})")
    notes = {
        "camera calls by EnKG": f"{evaluations:,}",
        "EnKG, compilation included": f"{enkg.seconds:.0f} s",
        "gradients by NUTS": f"{truth_run.num_gradient_evaluations:,}",
        "NUTS, compilation included": f"{truth_run.seconds:.0f} s",
        "sd by which 8 bits move a mean, at most": f"{moved:.3f}",
    }
    command = f"python -m validation.demos.digits --digit {options.digit} --seed {options.seed}"
    text = build_page(truth, y, draws, reference, rows, enkg.diagnostics(), notes, command)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(text, "utf-8")
    print(options.report)


if __name__ == "__main__":
    main()
