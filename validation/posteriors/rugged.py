"""Posteriors with several modes, and simulators without a useful gradient.

Where unknowns can be taken one at a time the truth is exact; else it is sequential Monte Carlo with many particles and
many random-walk moves at every temperature.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Int
from scipy.special import log_ndtr
from scipy.stats import truncnorm

from validation.target import Target, Truth

NUM_DRAWS = 10_000

# |theta|: a mode in every quadrant

MAGNITUDE_NOISE = 0.2
MAGNITUDE_Y = np.array([0.8, 1.3, 0.3, 1.9])


def magnitudes(y: Float[ArrayLike, " dim"]) -> None:
    """theta_i ~ N(0, 1), y_i ~ N(|theta_i|, 0.2): signs are free, 2^dim modes of equal mass."""
    y = jnp.asarray(y)
    theta = jnp.asarray(numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1)))
    numpyro.sample("y", dist.Normal(jnp.abs(theta), MAGNITUDE_NOISE).to_event(1), obs=y)


def magnitudes_mode(draws: Float[np.ndarray, "draws dim"]) -> Int[np.ndarray, " draws"]:
    """The orthant."""
    return (draws > 0) @ (1 << np.arange(draws.shape[1]))


def magnitudes_truth(y: Float[np.ndarray, " dim"]) -> Truth:
    """|theta_i| is a truncated Gaussian, its sign a fair coin."""
    rng = np.random.default_rng(0)
    variance = 1 + MAGNITUDE_NOISE**2
    centre, sd = y / variance, MAGNITUDE_NOISE / math.sqrt(variance)
    posterior = truncnorm(-centre / sd, np.inf, loc=centre, scale=sd)
    size = posterior.rvs((NUM_DRAWS, len(y)), random_state=rng)
    evidence = math.log(2) - 0.5 * (y**2 / variance + math.log(2 * math.pi * variance)) + log_ndtr(centre / sd)
    return Truth(
        size * rng.choice([-1.0, 1.0], size.shape),
        source="closed form",
        mean=np.zeros(len(y)),
        sd=np.sqrt(posterior.var() + posterior.mean() ** 2),
        log_evidence=float(evidence.sum()),
        masses=np.full(1 << len(y), 1 / (1 << len(y))),
    )


# A meter that shows whole steps: gradient zero almost everywhere

STEP, METER_NOISE = 0.8, 0.25
METER_TRUE = np.array([0.9, -0.5, 0.2])


def rotation() -> Float[np.ndarray, "3 3"]:
    """Which combination of the unknowns each of the three meters looks at."""
    return np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0]


def stepped_meter(y: Float[ArrayLike, "3"] | None = None) -> None:
    """theta ~ N(0, I); three meters show R theta in whole steps of 0.8, read with noise 0.25."""
    theta = jnp.asarray(numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
    shown = STEP * jnp.round(jnp.asarray(rotation()) @ theta / STEP)
    numpyro.sample("y", dist.Normal(shown, METER_NOISE).to_event(1), obs=y)


def stepped_meter_data() -> Float[np.ndarray, "3"]:
    return STEP * np.round(rotation() @ METER_TRUE / STEP) + np.array([0.15, -0.3, 0.4])


def stepped_meter_truth() -> Truth:
    """u = R theta has independent coordinates: a step by its mass, within it a truncated Gaussian."""
    rng = np.random.default_rng(0)
    steps = np.arange(-12, 13) * STEP
    low, high = steps - STEP / 2, steps + STEP / 2
    inside = truncnorm(low, high)
    # On the side of the lower tail, where differences of ndtr keep their digits.
    below, above = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    log_prior = log_ndtr(above) + np.log1p(-np.exp(log_ndtr(below) - log_ndtr(above)))
    misfit = ((stepped_meter_data()[:, None] - steps) / METER_NOISE) ** 2
    log_mass = log_prior - 0.5 * (misfit + math.log(2 * math.pi * METER_NOISE**2))
    log_evidence = np.logaddexp.reduce(log_mass, axis=1)
    mass = np.exp(log_mass - log_evidence[:, None])
    mean = mass @ inside.mean()
    variance = mass @ (inside.var() + inside.mean() ** 2) - mean**2
    cell = np.stack([rng.choice(len(steps), NUM_DRAWS, p=row) for row in mass], axis=1)
    u = truncnorm.rvs(low[cell], high[cell], random_state=rng)
    R = rotation()
    return Truth(
        u @ R,
        source="closed form",
        mean=mean @ R,
        sd=np.sqrt(variance @ R**2),
        log_evidence=float(log_evidence.sum()),
        simulated_from=METER_TRUE,
    )


# Two transmitters, which is which nobody knows

SENSORS = np.array([[-1.5, -1.5], [-1.5, 1.5], [1.5, -1.5], [1.5, 1.5], [0.0, 0.0]])
TRANSMITTERS = np.array([[-0.6, 0.9], [1.0, -0.3]])
SIGNAL_NOISE = 0.1


def signal(positions: Float[Array, "2 2"]) -> Float[Array, "5"]:
    """Logarithm of the power that each sensor receives from both transmitters; softened near a sensor."""
    square = jnp.sum((positions[None, :, :] - jnp.asarray(SENSORS)[:, None, :]) ** 2, axis=-1)
    return jnp.log(jnp.sum(1 / (0.1 + square), axis=1))


def transmitters(y: Float[ArrayLike, "5"] | None = None) -> None:
    """Where two transmitters are, by the power at five sensors: two modes at least, by exchange."""
    positions = jnp.asarray(numpyro.sample("positions", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2)))
    numpyro.sample("y", dist.Normal(signal(positions), SIGNAL_NOISE).to_event(1), obs=y)


def transmitters_mode(draws: Float[np.ndarray, "draws 4"]) -> Int[np.ndarray, " draws"]:
    """Which transmitter is farther east; the exchange makes both equally likely."""
    return (draws[:, 0] > draws[:, 2]).astype(int)


def transmitters_data() -> Float[np.ndarray, "5"]:
    noise = SIGNAL_NOISE * np.random.default_rng(5).standard_normal(len(SENSORS))
    return np.asarray(signal(jnp.asarray(TRANSMITTERS)), float) + noise


# A thermostat: the simulator branches at every step

ROOM_STEPS, ROOM_MINUTES, ROOM_START, OUTSIDE = 240, 1.0, 15.0, 5.0
BAND, ROOM_NOISE = 1.0, 0.3
ROOM_TRUE = np.array([0.45, 0.02, 20.0])


def temperatures(power: Float[Array, ""], loss: Float[Array, ""], setting: Float[Array, ""]) -> Float[Array, "12"]:
    """Degrees in a room every twenty minutes, for four hours.

    The heater adds `power` a minute while it is on; the room loses the share `loss` of its excess over the outside a
    minute. The heater goes on below `setting` - 1 and off above `setting` + 1: the path jumps with the parameters.
    """

    def advance(state: tuple, _: None) -> tuple[tuple, Array]:
        room, on = state
        on = jnp.where(room < setting - BAND, 1.0, jnp.where(room > setting + BAND, 0.0, on))
        room = room + ROOM_MINUTES * (power * on - loss * (room - OUTSIDE))
        return (room, on), room

    start = (jnp.asarray(ROOM_START, float), jnp.asarray(0.0))
    _, path = jax.lax.scan(advance, start, None, length=ROOM_STEPS)
    return path[19::20]


def thermostat(y: Float[ArrayLike, "12"] | None = None) -> None:
    """A heater's power, a room's loss and the thermostat's setting, from twelve temperatures."""
    power = numpyro.sample("power", dist.LogNormal(math.log(0.4), 0.3))
    loss = numpyro.sample("loss", dist.LogNormal(math.log(0.02), 0.4))
    setting = numpyro.sample("setting", dist.Normal(20.0, 1.5))
    path = temperatures(jnp.asarray(power), jnp.asarray(loss), jnp.asarray(setting))
    numpyro.sample("y", dist.Normal(path, ROOM_NOISE).to_event(1), obs=y)


def thermostat_data() -> Float[np.ndarray, "12"]:
    path = np.asarray(temperatures(*jnp.asarray(ROOM_TRUE)), float)
    return path + ROOM_NOISE * np.random.default_rng(6).standard_normal(len(path))


def targets() -> list[Target]:
    """``rugged/<name>``."""
    return [
        *(_magnitudes(MAGNITUDE_Y[:dim]) for dim in (2, 4)),
        Target(
            name="rugged/stepped_meter",
            suites=("rugged",),
            truth=stepped_meter_truth,
            model=stepped_meter,
            kwargs={"y": stepped_meter_data()},
            sites=("theta",),
            differentiable=False,
        ),
        _by_smc(
            transmitters,
            transmitters_data(),
            ("positions",),
            TRANSMITTERS.ravel(),
            modes=transmitters_mode,
            masses=np.full(2, 0.5),
        ),
        _by_smc(thermostat, thermostat_data(), ("power", "loss", "setting"), ROOM_TRUE, differentiable=False),
    ]


def _magnitudes(y: Float[np.ndarray, " dim"]) -> Target:
    return Target(
        name=f"rugged/magnitudes_{len(y)}",
        suites=("rugged", "quick") if len(y) == 2 else ("rugged",),
        truth=functools.partial(magnitudes_truth, y),
        model=magnitudes,
        kwargs={"y": y},
        sites=("theta",),
        modes=magnitudes_mode,
    )


def _by_smc(
    model: Callable,
    y: Float[np.ndarray, " data"],
    sites: tuple[str, ...],
    simulated_from: Float[np.ndarray, " dim"],
    masses: Float[np.ndarray, " modes"] | None = None,
    **options,
) -> Target:
    judged = Target(
        name=f"rugged/{model.__name__}",
        suites=("rugged",),
        truth=lambda: _smc_truth(judged, simulated_from, masses),
        model=model,
        kwargs={"y": y},
        sites=sites,
        **options,
    )
    return judged


def _smc_truth(
    target: Target, simulated_from: Float[np.ndarray, " dim"], masses: Float[np.ndarray, " modes"] | None
) -> Truth:
    from validation.methods import smc  # that imports every method

    num_steps = 100
    budget = NUM_DRAWS * (smc.EXPECTED_TEMPERATURES + 1) * (num_steps + smc.EXTRA)
    result = smc.run(target, 0, NUM_DRAWS, False, budget=budget)
    return Truth(
        result.draws,
        source=f"tempered SMC, {NUM_DRAWS:,} particles, {num_steps} random-walk moves at each temperature",
        log_evidence=result.log_evidence,
        masses=masses,
        simulated_from=simulated_from,
    )
