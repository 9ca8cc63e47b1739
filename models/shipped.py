"""Priors that are shipped under `models/weights`, and the recipes that they were trained by.

    python -m validation.demos.cards two_moons --train    train one anew, check it, and write its card

`models.kolmogorov` ships one more, with a command of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from enkg_ppl import NetworkPrior, load_prior
from models import digits_prior, toys

WEIGHTS = Path(__file__).parent / "weights"

Draws = Float[np.ndarray, "draws ..."]


class Recipe(NamedTuple):
    """How a prior was trained, and on what.

    Attributes:
        title: what it is a prior of.
        data: what it was trained on, a sentence or two.
        train: the recipe; takes `progress_bar`.
        draws: that many events of the kind that it was trained on.
    """

    title: str
    data: str
    train: Callable[..., NetworkPrior]
    draws: Callable[[int], Draws]


def load(name: str) -> NetworkPrior:
    """A shipped prior, by the name of its folder; weights in 32 bits."""
    return cast(load_prior(WEIGHTS / name), jnp.float32)


def cast(prior: NetworkPrior, dtype) -> NetworkPrior:
    """The same prior with the network's weights in another precision; files hold 16 bits, half the size."""
    network = jax.tree.map(lambda leaf: leaf.astype(dtype), prior.network)
    return eqx.tree_at(lambda prior: prior.network, prior, network)


def samples(prior: NetworkPrior, num: int, seed: int = 0) -> Draws:
    """Draws by the flow in fixed steps, as `DiffusionPrior` draws."""
    z = jr.normal(jr.key(seed), (num, prior.dim))
    flat = jax.jit(lambda prior, z: jax.vmap(prior.decode)(z))(prior, z)
    return np.asarray(flat).reshape(num, *prior.event_shape)


def _toy(name: str, words: str) -> Recipe:
    exact = toys.TOYS[name]()
    return Recipe(
        title=words,
        data=f"{toys.NUM_EVENTS:,} exact draws of a mixture of {len(exact.means)} Gaussians of standard deviation "
        f"{float(np.sqrt(np.ravel(exact.variances)[0])):g} whose means lie along the curve (`models.toys.{name}`), "
        "so that score and density are known in closed form.",
        train=lambda **options: toys.train(exact, **options),
        draws=lambda num: toys.draws(jr.key(1), exact, num),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "two_moons": lambda: _toy("two_moons", "Two moons"),
    "swiss_roll": lambda: _toy("swiss_roll", "Swiss roll"),
    "digits": lambda: Recipe(
        title="Handwritten digits, 8 x 8",
        data="scikit-learn's 1,797 digits (UCI, Optical Recognition of Handwritten Digits, test part), "
        f"0 (paper) to 1 (ink); {digits_prior.HELD_OUT_IMAGES} of them held out. Every image gets fresh Gaussian "
        f"noise of sd {digits_prior.DEQUANTISATION:g}, half a grey level. The data are not part of this repository.",
        train=digits_prior.train,
        draws=lambda num: digits_prior.dequantised(np.random.default_rng(0), digits_prior.images()[:num]),
    ),
}
