"""Posteriors whose modes lie far apart, so that an ensemble which follows one slope finds one of them.

The truths are exact: sums over a fine grid, or over the roots of the simulator.
"""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import ArrayLike, Float, Int
from scipy.optimize import fsolve
from scipy.special import i0e

from validation.target import Target, Truth

NUM_DRAWS = 10_000


def _log_sum_exp(a: Float[np.ndarray, "..."]) -> float:
    top = float(a.max())
    return top + math.log(float(np.exp(a - top).sum(dtype=float)))


# Closure phases of a double star: the position angle is nearly free to turn by half a circle

NUM_STATIONS, PHASE_CONCENTRATION = 5, 100.0
STAR = (0.6, 0.12, 0.8)  # flux ratio, separation, position angle
NEAR = 0.05  # of the true companion, in units of the separation


@functools.cache
def baselines() -> tuple[np.ndarray, np.ndarray]:
    """Vectors between all stations, and the three baselines of every triangle that holds the first station."""
    stations = np.random.default_rng(5).normal(size=(NUM_STATIONS, 2)) * 4
    pairs = [(i, j) for i in range(NUM_STATIONS) for j in range(i + 1, NUM_STATIONS)]
    place = {pair: k for k, pair in enumerate(pairs)}
    triangles = [(0, j, k) for j in range(1, NUM_STATIONS) for k in range(j + 1, NUM_STATIONS)]
    vectors = np.array([stations[i] - stations[j] for i, j in pairs])
    return vectors, np.array([(place[a, b], place[b, c], place[a, c]) for a, b, c in triangles])


def closures(xp, flux, separation, angle):
    """Phases of the triple products of visibilities, shape (triangles,); for arrays of parameters too."""
    vectors, triangles = baselines()
    flux, separation, angle = (xp.asarray(a)[..., None] for a in (flux, separation, angle))
    path = vectors[:, 0] * separation * xp.sin(angle) + vectors[:, 1] * separation * xp.cos(angle)
    visibility = 1 + flux * xp.exp(-2j * math.pi * path)
    one, two, back = (visibility[..., triangles[:, k]] for k in range(3))
    return xp.angle(one * two * xp.conj(back))


def double_star(phases: Float[ArrayLike, " triangles"] | None = None) -> None:
    """A star and its companion, seen through closure phases with errors of a tenth of a radian."""
    flux = numpyro.sample("flux", dist.Uniform(0.05, 1.0))
    separation = numpyro.sample("separation", dist.HalfNormal(0.2))
    angle = numpyro.sample("angle", dist.Uniform(-jnp.pi, jnp.pi))
    predicted = closures(jnp, flux, separation, angle)
    numpyro.sample("phases", dist.VonMises(predicted, PHASE_CONCENTRATION).to_event(1), obs=phases)


@functools.cache
def double_star_data() -> Float[np.ndarray, " triangles"]:
    rng = np.random.default_rng(5)
    rng.normal(size=(NUM_STATIONS, 2))
    y = closures(np, *STAR)
    return np.angle(np.exp(1j * (y + 0.1 * rng.normal(size=len(y)))))


def double_star_mode(draws: Float[np.ndarray, "draws 3"]) -> Int[np.ndarray, " draws"]:
    """0 near the true companion, 1 elsewhere."""
    east = draws[:, 1] * np.sin(draws[:, 2]) - STAR[1] * math.sin(STAR[2])
    north = draws[:, 1] * np.cos(draws[:, 2]) - STAR[1] * math.cos(STAR[2])
    return 1 - ((abs(east) < NEAR) & (abs(north) < NEAR)).astype(int)


def double_star_truth() -> Truth:
    """By a grid in flux ratio, separation and angle."""
    flux = 0.05 + 0.95 * (np.arange(120) + 0.5) / 120
    separation = 0.8 * (np.arange(800) + 0.5) / 800
    angle = np.pi * ((np.arange(720) + 0.5) / 360 - 1)
    y, k = double_star_data(), PHASE_CONCENTRATION
    log_joint = np.empty((len(flux), len(separation), len(angle)), np.float32)
    for i, f in enumerate(flux):
        predicted = closures(np, np.asarray(f), separation[:, None], angle[None])
        log_joint[i] = (k * (np.cos(y - predicted) - 1) - np.log(2 * np.pi * i0e(k))).sum(axis=-1)
    cell = (flux[1] - flux[0]) * (separation[1] - separation[0]) * (angle[1] - angle[0])
    prior = math.log(2 / math.sqrt(2 * math.pi) / 0.2) - 0.5 * (separation / 0.2) ** 2 - math.log(0.95 * 2 * math.pi)
    log_joint += (prior + math.log(cell)).astype(np.float32)[None, :, None]
    log_evidence = _log_sum_exp(log_joint)
    probability = np.exp(log_joint - log_evidence).ravel()
    rng = np.random.default_rng(0)
    chosen = np.unravel_index(
        rng.choice(probability.size, NUM_DRAWS, p=probability / probability.sum()), log_joint.shape
    )
    draws = np.stack([grid[c] for grid, c in zip((flux, separation, angle), chosen, strict=True)], axis=1)
    kept = np.flatnonzero(probability > 1e-12)
    at = np.unravel_index(kept, log_joint.shape)
    places = np.stack([grid[c] for grid, c in zip((flux, separation, angle), at, strict=True)], axis=1)
    masses = np.bincount(double_star_mode(places), probability[kept], minlength=2)
    return Truth(draws, "grid", log_evidence=log_evidence, masses=masses / masses.sum(), simulated_from=np.array(STAR))


# Two equations in two unknowns with four roots, read off ever more exactly

ROOTS_Y = (1.25, 0.45)


def two_equations(x, z, xp=jnp):
    return xp.stack([x**2 + z**2, xp.sin(3 * x) * z], axis=-1)


def roots(noise: float, y: Float[ArrayLike, "2"]) -> None:
    """x, z ~ N(0, 1); x^2 + z^2 and sin(3 x) z, read with this noise."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(two_equations(x, z), noise).to_event(1), obs=y)


@functools.cache
def solutions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The roots, the Jacobian at each and, for small noise, the posterior mass of each."""

    def miss(u):
        return two_equations(u[0], u[1], np) - np.array(ROOTS_Y)

    found: list[np.ndarray] = []
    for start in np.stack(np.meshgrid(np.linspace(-1.3, 1.3, 27), np.linspace(-1.3, 1.3, 27)), -1).reshape(-1, 2):
        root, _, status, _ = fsolve(miss, start, full_output=True)
        if status == 1 and np.abs(miss(root)).max() < 1e-9 and all(np.abs(root - r).max() > 1e-4 for r in found):
            found.append(root)
    at = np.array(sorted(map(tuple, found)))
    x, z = at.T
    jacobian = np.stack([np.stack([2 * x, 2 * z], -1), np.stack([3 * np.cos(3 * x) * z, np.sin(3 * x)], -1)], 1)
    mass = np.exp(-0.5 * (at**2).sum(axis=1)) / np.abs(np.linalg.det(jacobian))
    return at, jacobian, mass / mass.sum()


def roots_mode(draws: Float[np.ndarray, "draws 2"]) -> Int[np.ndarray, " draws"]:
    """The nearest root."""
    return ((draws[:, None] - solutions()[0][None]) ** 2).sum(axis=-1).argmin(axis=1)


def roots_truth(noise: float) -> Truth:
    """Around each root a Gaussian: relative errors are of the order of the noise."""
    at, jacobian, mass = solutions()
    rng = np.random.default_rng(0)
    which = rng.choice(len(at), NUM_DRAWS, p=mass)
    steps = np.linalg.solve(jacobian[which], noise * rng.standard_normal((NUM_DRAWS, 2, 1)))[..., 0]
    prior = -0.5 * (at**2).sum(axis=1) - math.log(2 * math.pi)
    log_evidence = _log_sum_exp(prior - np.log(np.abs(np.linalg.det(jacobian))))
    return Truth(at[which] + steps, "roots and their Jacobians", log_evidence=log_evidence, masses=mass)


# A sinusoid of unknown frequency: a fit for every whole number of periods, one of them right

TIMES, SINE_NOISE = np.linspace(0.0, 40.0, 200), 0.02
SINE = (1.3, 7.0, 0.5)  # amplitude, angular frequency, phase


def sine(amplitude, frequency, phase, xp=jnp):
    return amplitude * xp.sin(frequency * xp.asarray(TIMES) + phase)


def sinusoid(y: Float[ArrayLike, " times"] | None = None) -> None:
    """Amplitude, frequency and phase of a sinusoid from two hundred readings over forty-five periods."""
    amplitude = numpyro.sample("amplitude", dist.LogNormal(0.0, 0.5))
    frequency = numpyro.sample("frequency", dist.Uniform(0.5, 15.0))
    phase = numpyro.sample("phase", dist.Uniform(-jnp.pi, jnp.pi))
    numpyro.sample("y", dist.Normal(sine(amplitude, frequency, phase), SINE_NOISE).to_event(1), obs=y)


def sinusoid_data() -> Float[np.ndarray, " times"]:
    return sine(*SINE, xp=np) + SINE_NOISE * np.random.default_rng(3).standard_normal(len(TIMES))


def sinusoid_mode(draws: Float[np.ndarray, "draws 3"]) -> Int[np.ndarray, " draws"]:
    """0 at the right frequency, 1 elsewhere."""
    return (np.abs(draws[:, 1] - SINE[1]) > 0.05).astype(int)


def sinusoid_truth() -> Truth:
    """A Gaussian around the best fit, whose errors are a few thousandths; importance weights make it exact."""
    from scipy.optimize import least_squares

    y = sinusoid_data()
    fit = least_squares(lambda p: (sine(*p, xp=np) - y) / SINE_NOISE, SINE)
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(1.2 * np.linalg.inv(fit.jac.T @ fit.jac))
    e = rng.standard_normal((40_000, 3))
    p = fit.x + e @ root.T
    predicted = p[:, :1] * np.sin(p[:, 1:2] * TIMES + p[:, 2:])
    log_likelihood = -0.5 * (((y - predicted) / SINE_NOISE) ** 2 + math.log(2 * math.pi * SINE_NOISE**2)).sum(axis=1)
    prior = -0.5 * (np.log(p[:, 0]) / 0.5) ** 2 - np.log(p[:, 0] * 0.5 * math.sqrt(2 * math.pi))
    prior -= math.log(14.5 * 2 * math.pi)
    proposal = -0.5 * (e**2).sum(axis=1) - 1.5 * math.log(2 * math.pi) - np.log(np.diag(root)).sum()
    weights = log_likelihood + prior - proposal
    log_evidence = _log_sum_exp(weights) - math.log(len(weights))
    share = np.exp(weights - weights.max())
    chosen = rng.choice(len(p), NUM_DRAWS, p=share / share.sum())
    return Truth(
        p[chosen],
        "importance sampling",
        log_evidence=log_evidence,
        masses=np.array([1.0, 0.0]),
        simulated_from=np.array(SINE),
    )


def targets() -> list[Target]:
    """``modes/<name>``."""
    found = [
        Target(
            name="modes/double_star",
            suites=("modes",),
            truth=double_star_truth,
            model=double_star,
            kwargs={"phases": double_star_data()},
            sites=("flux", "separation", "angle"),
            modes=double_star_mode,
        ),
        Target(
            name="modes/sinusoid",
            suites=("modes",),
            truth=sinusoid_truth,
            model=sinusoid,
            kwargs={"y": sinusoid_data()},
            sites=("amplitude", "frequency", "phase"),
            modes=sinusoid_mode,
        ),
    ]
    for noise in (1e-2, 1e-3, 1e-4):
        found.append(
            Target(
                name=f"modes/roots_{noise:g}",
                suites=("modes",),
                truth=functools.partial(roots_truth, noise),
                model=functools.partial(roots, noise),
                kwargs={"y": np.array(ROOTS_Y)},
                sites=("x", "z"),
                modes=roots_mode,
            )
        )
    return found
