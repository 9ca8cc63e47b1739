"""Cards of the shipped priors: train one by its recipe, set its draws beside the data, and write its card.

    python -m validation.demos.cards two_moons            # checks and card of the prior that is there
    python -m validation.demos.cards two_moons --train    # the same after training it anew

A card is `card.md` (data, recipe, time, figures) and `card.png` (losses, samples beside data), in the folder of the
prior under `models/weights`. The recipes are in `models.shipped`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from enkg_ppl import NetworkPrior, load_prior, save_prior
from models import digits_prior, toys
from models.pictures import GRID, METHOD, MUTED, save_png, style
from models.shipped import RECIPES, WEIGHTS, Draws, Recipe, cast, samples
from validation.metrics import c2st

NUM_DRAWS = 4096


# ---- toys


def _check_toy(name: str) -> Callable[[NetworkPrior], Mapping[str, str]]:
    def check(prior: NetworkPrior) -> Mapping[str, str]:
        exact, keys = toys.TOYS[name](), jr.split(jr.key(1000), 4)
        excess = toys.excess_error(prior, exact, keys[0])
        error = toys.log_prob_error(prior, exact, keys[1]) / prior.dim
        score = c2st(toys.flow_draws(prior, keys[2], 5000), toys.draws(keys[3], exact, 5000))
        return {
            "mean squared error of the denoiser above that of the exact one": ", ".join(
                f"{100 * value:.2f} % at noise level {level:g}" for level, value in excess.items()
            ),
            "log density of the flow against the exact one": f"mean absolute error {np.abs(error).mean():.4f} nats a "
            f"dimension, bias {error.mean():+.4f}",
            "classifier two-sample score of 5,000 draws against 5,000 exact ones (0.5 is perfect)": f"{score:.3f}",
        }

    return check


def _show_points(axes, draws: Draws) -> None:
    axes.plot(*draws[:2000].T, ".", markersize=1.2, color=METHOD, alpha=0.5)
    axes.set_aspect("equal")


# ---- digits


def _check_digits(prior: NetworkPrior) -> Mapping[str, str]:
    own, kept = samples(prior, NUM_DRAWS), digits_prior.held_out_images()
    trained = digits_prior.training_images()
    rng = np.random.default_rng(0)
    data = digits_prior.dequantised(rng, digits_prior.images())
    ratio = own.std(axis=0) / data.std(axis=0)
    shift = (own.mean(axis=0) - data.mean(axis=0)) / data.std(axis=0)
    distances = [digits_prior.distance_to(trained, some[:180]) for some in (own, digits_prior.dequantised(rng, kept))]
    record = prior.record
    return {
        "held-out loss where training stopped": f"{min(record['held_out']):.4f} at step {record['best_step']:,}",
        "pixels: means of samples against data": f"at most {np.abs(shift).max():.2f} sd apart, median "
        f"{np.median(np.abs(shift)):.2f}",
        "pixels: standard deviations, samples over data": f"{ratio.min():.2f} to {ratio.max():.2f}, median "
        f"{np.median(ratio):.2f}",
        "distance to the nearest training image, median": f"{np.median(distances[0]):.2f} for samples, "
        f"{np.median(distances[1]):.2f} for held-out images (learnt by heart it would be "
        f"{digits_prior.DEQUANTISATION * digits_prior.SIZE:.2f})",
    }


def _show_images(axes, draws: Draws, rows: int = 6, columns: int = 8) -> None:
    size = draws.shape[1] + 1
    sheet = np.full((rows * size - 1, columns * size - 1), np.nan)
    for k, image in enumerate(draws[: rows * columns]):
        i, j = divmod(k, columns)
        sheet[i * size : i * size + size - 1, j * size : j * size + size - 1] = image
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=1)
    axes.set_axis_off()


class Check(NamedTuple):
    """What a card shows of a prior.

    Attributes:
        figures: named figures of the prior's quality.
        show: draws samples or data on an axis.
    """

    figures: Callable[[NetworkPrior], Mapping[str, str]]
    show: Callable[[Any, Draws], None]


CHECKS = {
    "two_moons": Check(_check_toy("two_moons"), _show_points),
    "swiss_roll": Check(_check_toy("swiss_roll"), _show_points),
    "digits": Check(_check_digits, _show_images),
}


# ---- the card


def picture(prior: NetworkPrior, recipe: Recipe, show: Callable[[Any, Draws], None]) -> Figure:
    """Losses by step; samples; data."""
    record = prior.record
    with style():
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), layout="constrained")
        axes[0].plot(record["steps"], record["loss"], color=MUTED, label="training")
        axes[0].plot(record["steps"], record["held_out"], color=METHOD, label="held out")
        axes[0].axvline(record["best_step"], color=GRID, zorder=0)
        axes[0].set(xlabel="step", title="Loss")
        low = min(min(record["loss"]), min(record["held_out"]))
        late = max(record["held_out"][len(record["held_out"]) // 10 :])
        axes[0].set_ylim(low - 0.1 * (late - low), late + 0.5 * (late - low))
        axes[0].legend()
        show(axes[1], samples(prior, 2000))
        show(axes[2], recipe.draws(2000))
        axes[1].set_title("Samples")
        axes[2].set_title("Data")
        if show is not _show_images:
            for ax in axes[1:]:
                ax.set(xlim=axes[2].get_xlim(), ylim=axes[2].get_ylim())
        plt.close(figure)
    return figure


def card(name: str, prior: NetworkPrior, recipe: Recipe, figures: Mapping[str, str]) -> str:
    """The card as Markdown."""
    record, network = prior.record, prior.network
    timing, settings = record["timing"], record["settings"]
    num_weights = sum(leaf.size for leaf in jax.tree.leaves(network))
    shape = " x ".join(map(str, prior.event_shape))
    rows = {
        "event": shape,
        "network": f"`{type(network).__name__}({', '.join(f'{k}={v}' for k, v in network.config().items())})`, "
        f"{num_weights:,} weights, stored in 16 bits",
        "preconditioning": f"`{type(prior.preconditioning).__name__}`",
        "noise levels": f"{prior.sigma_min:.3g} to {prior.sigma_max:.3g}",
        "batch size, steps": f"{settings['batch_size']}, {timing['steps']:,}; weights of step {record['best_step']:,}",
        "time": f"{timing['seconds']:.0f} s ({timing['compile_seconds']:.0f} s of them compilation) on the "
        f"{record['platform'].upper()}",
        "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
    }
    lines = [f"# {recipe.title}", "", recipe.data, "", f"    python -m validation.demos.cards {name} --train", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in {**rows, **figures}.items()), ""]
    lines += ["![losses, samples and data](card.png)", ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m validation.demos.cards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--train", action="store_true", help="train the prior anew, minutes of one core")
    parser.add_argument("--folder", type=Path, help="of the prior (default models/weights/<name>)")
    options = parser.parse_args(argv)
    recipe, check, folder = RECIPES[options.name](), CHECKS[options.name], options.folder or WEIGHTS / options.name
    if options.train:
        save_prior(cast(recipe.train(), jnp.float16), folder, overwrite=True)
    prior = cast(load_prior(folder), jnp.float32)
    figures = check.figures(prior)
    save_png(picture(prior, recipe, check.show), folder / "card.png", 1300)
    (folder / "card.md").write_text(card(options.name, prior, recipe, figures), "utf-8")
    print(json.dumps(figures, indent=1))
    print(folder / "card.md")


if __name__ == "__main__":
    main()
