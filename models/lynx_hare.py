"""Hare and lynx in Canada, 1900-1920: a predator and its prey through a simulator with no gradient.

The Hudson's Bay Company counted the pelts that trappers brought in. Hares u and lynxes v follow Lotka and
Volterra's equations, u' = (alpha - beta v) u and v' = (-gamma + delta u) v, and the counts scatter around
them by a LogNormal factor. The priors are those of the Stan case study. The simulator is plain SciPy; `twin`
is the same model written for automatic differentiation, so that a gradient-based sampler can tell what the
posterior is.

    python -m validation.demos.lynx_hare    EnKG on the black box beside NUTS on the twin

References:
    B. Carpenter, "Predator-Prey Population Dynamics: the Lotka-Volterra model in Stan" (2018).
    C. Elton and M. Nicholson, "The Ten-Year Cycle in Numbers of the Lynx in Canada", Journal of Animal
    Ecology 11 (1942) 215-244: the pelts, as Carpenter tabulates them.
    `hudson_lynx_hare-lotka_volterra` of posteriordb (github.com/stan-dev/posteriordb): reference draws.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float
from scipy.integrate import solve_ivp
from scipy.special import ndtri

from enkg_ppl import blackbox

Draws = Mapping[str, Float[np.ndarray, "draws ..."]]

# Pelts in thousands: hare, lynx.
PELTS: Float[np.ndarray, "21 2"] = np.array(
    [
        [30.0, 4.0],
        [47.2, 6.1],
        [70.2, 9.8],
        [77.4, 35.2],
        [36.3, 59.4],
        [20.6, 41.7],
        [18.1, 19.0],
        [21.4, 13.0],
        [22.0, 8.3],
        [25.4, 9.1],
        [27.1, 7.4],
        [40.3, 8.0],
        [57.0, 12.3],
        [76.6, 19.5],
        [52.3, 45.7],
        [19.5, 51.1],
        [11.2, 29.7],
        [7.6, 15.8],
        [14.6, 9.7],
        [16.2, 10.1],
        [24.7, 8.6],
    ]
)
YEARS: Float[np.ndarray, "21"] = np.arange(1900.0, 1921.0)

# Where posteriordb calls the parameters otherwise.
POSTERIORDB_NAMES = {
    "theta[1]": "alpha",
    "theta[2]": "beta",
    "theta[3]": "gamma",
    "theta[4]": "delta",
    "z_init[1]": "z_init[0]",
    "z_init[2]": "z_init[1]",
    "sigma[1]": "sigma[0]",
    "sigma[2]": "sigma[1]",
}
LATENT_SITES = ("alpha", "beta", "gamma", "delta", "z_init", "sigma")

# Every rate saturates at 100 a year, which no prior draw in 10^5 reaches; without it a wandering particle
# could make the solver take any number of steps.
MAX_RATE = 100.0
# Populations stay within float32's range; ln of the smallest trough of a prior draw is about -200.
MAX_LOG_POPULATION = 80.0
# Above this rate (per year) a particle is solved apart, loosely: it has no likelihood to speak of.
WILD_RATE = 80.0
TOLERANCE, WILD_TOLERANCE = 2e-7, 1e-2
TWIN_TOLERANCE = 1e-6


def simulate(
    theta: Float[np.ndarray, "particles 4"],
    z_init: Float[np.ndarray, "particles 2"],
    times: Float[np.ndarray, "*particles times"] | None = None,
) -> Float[np.ndarray, "particles times 2"]:
    """Solve Lotka and Volterra's equations for a whole ensemble: the black box, plain SciPy on the host.

    A result is accurate to 1e-4 relative. A wild particle is solved apart, so that it cannot slow the others
    down, and to a few per cent only. A NaN parameter gives a NaN trajectory, all else is finite.

    Args:
        theta: alpha, beta, gamma, delta of each particle; alpha and gamma per year, beta and delta per year
            and thousand animals.
        z_init: hares and lynxes at time 0, thousands.
        times: years after the start, increasing, above 0; 1, 2, ..., 20 by default. Of a leading particle
            axis the first row counts, since the ensemble shares the times.

    Returns:
        Hares and lynxes at `times`, thousands.
    """
    theta, z_init = np.asarray(theta, float), np.asarray(z_init, float)
    grid = np.atleast_2d(YEARS[1:] - YEARS[0] if times is None else np.asarray(times, float))[0]

    known = ~(np.isnan(theta).any(axis=1) | np.isnan(z_init).any(axis=1))
    wild = known & (peak_rate(theta, z_init) > WILD_RATE)
    populations = np.full((len(theta), len(grid), 2), np.nan)
    for group, method, tolerance in (
        (known & ~wild, "DOP853", TOLERANCE),
        (wild, "RK45", WILD_TOLERANCE),
    ):
        if group.any():
            populations[group] = _solve(theta[group], z_init[group], grid, method, tolerance)
    return populations


def simulate_one(
    theta: Float[ArrayLike, "4"],
    z_init: Float[ArrayLike, "2"],
    times: Float[np.ndarray, " times"] | None = None,
) -> Float[np.ndarray, "times 2"]:
    """`simulate` for a single particle; arguments and units as there."""
    return simulate(np.asarray(theta)[None], np.asarray(z_init)[None], times)[0]


def peak_rate(
    theta: Float[np.ndarray, "particles 4"], z_init: Float[np.ndarray, "particles 2"]
) -> Float[np.ndarray, " particles"]:
    """About the fastest rate that a particle's orbit can reach, per year.

    With a = delta u and b = beta v the flow conserves
    H = gamma h(a / gamma) + alpha h(b / alpha), h(r) = r - 1 - ln r, so neither a nor b can exceed H by much.
    """
    (alpha, gamma), log_rates = _scaled(theta, z_init)
    prey, predator = np.exp(log_rates)
    energy = (prey - gamma - gamma * np.log(prey / gamma)) + (predator - alpha - alpha * np.log(predator / alpha))
    return energy + alpha + gamma


def _scaled(
    theta: Float[np.ndarray, "particles 4"], z_init: Float[np.ndarray, "particles 2"]
) -> tuple[Float[np.ndarray, "2 particles"], Float[np.ndarray, "2 particles"]]:
    """(alpha, gamma) and (ln delta u, ln beta v) at time 0, clipped to where nothing overflows."""
    alpha, beta, gamma, delta = _positive(theta).T
    hare, lynx = _positive(z_init).T
    return np.clip([alpha, gamma], 1e-30, MAX_RATE), np.log([delta * hare, beta * lynx])


def _positive(value: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.clip(value, math.exp(-MAX_LOG_POPULATION), math.exp(MAX_LOG_POPULATION))


def _solve(
    theta: Float[np.ndarray, "particles 4"],
    z_init: Float[np.ndarray, "particles 2"],
    times: Float[np.ndarray, " times"],
    method: str,
    tolerance: float,
) -> Float[np.ndarray, "particles times 2"]:
    """All particles in one `solve_ivp` call, to `tolerance` relative for each."""
    # In x = ln(delta u), y = ln(beta v) the equations read x' = alpha - e^y, y' = e^x - gamma: populations
    # stay positive, an absolute error in x is a relative one in u, and crashes are straight lines.
    (alpha, gamma), start = _scaled(theta, z_init)
    size = len(alpha)

    def field(_: float, state: Float[np.ndarray, " 2*particles"]) -> Float[np.ndarray, " 2*particles"]:
        rates = np.exp(np.minimum(state, math.log(MAX_RATE)))
        slope = np.empty_like(state)
        np.subtract(alpha, rates[size:], out=slope[:size])
        np.subtract(rates[:size], gamma, out=slope[size:])
        return slope

    # solve_ivp bounds the root mean square of the error over all 2 J numbers. A single bad particle among
    # good ones shows up there divided by sqrt(2 J): asking for that much less bounds each particle.
    solution = solve_ivp(
        field,
        (0.0, times[-1]),
        start.ravel(),
        method=method,
        t_eval=times,
        atol=tolerance / math.sqrt(2 * size),
        rtol=1e-12,
    )
    if not solution.success:
        raise RuntimeError(f"solve_ivp stopped at t = {solution.t[-1:]}: {solution.message}")
    log_scaled = solution.y.reshape(2, size, len(times))
    # Back from rates to animals: u = e^x / delta, v = e^y / beta.
    log_scale = np.log(_positive(theta[:, [3, 1]])).T[:, :, None]
    log_population = np.clip(log_scaled - log_scale, -MAX_LOG_POPULATION, MAX_LOG_POPULATION)
    return np.exp(np.moveaxis(log_population, 0, -1))


def solve_twin(
    theta: Float[Array, "4"], z_init: Float[Array, "2"], times: Float[Array, " times"]
) -> Float[Array, "times 2"]:
    """The differentiable twin of `simulate_one`, by diffrax; same units, same limits on wild parameters.

    First derivatives only: they are forward sensitivities, because six numbers go in and forty come out.
    """

    def log_population(inputs: Float[Array, "6"]) -> tuple[Float[Array, "times 2"], Float[Array, "times 2"]]:
        alpha, beta, gamma, delta = inputs[:4]
        coupling = jnp.stack([delta, beta])

        def field(_: Any, state: Float[Array, "2"], __: Any) -> Float[Array, "2"]:
            prey, predator = jnp.exp(jnp.minimum(state, math.log(MAX_RATE)))
            return jnp.stack([alpha - predator, prey - gamma])

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri8(),
            t0=0.0,
            t1=times[-1],
            dt0=None,
            y0=jnp.log(coupling * inputs[4:]),
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(rtol=1e-12, atol=TWIN_TOLERANCE),
            adjoint=diffrax.ForwardMode(),
            # A sampler may try absurd parameters: an infinite population (hence a rejection), no exception.
            max_steps=1024,
            throw=False,
        )
        value = jnp.clip(jnp.asarray(solution.ys) - jnp.log(coupling)[None, :], -MAX_LOG_POPULATION, MAX_LOG_POPULATION)
        return value, value

    # The tangent plane at the inputs has the right value and gradient, and reverse mode passes through it: a
    # gradient in less than half the time of the solver's own adjoint, compiled in a third of the time.
    inputs = jnp.concatenate([theta, z_init])
    here = jax.lax.stop_gradient(inputs)
    slope, value = jax.lax.stop_gradient(jax.jacfwd(log_population, has_aux=True)(here))
    return jnp.exp(value + slope @ (inputs - here))


Solver = Callable[..., Float[Array, "times 2"]]


def _lynx_hare(solve: Solver, years: Float[np.ndarray, " years"], y: Float[ArrayLike, "years 2"] | None) -> None:
    def positive(mean: float, sd: float) -> dist.Distribution:
        return dist.TruncatedNormal(mean, sd, low=0.0)

    alpha = numpyro.sample("alpha", positive(1.0, 0.5))
    beta = numpyro.sample("beta", positive(0.05, 0.05))
    gamma = numpyro.sample("gamma", positive(1.0, 0.5))
    delta = numpyro.sample("delta", positive(0.05, 0.05))
    z_init = jnp.asarray(numpyro.sample("z_init", dist.LogNormal(math.log(10.0), 1.0).expand([2]).to_event(1)))
    sigma = jnp.asarray(numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1)))

    times = jnp.asarray(years)[1:] - years[0]
    later = solve(jnp.stack([alpha, beta, gamma, delta]), z_init, times)
    population = numpyro.deterministic("population", jnp.concatenate([z_init[None, :], later]))
    numpyro.sample("y", dist.LogNormal(jnp.log(population), sigma[None, :]).to_event(2), obs=y)


@functools.lru_cache
def _black_box(num_times: int) -> Solver:
    # One wrapper a length, made once: a new one at every call of the model would be compiled anew.
    return blackbox(simulate, shape=(num_times, 2), vectorized=True)


def model(years: Float[np.ndarray, " years"], y: Float[ArrayLike, "years 2"] | None = None) -> None:
    """The model that users write: priors, `simulate` as a black box, LogNormal counts.

    Sites: `alpha`, `gamma` (per year), `beta`, `delta` (per year and thousand animals), `z_init (2,)`
    (thousands in the first year), `sigma (2,)` (sd of ln counts), and deterministic `population (years, 2)`
    (thousands).

    Args:
        years: the first is that of `z_init`.
        y: pelts of hare and lynx in each year, thousands; None to draw them.
    """
    _lynx_hare(_black_box(len(years) - 1), years, y)


def twin(years: Float[np.ndarray, " years"], y: Float[ArrayLike, "years 2"] | None = None) -> None:
    """`model` with the equations solved by diffrax: gradients exist, so NUTS runs. Meant for float64."""
    _lynx_hare(solve_twin, years, y)


def predictive_draws(
    rng: np.random.Generator,
    samples: Draws,
    years: Float[np.ndarray, " times"],
) -> Float[np.ndarray, "draws times 2"]:
    """Pelts (thousands) replicated from every posterior draw at `years`, from 1900 on and increasing.

    The noise of a draw is the same in every year: right year by year, for smooth bands; not jointly.
    """
    theta = np.stack([samples[name] for name in ("alpha", "beta", "gamma", "delta")], axis=-1)
    # The black box starts after time 0, where the populations are z_init.
    later = simulate(theta, samples["z_init"], years[years > YEARS[0]] - YEARS[0])
    first = np.repeat(np.asarray(samples["z_init"])[:, None, :], len(years) - later.shape[1], axis=1)
    # Every quantile of the noise once, shuffled: bands with half the Monte Carlo error.
    levels = (np.arange(len(theta)) + 0.5) / len(theta)
    noise = ndtri(np.stack([rng.permutation(levels), rng.permutation(levels)], axis=-1))[:, None, :]
    return np.concatenate([first, later], axis=1) * np.exp(np.asarray(samples["sigma"])[:, None, :] * noise)
