"""Posteriors whose prior is a trained network: the shipped ones, seen by a linear and by a saturating camera.

In the plane the truth is an integral: the density of the network's flow on a grid, times the likelihood. It needs no
sampler, so that it also judges the No-U-Turn sampler between modes. For digits the truth is that sampler, in the z of
`DiffusionReparam`, whose posterior is the very one that `EnKG` samples.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float
from numpyro import handlers
from scipy.interpolate import RectBivariateSpline

from enkg_ppl import DiffusionPrior, blackbox, load_prior
from enkg_ppl.numpyro import DiffusionReparam
from enkg_ppl.priors import Flow, Prior
from models import toys
from validation.nuts import nuts
from validation.target import Target, Truth, flatten

WEIGHTS = Path(__file__).resolve().parents[2] / "models" / "weights"
NUM_DRAWS = 10_000

# Of the flow's density that NUTS differentiates: within 0.01 nats of the adaptive one at draws of the two moons.
FLOW_STEPS = 24

# Cells of the grid a standard deviation of the toy's narrowest feature: the flow's density is solved on the coarse
# grid, interpolated by a spline, and integrated on the fine one.
COARSE, FINE, MARGIN = 2, 16, 6.0
GRID_TOLERANCE = 1e-5

NUTS_SETTINGS: dict[str, Any] = {"num_warmup": 400, "num_samples": 800, "num_chains": 4, "num_descents": 2}
MAX_R_HAT, MIN_ESS = 1.02, 400


@functools.cache
def prior(name: str) -> Prior:
    """A shipped prior, read once."""
    with jax.ensure_compile_time_eval():  # models ask for it while they are traced
        return load_prior(WEIGHTS / name)


# -- cameras -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Camera:
    """What is seen of x, flat: ``y = B x + noise``, or ``y = tanh(B x) + noise`` where it saturates.

    `y`: the data, simulated from `x`.
    """

    prior: str
    name: str
    B: Float[np.ndarray, "data dim"]
    noise_sd: float
    saturates: bool
    x: Float[np.ndarray, " dim"]
    seed: int

    @property
    def y(self) -> Float[np.ndarray, " data"]:
        noise = self.noise_sd * np.random.default_rng(self.seed).standard_normal(len(self.B))
        return self.on_host(self.x[None])[0] + noise

    def on_host(self, x: Float[np.ndarray, "particles ..."]) -> Float[np.ndarray, "particles data"]:
        seen = np.asarray(x).reshape(len(x), -1) @ self.B.T
        return np.tanh(seen) if self.saturates else seen

    def differentiable(self, x: Float[Array, "..."]) -> Float[Array, " data"]:
        seen = jnp.asarray(self.B, x.dtype) @ x.reshape(-1)
        return jnp.tanh(seen) if self.saturates else seen

    def model(self, simulate: Callable, num_steps: int | None = None) -> Callable:
        """x ~ the shipped prior, y ~ N(simulate(x), noise_sd^2 I); `num_steps` of the flow in the prior's density."""

        def seen(y: Float[ArrayLike, " data"] | None = None) -> None:
            x = jnp.asarray(numpyro.sample("x", DiffusionPrior(prior(self.prior), num_steps=num_steps)))
            numpyro.sample("y", dist.Normal(simulate(x), self.noise_sd).to_event(1), obs=y)

        return seen


def toy_cameras(name: str, x: tuple[float, float], seed: int) -> list[Camera]:
    """One datum along a line, and two that saturate; both leave several places to be."""
    x_true = np.array(x)
    return [
        Camera(name, "linear", np.array([[0.8, 0.6]]), 0.2, False, x_true, seed),
        Camera(name, "saturating", np.array([[2.0, 0.5], [-0.5, 2.0]]), 0.2, True, x_true, seed),
    ]


def digit_cameras() -> list[Camera]:
    """A blur, of which half the pixels are seen; linear, and saturating on bright ones."""
    rows = np.random.default_rng(0).choice(64, 32, replace=False)
    blurred = blur(8)[np.sort(rows)]
    x = np.array([int(character, 17) for character in "".join(DIGIT.split())]) / 16
    return [
        Camera("digits", "linear", blurred, 0.1, False, x, 1),
        Camera("digits", "saturating", 2.0 * blurred, 0.1, True, x, 2),
    ]


def blur(size: int) -> Float[np.ndarray, "pixels pixels"]:
    """Weights 1/4, 1/2, 1/4 along both axes of a square image, dark around it."""
    line = 0.5 * np.eye(size) + 0.25 * (np.eye(size, k=1) + np.eye(size, k=-1))
    return np.kron(line, line)


# A three drawn by hand, in sixteenths of ink.
DIGIT = """
0 0 6 e g c 2 0
0 2 f a 4 e a 0
0 0 2 0 1 f 7 0
0 0 0 5 e c 1 0
0 0 0 6 b f 5 0
0 0 0 0 0 8 d 0
0 0 5 4 5 d b 0
0 0 7 g f b 1 0
"""

CAMERAS: tuple[Camera, ...] = (
    *toy_cameras("two_moons", (0.1, 0.75), 1),
    *toy_cameras("swiss_roll", (0.6, 0.9), 2),
    *toy_cameras("ring", (1.4, 1.4), 3),
    *digit_cameras(),
)


# -- truth by a grid ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Grid:
    """A density in the plane, known everywhere: logarithms on the middles of equal cells."""

    x1: Float[np.ndarray, " first"]
    x2: Float[np.ndarray, " second"]
    log_density: Float[np.ndarray, "first second"]

    @property
    def points(self) -> Float[np.ndarray, "cells 2"]:
        return np.stack(np.meshgrid(self.x1, self.x2, indexing="ij"), axis=-1).reshape(-1, 2)

    @property
    def cell(self) -> Float[np.ndarray, "2"]:
        return np.array([self.x1[1] - self.x1[0], self.x2[1] - self.x2[0]])


@functools.cache
def flow_on_grid(name: str) -> Grid:
    """Density of a toy's network by its probability flow, solved adaptively, on the fine grid."""
    exact = toys.TOYS[name]()
    means, sd = np.asarray(exact.means), math.sqrt(float(exact.variances.min()))
    low, high = means.min(axis=0) - MARGIN * sd, means.max(axis=0) + MARGIN * sd
    coarse = [np.linspace(a, b, math.ceil((b - a) / sd * COARSE) + 1) for a, b in zip(low, high, strict=True)]
    flow = Flow(prior(name), rtol=GRID_TOLERANCE, atol=GRID_TOLERANCE)
    points = jnp.asarray(np.stack(np.meshgrid(*coarse, indexing="ij"), axis=-1).reshape(-1, 2))
    solve = jax.jit(lambda flow, x: jax.lax.map(flow.log_prob, x, batch_size=1024))
    values = np.asarray(solve(flow, points), float).reshape(len(coarse[0]), len(coarse[1]))
    fine = [np.linspace(axis[0], axis[-1], (len(axis) - 1) * FINE // COARSE + 1) for axis in coarse]
    spline = RectBivariateSpline(coarse[0], coarse[1], values)
    return Grid(fine[0], fine[1], spline(fine[0], fine[1]))


def grid_truth(camera: Camera) -> Truth:
    """Prior times likelihood, integrated: the error is that of the flow's solver and of the spline, below 1e-3."""
    grid = flow_on_grid(camera.prior)
    points, cell = grid.points, grid.cell
    misfit = (camera.y - camera.on_host(points)) / camera.noise_sd
    log_likelihood = -0.5 * np.sum(misfit**2 + math.log(2 * math.pi * camera.noise_sd**2), axis=1)
    log_mass = grid.log_density.ravel() + log_likelihood + math.log(cell.prod())
    log_evidence = float(np.logaddexp.reduce(log_mass))
    mass = np.exp(log_mass - log_evidence)
    mean = mass @ points
    rng = np.random.default_rng(0)
    draws = points[rng.choice(len(points), NUM_DRAWS, p=mass / mass.sum())] + cell * (rng.random((NUM_DRAWS, 2)) - 0.5)
    return Truth(
        draws,
        source="exact, by a grid over the density of the network's flow",
        mean=mean,
        sd=np.sqrt(mass @ (points - mean) ** 2),
        log_evidence=log_evidence,
        simulated_from=camera.x,
    )


# -- truth by NUTS -----------------------------------------------------------------------------------------------


def in_z(camera: Camera) -> Callable:
    """The differentiable model as a function of ``z ~ N(0, I)``, with x as a deterministic site."""
    return handlers.reparam(camera.model(camera.differentiable), config={"x": DiffusionReparam()})


def nuts_truth(camera: Camera) -> Truth:
    """Draws through z, in the fixed steps of the flow that `EnKG` takes."""
    result = nuts(jax.random.key(0), in_z(camera), y=camera.y, progress=False, **NUTS_SETTINGS)
    if not (result.worst_r_hat < MAX_R_HAT and result.smallest_ess > MIN_ESS):
        raise RuntimeError(
            f"NUTS did not converge on {camera.prior}/{camera.name}: R-hat {result.worst_r_hat:.3f}, effective sample "
            f"size {result.smallest_ess:.0f}; raise num_warmup and num_samples in NUTS_SETTINGS"
        )
    return Truth(
        flatten(result.flat(), ("x",)),
        source=f"NUTS in z, {result.num_divergences} divergences, effective sample size at least "
        f"{result.smallest_ess:.0f}, R-hat at most {result.worst_r_hat:.3f}",
        simulated_from=camera.x,
    )


def targets() -> list[Target]:
    """``network_prior/<prior>_<camera>``, of those priors that are in `WEIGHTS`."""
    return [_target(camera) for camera in CAMERAS if (WEIGHTS / camera.prior).exists()]


def _target(camera: Camera) -> Target:
    simulate = camera.differentiable
    if camera.saturates:
        simulate = blackbox(camera.on_host, (len(camera.B),), vectorized=True, name="camera")
    planar = camera.prior in toys.TOYS
    twin = camera.model(camera.differentiable, FLOW_STEPS) if planar else in_z(camera)
    return Target(
        name=f"network_prior/{camera.prior}_{camera.name}",
        suites=("network_prior",),
        truth=functools.partial(grid_truth if planar else nuts_truth, camera),
        model=camera.model(simulate),
        kwargs={"y": camera.y},
        sites=("x",),
        twin=twin,
        files=(WEIGHTS / camera.prior / "prior.json",),  # with a sum of the weights in it
    )
