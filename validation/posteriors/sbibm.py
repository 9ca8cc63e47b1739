"""Six tasks of the simulation-based inference benchmark, five observations each.

Reference draws are the benchmark's; means, standard deviations and evidences are closed forms where there are some.

Source: Lueckmann, Boelts, Greenberg, Goncalves & Macke, "Benchmarking Simulation-Based Inference", arXiv 2101.04653,
appendix T.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Int
from numpyro.distributions import constraints
from scipy.special import log_ndtr
from scipy.stats import truncnorm

from validation.target import Target, Truth

FOLDER = "sbibm"
NUM_OBSERVATIONS = 5
SITES = ("theta",)

NOISE_SD = PRIOR_SD = math.sqrt(0.1)


def gaussian_linear(x: Float[ArrayLike, "10"] | None = None) -> None:
    """theta ~ N(0, 0.1 I), x ~ N(theta, 0.1 I); 0.1 is a variance."""
    theta = numpyro.sample("theta", dist.Normal(0.0, PRIOR_SD).expand([10]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, NOISE_SD).to_event(1), obs=x)


def gaussian_linear_uniform(x: Float[ArrayLike, "10"] | None = None) -> None:
    """theta ~ U(-1, 1) in each dimension, x ~ N(theta, 0.1 I)."""
    theta = numpyro.sample("theta", dist.Uniform(-1.0, 1.0).expand([10]).to_event(1))
    numpyro.sample("x", dist.Normal(theta, NOISE_SD).to_event(1), obs=x)


def smoothness_precision() -> Float[np.ndarray, "10 10"]:
    """Prior precision of the Bernoulli model: the offset, then nine weights whose second differences are small."""
    difference = np.eye(9) - np.eye(9, k=-1)
    F = difference @ difference + np.diag(np.sqrt(np.arange(9) / 9))
    precision = np.zeros((10, 10))
    precision[0, 0] = 0.5
    precision[1:, 1:] = F.T @ F
    return precision


def bernoulli_glm(design: Float[ArrayLike, "time 10"], y: Int[ArrayLike, " time"] | None = None) -> None:
    """A neuron's spikes: y_t ~ Bernoulli(sigmoid(design theta)), theta ~ N(0, B^-1) with `smoothness_precision` B."""
    precision = jnp.asarray(smoothness_precision())
    theta = jnp.asarray(numpyro.sample("theta", dist.MultivariateNormal(jnp.zeros(10), precision_matrix=precision)))
    numpyro.sample("y", dist.Bernoulli(logits=jnp.asarray(design) @ theta).to_event(1), obs=y)


# Prey and predators at the start; ten counts, 2.1 time units apart.
START = (30.0, 1.0)
INTERVAL, NUM_TIMES = 2.1, 10
# Steps of the solver in an interval: ln X and ln Y are right to 1e-5 over the posteriors, to 1e-3 over the prior.
NUM_STEPS = 64
# Of a population; keeps a wild particle finite without being felt by any other.
MAX_LOG_POPULATION = 60.0


def predator_prey(theta: Float[Array, "4"]) -> Float[Array, "20"]:
    """Prey at times 0, 2.1, ..., 18.9, then predators; theta = alpha, beta, gamma, delta.

    X' = alpha X - beta X Y, Y' = -gamma Y + delta X Y, by classical Runge-Kutta steps of equal length in ln X, ln Y,
    where strong predation is not stiff.
    """
    alpha, beta, gamma, delta = theta
    step = INTERVAL / NUM_STEPS

    def field(state: Float[Array, "2"]) -> Float[Array, "2"]:
        prey, predators = jnp.exp(jnp.minimum(state, MAX_LOG_POPULATION))
        return jnp.stack([alpha - beta * predators, delta * prey - gamma])

    def advance(_: int, state: Float[Array, "2"]) -> Float[Array, "2"]:
        k1 = field(state)
        k2 = field(state + step / 2 * k1)
        k3 = field(state + step / 2 * k2)
        k4 = field(state + step * k3)
        return state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def interval(state: Float[Array, "2"], _: None) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        return jax.lax.fori_loop(0, NUM_STEPS, advance, state), state

    _, states = jax.lax.scan(interval, jnp.log(jnp.asarray(START)), None, length=NUM_TIMES)
    return jnp.exp(jnp.minimum(states, MAX_LOG_POPULATION)).T.ravel()


def lotka_volterra(x: Float[ArrayLike, "20"] | None = None) -> None:
    """Rates of a predator and its prey from ten noisy counts of each."""
    theta = numpyro.sample("theta", dist.LogNormal(jnp.array([-0.125, -3.0, -0.125, -3.0]), 0.5).to_event(1))
    counts = jnp.clip(predator_prey(jnp.asarray(theta)), 1e-10, 1e4)
    numpyro.sample("x", dist.LogNormal(jnp.log(counts), 0.1).to_event(1), obs=x)


# Added to the variance of both coordinates of a point.
SLCP_JITTER = 1e-6


def slcp(x: Float[ArrayLike, "4 2"] | None = None) -> None:
    """A simple likelihood, a complex posterior: four points in the plane tell about their mean and covariance.

    theta ~ U(-3, 3) in five dimensions: mean (t1, t2), standard deviations t3^2 and t4^2, correlation tanh(t5).
    """
    theta = jnp.asarray(numpyro.sample("theta", dist.Uniform(-3.0, 3.0).expand([5]).to_event(1)))
    s1, s2, r = theta[2] ** 2, theta[3] ** 2, jnp.tanh(theta[4])
    # Cholesky factor of [[s1^2, r s1 s2], [r s1 s2, s2^2]] + jitter I, arranged so that nothing cancels.
    variance = s1**2 + SLCP_JITTER
    conditional = SLCP_JITTER + s2**2 * (s1**2 / jnp.cosh(theta[4]) ** 2 + SLCP_JITTER) / variance
    rows = [jnp.stack([jnp.sqrt(variance), 0.0]), jnp.stack([r * s1 * s2 / jnp.sqrt(variance), jnp.sqrt(conditional)])]
    mean, root = jnp.broadcast_to(theta[:2], (4, 2)), jnp.broadcast_to(jnp.stack(rows), (4, 2, 2))
    points = dist.MultivariateNormal(mean, scale_tril=root).to_event(1)
    numpyro.sample("x", points, obs=x)


def slcp_mode(draws: Float[np.ndarray, "draws 5"]) -> Int[np.ndarray, " draws"]:
    """Only the squares of t3 and t4 matter: one mode for each pair of signs, of equal mass."""
    return 2 * (draws[:, 2] > 0) + (draws[:, 3] > 0)


class Crescent(dist.Distribution):
    """A half circle of radius 0.1 and width 0.01, open to the left, its centre moved by theta.

    With p = (x1 + |t1 + t2| / sqrt 2 - 0.25, x2 - (t2 - t1) / sqrt 2): |p| ~ N(0.1, 0.01^2), and the angle is uniform
    over the half plane p1 > 0.
    """

    RADIUS, WIDTH, OFFSET = 0.1, 0.01, 0.25
    arg_constraints = {"theta": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, theta: Float[Array, "*batch 2"], *, validate_args: bool | None = None):
        self.theta = theta
        super().__init__(batch_shape=jnp.shape(theta)[:-1], event_shape=(2,), validate_args=validate_args)

    @property
    def centre(self) -> Float[Array, "*batch 2"]:
        """What p is counted from."""
        t1, t2 = self.theta[..., 0], self.theta[..., 1]
        return jnp.stack([self.OFFSET - jnp.abs(t1 + t2) / math.sqrt(2), (t2 - t1) / math.sqrt(2)], axis=-1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape 2"]:
        key_angle, key_radius = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        angle = jax.random.uniform(key_angle, shape, minval=-math.pi / 2, maxval=math.pi / 2)
        radius = self.RADIUS + self.WIDTH * jax.random.normal(key_radius, shape)
        arc = radius[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return arc + jnp.broadcast_to(self.centre, arc.shape)

    def log_prob(self, value: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
        p = value - jnp.broadcast_to(self.centre, jnp.shape(value))
        inside = p[..., 0] > 0
        radius = jnp.sqrt(jnp.where(inside, jnp.sum(p**2, axis=-1), 1.0))
        log_prob = dist.Normal(self.RADIUS, self.WIDTH).log_prob(radius) - jnp.log(math.pi * radius)
        return jnp.where(inside, log_prob, -jnp.inf)

    @property
    def mean(self) -> Float[Array, "*batch 2"]:
        arc = jnp.array([2 * self.RADIUS / math.pi, 0.0])
        return self.centre + jnp.broadcast_to(arc, jnp.shape(self.centre))

    @property
    def variance(self) -> Float[Array, "*batch 2"]:
        square = (self.RADIUS**2 + self.WIDTH**2) / 2
        variance = jnp.array([square - (2 * self.RADIUS / math.pi) ** 2, square])
        return jnp.broadcast_to(variance, jnp.shape(self.centre))


def two_moons(x: Float[ArrayLike, "2"] | None = None) -> None:
    """theta ~ U(-1, 1) in each dimension, x from a `Crescent` that only knows |t1 + t2|: two moons."""
    theta = numpyro.sample("theta", dist.Uniform(-1.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("x", Crescent(jnp.asarray(theta)), obs=x)


def two_moons_mode(draws: Float[np.ndarray, "draws 2"]) -> Int[np.ndarray, " draws"]:
    """One moon on either side of t1 + t2 = 0."""
    return (draws.sum(axis=1) > 0).astype(int)


# What is known in closed form

Known = Callable[[Float[np.ndarray, " data"]], dict]


def gaussian_linear_known(x: Float[np.ndarray, "10"]) -> dict:
    """Conjugate: half way to the data, half the variance."""
    evidence = -0.5 * np.sum(x**2 / 0.2 + math.log(2 * math.pi * 0.2))
    return {"mean": x / 2, "sd": np.full(10, math.sqrt(0.05)), "log_evidence": float(evidence)}


def gaussian_linear_uniform_known(x: Float[np.ndarray, "10"]) -> dict:
    """A truncated Gaussian in each dimension."""
    low, high = (-1 - x) / NOISE_SD, (1 - x) / NOISE_SD
    posterior = truncnorm(low, high, loc=x, scale=NOISE_SD)
    # ln(Phi(high) - Phi(low)), taken on the side where both are small
    flip = low > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    mass = log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))
    return {"mean": posterior.mean(), "sd": posterior.std(), "log_evidence": float(np.sum(mass - math.log(2)))}


def two_moons_known(x: Float[np.ndarray, "2"]) -> dict:
    """Each moon has mass 1 under the likelihood where it lies inside the square, and the prior's density is 1/4."""
    angle = (np.arange(400) + 0.5) / 400 * math.pi - math.pi / 2
    level = np.linspace(-6, 6, 201)
    weight = np.exp(-(level**2) / 2)[:, None] * np.ones(400)
    radius = Crescent.RADIUS + Crescent.WIDTH * level[:, None]
    along = radius * np.cos(angle) + Crescent.OFFSET - x[0]  # |t1 + t2| / sqrt 2
    across = x[1] - radius * np.sin(angle)  # (t2 - t1) / sqrt 2
    inside = (along >= 0) & (np.abs(along) + np.abs(across) <= math.sqrt(2))
    return {"log_evidence": math.log(0.5 * np.sum(weight * inside) / np.sum(weight)), "masses": np.full(2, 0.5)}


def slcp_known(x: Float[np.ndarray, "8"]) -> dict:
    return {"masses": np.full(4, 0.25)}


def nothing_known(x: Float[np.ndarray, " data"]) -> dict:
    return {}


def targets(folder: Path) -> list[Target]:
    """The tasks whose file is in `folder`: ``sbibm/<task>/<1..5>``."""
    found = []
    for task, (model, known, modes, shape) in TASKS.items():
        path = folder / f"{task}.npz"
        if not path.exists():
            continue
        with np.load(path, allow_pickle=False) as file:
            data = np.asarray(file["observations_raw" if task == "bernoulli_glm" else "observations"], float)
            args = (np.asarray(file["design_matrix"], float),) if task == "bernoulli_glm" else ()
        name = "y" if task == "bernoulli_glm" else "x"
        for i in range(NUM_OBSERVATIONS):
            found.append(
                Target(
                    name=f"sbibm/{task}/{i + 1}",
                    suites=("sbibm", f"sbibm/{task}"),
                    truth=functools.partial(_truth, path, i, known, data[i]),
                    model=model,
                    args=args,
                    kwargs={name: data[i].reshape(shape)},
                    sites=SITES,
                    modes=modes,
                )
            )
    return found


def _truth(path: Path, index: int, known: Known, x: Float[np.ndarray, " data"]) -> Truth:
    with np.load(path, allow_pickle=False) as file:
        draws = np.asarray(file["reference_samples"][index], float)
    return Truth(draws, source="sbibm reference posterior", **known(x))


# Model, closed forms, modes and the shape of the data.
TASKS: dict[str, tuple] = {
    "gaussian_linear": (gaussian_linear, gaussian_linear_known, None, (10,)),
    "gaussian_linear_uniform": (gaussian_linear_uniform, gaussian_linear_uniform_known, None, (10,)),
    "bernoulli_glm": (bernoulli_glm, nothing_known, None, (100,)),
    "lotka_volterra": (lotka_volterra, nothing_known, None, (20,)),
    "two_moons": (two_moons, two_moons_known, two_moons_mode, (2,)),
    "slcp": (slcp, slcp_known, slcp_mode, (4, 2)),
}
