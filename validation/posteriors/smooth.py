"""Differentiable models: curved, funnel-shaped, hierarchical, regressions, an ODE.

The banana and the funnel have exact draws, since all but one unknown can be integrated out by hand; the others' truth
is a long run of the No-U-Turn sampler.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Int

from models._runge_kutta import runge_kutta
from validation.nuts import nuts
from validation.target import Target, Truth, flatten

NUM_DRAWS = 10_000
NUTS_SETTINGS = {
    "num_warmup": 1000,
    "num_samples": 2500,
    "num_chains": 4,
    "target_acceptance_rate": 0.9,
    "dense_mass_matrix": True,
}
MAX_R_HAT, MIN_ESS = 1.01, 1000

# Banana: a parabola seen with little noise

BANANA_NOISE, BANANA_Y = 0.2, 1.0


def banana(y: Float[ArrayLike, ""] | None = None) -> None:
    """theta ~ N(0, I) in the plane, y ~ N(t2 + t1^2, 0.2): a ridge along a parabola."""
    theta = jnp.asarray(numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1)))
    numpyro.sample("y", dist.Normal(theta[1] + theta[0] ** 2, BANANA_NOISE), obs=y)


def banana_truth() -> Truth:
    """Given t1, t2 is Gaussian; the density of t1 is that of one number, on a fine grid."""
    rng = np.random.default_rng(0)
    variance = 1 + BANANA_NOISE**2

    def log_density(t1):
        return -0.5 * (t1**2 + (BANANA_Y - t1**2) ** 2 / variance) - math.log(2 * math.pi) - 0.5 * math.log(variance)

    t1, log_evidence, expect = _on_grid(log_density, -6.0, 6.0, rng)
    shrink, sd = 1 / variance, BANANA_NOISE / math.sqrt(variance)
    t2 = shrink * (BANANA_Y - t1**2) + sd * rng.standard_normal(len(t1))
    mean = np.array([0.0, expect(lambda t: shrink * (BANANA_Y - t**2))])
    square = np.array([expect(lambda t: t**2), expect(lambda t: (shrink * (BANANA_Y - t**2)) ** 2) + sd**2])
    return Truth(
        np.stack([t1, t2], axis=1),
        source="exact, by a grid over t1",
        mean=mean,
        sd=np.sqrt(square - mean**2),
        log_evidence=log_evidence,
    )


# Funnel: Neal's, with a weak datum of each of the nine

FUNNEL_Y = np.array([0.4, -1.5, 0.3, 2.2, -0.6, 0.1, -0.9, 1.3, -0.2])


def funnel(y: Float[ArrayLike, "9"] | None = None) -> None:
    """v ~ N(0, 3), x_i ~ N(0, exp(v / 2)), y_i ~ N(x_i, 1); centred, as one would write it down first."""
    v = jnp.asarray(numpyro.sample("v", dist.Normal(0.0, 3.0)))
    x = numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)).expand([9]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def funnel_truth() -> Truth:
    """Given v, the x_i are independent Gaussians; the density of v is that of one number, on a fine grid."""
    rng = np.random.default_rng(0)
    total = float(np.sum(FUNNEL_Y**2))

    def log_density(v):
        variance = 1 + np.exp(v)
        data = -0.5 * (total / variance + len(FUNNEL_Y) * np.log(2 * math.pi * variance))
        return data - 0.5 * (v / 3) ** 2 - math.log(3) - 0.5 * math.log(2 * math.pi)

    v, log_evidence, expect = _on_grid(log_density, -25.0, 12.0, rng)
    shrink = 1 / (1 + np.exp(-v))[:, None]
    x = shrink * FUNNEL_Y + np.sqrt(shrink) * rng.standard_normal((len(v), len(FUNNEL_Y)))
    mean_v, square_v = expect(lambda v: v), expect(lambda v: v**2)
    first, second = expect(lambda v: 1 / (1 + np.exp(-v))), expect(lambda v: 1 / (1 + np.exp(-v)) ** 2)
    variance_x = first + FUNNEL_Y**2 * (second - first**2)
    return Truth(
        np.column_stack([v, x]),
        source="exact, by a grid over v",
        mean=np.concatenate([[mean_v], first * FUNNEL_Y]),
        sd=np.sqrt(np.concatenate([[square_v - mean_v**2], variance_x])),
        log_evidence=log_evidence,
    )


def _on_grid(
    log_density: Callable, low: float, high: float, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " draws"], float, Callable[[Callable], float]]:
    """Draws of one number, the logarithm of its density's integral, and its expectations, by a grid of 40,000 cells."""
    edges = np.linspace(low, high, 40_001)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    log_mass = log_density(middle) + math.log(width)
    log_total = float(np.logaddexp.reduce(log_mass))
    mass = np.exp(log_mass - log_total)
    draws = rng.choice(middle, NUM_DRAWS, p=mass / mass.sum()) + width * (rng.random(NUM_DRAWS) - 0.5)
    return draws, log_total, lambda function: float(mass @ function(middle))


# Models whose truth is NUTS


def hierarchical_regression(
    group: Int[ArrayLike, " data"], x: Float[ArrayLike, " data"], y: Float[ArrayLike, " data"] | None = None
) -> None:
    """Six groups with their own intercepts a_j ~ N(mu, tau), one slope, noise of unknown size."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    z = jnp.asarray(numpyro.sample("z", dist.Normal(0.0, 1.0).expand([6]).to_event(1)))
    a = jnp.asarray(numpyro.deterministic("a", mu + tau * z))
    numpyro.sample("y", dist.Normal(a[jnp.asarray(group)] + slope * jnp.asarray(x), sigma).to_event(1), obs=y)


def logistic_regression(X: Float[ArrayLike, "data 6"], y: Int[ArrayLike, " data"] | None = None) -> None:
    """Labels y ~ Bernoulli(sigmoid(X beta)) with correlated covariates, beta ~ N(0, 2)."""
    beta = jnp.asarray(numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([6]).to_event(1)))
    numpyro.sample("y", dist.Bernoulli(logits=jnp.asarray(X) @ beta).to_event(1), obs=y)


SIR_DAYS, SIR_STEPS_PER_DAY, SIR_TESTED = 10, 4, 500


def infected(beta: Float[Array, ""], gamma: Float[Array, ""]) -> Float[Array, "10"]:
    """Share of a population that is infected on days 3, 6, ..., 30, one in a thousand on day 0.

    S' = -beta S I, I' = beta S I - gamma I, by classical Runge-Kutta steps of equal length.
    """
    step = 1 / SIR_STEPS_PER_DAY

    def field(state: Float[Array, "2"]) -> Float[Array, "2"]:
        S, I = state  # noqa: E741
        return jnp.stack([-beta * S * I, beta * S * I - gamma * I])

    def advance(state: Float[Array, "2"], _: None) -> tuple[Float[Array, "2"], Float[Array, ""]]:
        state = runge_kutta(field, state, step)
        return state, state[1]

    start = jnp.array([0.999, 0.001])
    _, path = jax.lax.scan(advance, start, None, length=3 * SIR_DAYS * SIR_STEPS_PER_DAY)
    return path[3 * SIR_STEPS_PER_DAY - 1 :: 3 * SIR_STEPS_PER_DAY]


def epidemic(y: Int[ArrayLike, "10"] | None = None) -> None:
    """An epidemic's rates of infection and recovery (per day) from tests of 500 people on every third day."""
    beta = jnp.asarray(numpyro.sample("beta", dist.LogNormal(math.log(0.6), 0.5)))
    gamma = jnp.asarray(numpyro.sample("gamma", dist.LogNormal(math.log(0.15), 0.4)))
    share = jnp.clip(infected(beta, gamma), 1e-9, 1 - 1e-9)
    numpyro.sample("y", dist.Binomial(SIR_TESTED, share).to_event(1), obs=y)


def hierarchical_data() -> tuple[tuple, dict]:
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(6), [12, 9, 7, 5, 3, 2])
    x = rng.standard_normal(len(group))
    a = 1.0 + 0.7 * rng.standard_normal(6)
    return (group, x), {"y": a[group] + 0.5 * x + 0.6 * rng.standard_normal(len(group))}


def logistic_data() -> tuple[tuple, dict]:
    rng = np.random.default_rng(2)
    X = rng.standard_normal((80, 6)) + 0.7 * rng.standard_normal((80, 1))
    X[:, 0] = 1.0
    logits = X @ np.array([0.5, 1.5, -1.0, 0.0, 0.8, -0.4])
    return (X,), {"y": (rng.random(80) < 1 / (1 + np.exp(-logits))).astype(int)}


def epidemic_data() -> tuple[tuple, dict]:
    rng = np.random.default_rng(3)
    share = np.asarray(infected(jnp.asarray(0.5), jnp.asarray(0.12)))
    return (), {"y": rng.binomial(SIR_TESTED, share)}


def targets() -> list[Target]:
    """``smooth/<name>``."""
    found = [
        Target(
            name="smooth/banana",
            suites=("smooth", "quick"),
            truth=banana_truth,
            model=banana,
            kwargs={"y": np.asarray(BANANA_Y)},
            sites=("theta",),
        ),
        Target(
            name="smooth/funnel",
            suites=("smooth",),
            truth=funnel_truth,
            model=funnel,
            kwargs={"y": FUNNEL_Y},
            sites=("v", "x"),
        ),
    ]
    for model, data, sites in (
        (hierarchical_regression, hierarchical_data, ("a", "mu", "tau", "slope", "sigma")),
        (logistic_regression, logistic_data, ("beta",)),
        (epidemic, epidemic_data, ("beta", "gamma")),
    ):
        args, kwargs = data()
        found.append(
            Target(
                name=f"smooth/{model.__name__}",
                suites=("smooth",),
                truth=functools.partial(nuts_truth, model, args, kwargs, sites),
                model=model,
                args=args,
                kwargs=kwargs,
                sites=sites,
            )
        )
    return found


def nuts_truth(model: Callable, args: tuple, kwargs: dict, sites: tuple[str, ...], **settings: Any) -> Truth:
    """A long run of NUTS, `settings` beside the usual ones; `RuntimeError` where by its own figures it is no truth."""
    result = nuts(jax.random.key(0), model, *args, progress=False, **(NUTS_SETTINGS | settings), **kwargs)
    if not (result.worst_r_hat < MAX_R_HAT and result.smallest_ess > MIN_ESS):
        raise RuntimeError(
            f"NUTS did not converge on {model.__name__}: R-hat {result.worst_r_hat:.3f}, effective sample size "
            f"{result.smallest_ess:.0f}; raise num_warmup and num_samples in NUTS_SETTINGS"
        )
    source = f"NUTS, {result.num_divergences} divergences, effective sample size at least {result.smallest_ess:.0f}"
    return Truth(flatten(result.flat(), sites), source=source)
