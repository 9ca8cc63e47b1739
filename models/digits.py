"""A digit behind a black-box camera: a trained diffusion prior, host code that nobody can differentiate.

The camera blurs (optics), saturates (film), has dead pixels and rounds to 8 bits. It is plain NumPy, so EnKG runs it
forward only. `twin` is the same camera without the rounding, written for automatic differentiation.

    python -m validation.demos.digits    EnKG on the black box beside NUTS on the twin and tempered SMC
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float
from numpyro.handlers import reparam
from scipy.ndimage import convolve1d
from scipy.special import expit

from enkg_ppl import DiffusionPrior, NetworkPrior, blackbox
from enkg_ppl.numpyro import DiffusionReparam
from models import digits_prior, shipped

Images = Float[np.ndarray, "images 8 8"]
Image = Float[Array, "8 8"]

SIZE = digits_prior.SIZE
# Blur: these weights along rows, then along columns; beyond the edge there is paper.
KERNEL = np.array([0.25, 0.5, 0.25])
# Film: the tone rises as an S-shaped curve of the ink (Hurter and Driffield's), from 0.12 for paper to 0.99 for full
# ink, where its slope is a thirtieth of the steepest.
MIDDLE, WIDTH = 0.3, 0.15
STEP = 1 / 255
# Sensor noise, sd; 13 steps of the converter.
NOISE = 0.05
# Rows and columns of the pixels that always read 0: a block and some single ones.
DEAD_PIXELS = ((2, 4), (2, 5), (3, 4), (3, 5), (4, 2), (5, 2), (6, 5), (1, 2), (5, 6), (6, 3))
ALIVE = np.ones((SIZE, SIZE))
ALIVE[tuple(np.transpose(DEAD_PIXELS))] = 0


def photograph(scene: Images) -> Images:
    """What the camera makes of scenes, noise apart: the black box, plain NumPy on the host.

    `scene`: ink, 0 (paper) to 1, for each particle. Returns tones in [0, 1], multiples of 1/255, 0 where dead.
    """
    ink = np.asarray(scene, float)
    for axis in (-2, -1):
        ink = convolve1d(ink, KERNEL, axis=axis, mode="constant")
    return ALIVE * np.round(expit((ink - MIDDLE) / WIDTH) / STEP) * STEP


def photograph_twin(scene: Image) -> Image:
    """`photograph` of one scene without rounding, in JAX."""
    rows = [weight * np.eye(SIZE, k=k) for k, weight in zip((-1, 0, 1), KERNEL, strict=True)]
    band = jnp.asarray(np.sum(rows, axis=0), scene.dtype)
    ink = band @ scene @ band.T
    return jnp.asarray(ALIVE, scene.dtype) * jax.nn.sigmoid((ink - MIDDLE) / WIDTH)


# A new wrapper at every call of the model would be compiled anew.
camera = blackbox(photograph, shape=(SIZE, SIZE), vectorized=True)


@functools.cache
def shipped_prior() -> NetworkPrior:
    """The network under `models/weights/digits`."""
    with jax.ensure_compile_time_eval():  # the first call may be amid a traced model
        return shipped.load("digits")


def _digit(camera: Callable, prior: NetworkPrior | None, y: Float[ArrayLike, "8 8"] | None) -> None:
    scene = numpyro.sample("scene", DiffusionPrior(prior or shipped_prior()))
    photo = numpyro.deterministic("photo", camera(scene))
    numpyro.sample("y", dist.Normal(photo, NOISE).to_event(2), obs=y)


def model(y: Float[ArrayLike, "8 8"] | None = None, *, prior: NetworkPrior | None = None) -> None:
    """The model that users write: a diffusion prior, a black box, Gaussian noise.

    Sites: `scene (8, 8)` (ink), deterministic `photo (8, 8)` (tones without noise), observed `y (8, 8)`.
    """
    _digit(camera, prior, y)


def twin(y: Float[ArrayLike, "8 8"] | None = None, *, prior: NetworkPrior | None = None) -> None:
    """`model` with the differentiable camera, through the latent `scene_z (8, 8)` of the probability flow."""
    reparam(_digit, config={"scene": DiffusionReparam()})(photograph_twin, prior, y)


def simulate(seed: int, index: int) -> tuple[Float[np.ndarray, "8 8"], Float[np.ndarray, "8 8"]]:
    """A digit that the prior has not been trained on, and a noisy photograph of it."""
    rng = np.random.default_rng([seed, index])
    truth = digits_prior.held_out_images()[index]
    y = photograph(truth[None])[0]
    return truth, y + NOISE * ALIVE * rng.standard_normal(y.shape)
