"""Models as NumPyro users write them: hierarchies, shrinkage, a time series, ordered and zero-inflated data.

Three are rebuilt from the examples that NumPyro publishes (baseball, admissions, horseshoe regression). Some are
written in the way that gradients dislike and ensembles do not care about (centred hierarchies); the truth is then the
No-U-Turn sampler on the same posterior in other coordinates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import ArrayLike, Float, Int
from numpyro.contrib.control_flow import scan
from numpyro.distributions.transforms import OrderedTransform

from validation.posteriors.posteriordb import eight_schools_noncentered
from validation.posteriors.smooth import NUM_DRAWS, nuts_truth
from validation.target import Target, Truth

# Hierarchies bend where their scales are small: short steps, and more draws than the other smooth posteriors need.
NUTS_SETTINGS = {"target_acceptance_rate": 0.98, "num_samples": 5000}

# Effects and their standard errors; Rubin (1981), Journal of Educational Statistics 6.
SCHOOLS_Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCHOOLS_SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

# Hits of 18 players in their first 45 times at bat of 1970; Efron & Morris (1975), JASA 70.
AT_BATS = 45
HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])

# Applicants and admitted at Berkeley in 1973, men and women in departments A to F; Bickel, Hammel & O'Connell (1975),
# Science 187.
APPLIED = np.array([[825, 108], [560, 25], [325, 593], [417, 375], [191, 393], [373, 341]])
ADMITTED = np.array([[512, 89], [353, 17], [120, 202], [138, 131], [53, 94], [22, 24]])


def eight_schools_centered(sigma: Float[ArrayLike, "8"], y: Float[ArrayLike, "8"] | None = None) -> None:
    """`eight_schools_noncentered` with theta_j ~ N(mu, tau) written as it is said."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def baseball(at_bats: int, hits: Int[ArrayLike, " players"] | None = None, *, num_players: int = 18) -> None:
    """Batting averages, partially pooled on the logit scale."""
    loc = numpyro.sample("loc", dist.Normal(-1.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    with numpyro.plate("players", num_players):
        logit = numpyro.sample("logit", dist.Normal(loc, scale))
        numpyro.sample("hits", dist.Binomial(at_bats, logits=logit), obs=hits)


def baseball_noncentered(at_bats: int, hits: Int[ArrayLike, " players"] | None = None) -> None:
    """`baseball` as gradients like it."""
    loc = jnp.asarray(numpyro.sample("loc", dist.Normal(-1.0, 1.0)))
    scale = jnp.asarray(numpyro.sample("scale", dist.HalfCauchy(1.0)))
    with numpyro.plate("players", 18):
        raw = jnp.asarray(numpyro.sample("raw", dist.Normal(0.0, 1.0)))
        logit = numpyro.deterministic("logit", loc + scale * raw)
        numpyro.sample("hits", dist.Binomial(at_bats, logits=logit), obs=hits)


def admissions(applied: Int[ArrayLike, "6 2"], admitted: Int[ArrayLike, "6 2"] | None = None) -> None:
    """Intercept and effect of being a man vary over departments, correlated; an LKJ prior on the correlation."""
    mean = jnp.asarray(numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1)))
    sd = jnp.asarray(numpyro.sample("sd", dist.HalfNormal(1.0).expand([2]).to_event(1)))
    L = jnp.asarray(numpyro.sample("L", dist.LKJCholesky(2, concentration=2.0)))
    numpyro.deterministic("correlation", L[1, 0])
    with numpyro.plate("departments", 6):
        effects = numpyro.sample("effects", dist.MultivariateNormal(mean, scale_tril=sd[:, None] * L))
    logits = jnp.asarray(effects)[:, :1] + jnp.asarray(effects)[:, 1:] * jnp.array([[1.0, 0.0]])
    numpyro.sample("admitted", dist.Binomial(applied, logits=logits).to_event(2), obs=admitted)


def admissions_by_beta(applied: Int[ArrayLike, "6 2"], admitted: Int[ArrayLike, "6 2"] | None = None) -> None:
    """`admissions` with the correlation itself, whose LKJ(2) prior in two dimensions is a Beta(2, 2) on (-1, 1)."""
    mean = jnp.asarray(numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1)))
    sd = jnp.asarray(numpyro.sample("sd", dist.HalfNormal(1.0).expand([2]).to_event(1)))
    share = jnp.asarray(numpyro.sample("share", dist.Beta(2.0, 2.0)))
    correlation = jnp.asarray(numpyro.deterministic("correlation", 2 * share - 1))
    raw = jnp.asarray(numpyro.sample("raw", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2)))
    second = correlation * raw[:, 0] + jnp.sqrt(1 - correlation**2) * raw[:, 1]
    effects = numpyro.deterministic("effects", mean[None] + sd[None] * jnp.stack([raw[:, 0], second], axis=1))
    logits = jnp.asarray(effects)[:, :1] + jnp.asarray(effects)[:, 1:] * jnp.array([[1.0, 0.0]])
    numpyro.sample("admitted", dist.Binomial(applied, logits=logits).to_event(2), obs=admitted)


def horseshoe(X: Float[ArrayLike, "data 6"], y: Float[ArrayLike, " data"] | None = None) -> None:
    """Linear regression whose coefficients are mostly nothing: half-Cauchy scales, one for all and one for each."""
    local = jnp.asarray(numpyro.sample("local", dist.HalfCauchy(1.0).expand([6]).to_event(1)))
    common = numpyro.sample("common", dist.HalfCauchy(0.5))
    raw = jnp.asarray(numpyro.sample("raw", dist.Normal(0.0, 1.0).expand([6]).to_event(1)))
    beta = jnp.asarray(numpyro.deterministic("beta", common * local * raw))
    precision = jnp.asarray(numpyro.sample("precision", dist.Gamma(3.0, 1.0)))
    numpyro.sample("y", dist.Normal(jnp.asarray(X) @ beta, precision**-0.5).to_event(1), obs=y)


def horseshoe_by_scales(X: Float[ArrayLike, "data 6"], y: Float[ArrayLike, " data"]) -> None:
    """`horseshoe`, its coefficients integrated out: they are Gaussian given the scales and the data.

    ``raw`` is left to its prior, and drawing it is drawing them.
    """
    local = jnp.asarray(numpyro.sample("local", dist.HalfCauchy(1.0).expand([6]).to_event(1)))
    common = jnp.asarray(numpyro.sample("common", dist.HalfCauchy(0.5)))
    raw = jnp.asarray(numpyro.sample("raw", dist.Normal(0.0, 1.0).expand([6]).to_event(1)))
    precision = jnp.asarray(numpyro.sample("precision", dist.Gamma(3.0, 1.0)))
    y, scaled = jnp.asarray(y), jnp.asarray(X) * (common * local)[None, :]
    L = jnp.linalg.cholesky(jnp.eye(6) + precision * scaled.T @ scaled)
    whitened = solve_triangular(L, precision * scaled.T @ y, lower=True)
    numpyro.deterministic("beta", common * local * solve_triangular(L, whitened + raw, lower=True, trans=1))
    covariance = jnp.eye(len(y)) / precision + scaled @ scaled.T
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(y)), covariance), obs=y)


def local_level(y: Float[ArrayLike, " times"] | None = None, *, num_times: int = 16) -> None:
    """A level that walks at random, seen with noise; both scales unknown; a `scan` over time."""
    step = numpyro.sample("step", dist.HalfNormal(1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))

    def move(level, y_t):
        level = numpyro.sample("level", dist.Normal(level, step))
        numpyro.sample("y", dist.Normal(level, noise), obs=y_t)
        return level, None

    scan(move, 0.0, None if y is None else jnp.asarray(y), length=num_times)


def local_level_truth() -> Truth:
    """The levels are Gaussian given both scales, whose density is on a grid: NUTS itself misses small noise here."""
    y = np.asarray(_local_level_data()[1]["y"])
    times = np.arange(1, len(y) + 1)
    values, vectors = np.linalg.eigh(np.minimum.outer(times, times).astype(float))
    seen = vectors.T @ y
    scale = (np.arange(500) + 0.5) / 500 * 3.0
    step, noise = (a.ravel()[:, None] for a in np.meshgrid(scale, scale, indexing="ij"))
    variance = step**2 * values + noise**2
    log_density = -0.5 * (np.log(variance) + seen**2 / variance).sum(axis=1) - 0.5 * (step**2 + noise**2)[:, 0]
    weights = np.exp(log_density - log_density.max())
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(weights), NUM_DRAWS, p=weights / weights.sum())
    step, noise, variance = step[chosen], noise[chosen], variance[chosen]
    shrink = step**2 * values / variance
    level = shrink * seen + np.sqrt(shrink) * noise * rng.standard_normal(shrink.shape)
    return Truth(np.concatenate([step, noise, level @ vectors.T], axis=1), source="exact, by a grid over the scales")


def ordinal(x: Float[ArrayLike, " data"], y: Int[ArrayLike, " data"] | None = None) -> None:
    """Four ordered answers by one covariate; ordered cut points."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    base = dist.Normal(0.0, 1.5).expand([3]).to_event(1)
    cuts = numpyro.sample("cuts", dist.TransformedDistribution(base, OrderedTransform()))
    numpyro.sample("y", dist.OrderedLogistic(slope * jnp.asarray(x), cuts).to_event(1), obs=y)


def occupancy(x: Float[ArrayLike, " sites"], count: Int[ArrayLike, " sites"] | None = None) -> None:
    """Counts of an animal at places that it may not live at all: zero-inflated Poisson, both parts by covariate."""
    absent = jnp.asarray(numpyro.sample("absent", dist.Normal(0.0, 1.5).expand([2]).to_event(1)))
    rate = jnp.asarray(numpyro.sample("rate", dist.Normal(0.0, 1.0).expand([2]).to_event(1)))
    x = jnp.asarray(x)
    fn = dist.ZeroInflatedPoisson(
        gate=1 / (1 + jnp.exp(-(absent[0] + absent[1] * x))), rate=jnp.exp(rate[0] + rate[1] * x)
    )
    numpyro.sample("count", fn.to_event(1), obs=count)


class Everyday(NamedTuple):
    """A model, its data, the sites that are compared, and the model that NUTS gets (None: the same)."""

    model: Callable
    args: tuple
    kwargs: dict[str, Any]
    sites: tuple[str, ...]
    for_nuts: Callable | None = None


def _horseshoe_data() -> tuple[tuple, dict]:
    rng = np.random.default_rng(11)
    X = rng.standard_normal((40, 6))
    return (X,), {"y": X[:, 0] * 1.2 - X[:, 1] * 0.6 + 0.5 * rng.standard_normal(40)}


def _local_level_data() -> tuple[tuple, dict]:
    rng = np.random.default_rng(12)
    return (), {"y": np.cumsum(0.4 * rng.standard_normal(16)) + 0.5 * rng.standard_normal(16)}


def _ordinal_data() -> tuple[tuple, dict]:
    rng = np.random.default_rng(13)
    x = rng.standard_normal(60)
    return (x,), {"y": np.searchsorted([-1.0, 0.3, 1.5], 1.1 * x + rng.logistic(size=60))}


def _occupancy_data() -> tuple[tuple, dict]:
    rng = np.random.default_rng(14)
    x = rng.standard_normal(80)
    lives = rng.random(80) > 1 / (1 + np.exp(0.5 + 0.8 * x))
    return (x,), {"count": lives * rng.poisson(np.exp(0.7 + 0.4 * x))}


def everyday() -> dict[str, Everyday]:
    """The models by name."""
    schools = (SCHOOLS_SIGMA,), {"y": SCHOOLS_Y}
    hits = (AT_BATS,), {"hits": HITS}
    admitted = (APPLIED,), {"admitted": ADMITTED}
    both = ("theta", "mu", "tau")
    return {
        "eight_schools": Everyday(eight_schools_noncentered, *schools, both),
        "eight_schools_centered": Everyday(eight_schools_centered, *schools, both, eight_schools_noncentered),
        "baseball": Everyday(baseball, *hits, ("loc", "scale", "logit"), baseball_noncentered),
        "admissions": Everyday(admissions, *admitted, ("mean", "sd", "correlation", "effects"), admissions_by_beta),
        "horseshoe": Everyday(horseshoe, *_horseshoe_data(), ("beta", "common", "precision"), horseshoe_by_scales),
        "local_level": Everyday(local_level, *_local_level_data(), ("step", "noise", "level")),
        "ordinal": Everyday(ordinal, *_ordinal_data(), ("slope", "cuts")),
        "occupancy": Everyday(occupancy, *_occupancy_data(), ("absent", "rate")),
    }


EXACT = {"local_level": local_level_truth}


def targets() -> list[Target]:
    """``everyday/<name>``."""
    return [
        Target(
            name=f"everyday/{name}",
            suites=("everyday",),
            truth=EXACT.get(name)
            or functools.partial(
                nuts_truth, one.for_nuts or one.model, one.args, one.kwargs, one.sites, **NUTS_SETTINGS
            ),
            model=one.model,
            args=one.args,
            kwargs=one.kwargs,
            sites=one.sites,
        )
        for name, one in everyday().items()
    ]
