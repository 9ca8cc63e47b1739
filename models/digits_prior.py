"""A diffusion prior of handwritten digits, 8 x 8 pixels, and how it is trained.

The data are scikit-learn's 1,797 digits. With so few images a network soon learns them by heart, hence two
precautions: weights decay, and every image gets fresh Gaussian noise of half a grey level, which also makes a smooth
density of 17 discrete levels. A tenth of the images is held out and decides which weights are kept. (Turning,
stretching and shifting the images a little does not help: at 8 x 8 it changes their distribution, and the held-out
loss is larger.)

    python -m validation.demos.cards digits --train
"""

from __future__ import annotations

from collections.abc import Iterator

import jax.random as jr
import numpy as np
from jaxtyping import Float

from enkg_ppl import NetworkPrior, train_prior
from enkg_ppl.networks import ResidualMLP

SIZE = 8
GREY_LEVELS = 16
DEQUANTISATION = 0.5 / GREY_LEVELS
HELD_OUT_IMAGES, HELD_OUT_EVENTS = 180, 512
WIDTH, DEPTH = 192, 3
BATCH_SIZE, NUM_STEPS, WEIGHT_DECAY = 256, 8_000, 0.3

Images = Float[np.ndarray, "images 8 8"]


def images() -> Images:
    """The 1,797 digits, 0 (paper) to 1 (ink) in steps of a sixteenth; in an order that is random and always the same.

    Needs scikit-learn, which ships them.
    """
    from sklearn.datasets import load_digits  # takes a while to load

    digits = load_digits(return_X_y=True)[0].reshape(-1, SIZE, SIZE) / GREY_LEVELS  # pyright: ignore
    return digits[np.random.default_rng(0).permutation(len(digits))]


def training_images() -> Images:
    return images()[HELD_OUT_IMAGES:]


def held_out_images() -> Images:
    """The 180 images that the prior has not seen."""
    return images()[:HELD_OUT_IMAGES]


def dequantised(rng: np.random.Generator, clean: Images) -> Images:
    """With the noise that the prior's data have: sd of half a grey level."""
    return (clean + DEQUANTISATION * rng.standard_normal(clean.shape)).astype(np.float32)


def distance_to(known: Images, some: Images) -> Float[np.ndarray, " images"]:
    """Euclidean distance from each image to the nearest of the known ones."""
    squares = ((some[:, None] - known[None]) ** 2).sum(axis=(2, 3))
    return np.sqrt(squares.min(axis=1))


class Stream:
    """Batches without end, as `train_prior` takes them; the first 512 events are of the held-out images."""

    def __init__(self, seed: int):
        self._seed = seed

    def __iter__(self) -> Iterator[Images]:
        rng = np.random.default_rng([self._seed, 1])
        yield dequantised(rng, np.resize(held_out_images(), (HELD_OUT_EVENTS, SIZE, SIZE)))
        clean = training_images()
        while True:
            yield dequantised(rng, clean[rng.integers(len(clean), size=BATCH_SIZE)])


def train(*, seed: int = 0, **options) -> NetworkPrior:
    """The recipe of the shipped prior; about two minutes of one CPU core."""
    key_network, key_training = jr.split(jr.key(seed))
    options = {
        "batch_size": BATCH_SIZE,
        "num_steps": NUM_STEPS,
        # Of a stream's first 8,192 events that many are taken for the held-out loss.
        "held_out": HELD_OUT_EVENTS / 8192,
        "weight_decay": WEIGHT_DECAY,
        "centre": "element",
        "steps_per_call": 25,
        "key": key_training,
        **options,
    }
    network = ResidualMLP(SIZE**2, width=WIDTH, depth=DEPTH, key=key_network)
    return train_prior(network, Stream(seed), **options)
