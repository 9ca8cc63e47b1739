"""Scalar families with a quantile function of their own: one line each at the end."""

from collections.abc import Callable

import jax.numpy as jnp
import numpyro.distributions as dist

from enkg_ppl import quantiles as q
from enkg_ppl.numpyro.transports._base import elementwise, finite, inside, log_ratio, positive


def _location_scale(cls: type, family: Callable[[], q.Symmetric]) -> None:
    elementwise(
        cls,
        "loc scale",
        lambda z, loc, scale: finite(loc + scale * q.quantile(family(), z)),
        lambda x, loc, scale: q.score(family(), (x - loc) / scale),
    )


def _uniform(z, low, high):
    width = high - low
    p = jnp.exp(q.log_ndtr(-jnp.abs(z)))
    return inside(jnp.where(z <= 0, low + width * p, high - width * p), low, high)


def _uniform_score(x, low, high):
    width = high - low
    return q.normal_score(jnp.log((x - low) / width), jnp.log((high - x) / width))


def _log_uniform(z, low, high):
    log_p = q.log_ndtr(-jnp.abs(z))
    distance = log_ratio(high, low) * jnp.exp(log_p)
    return inside(jnp.where(z <= 0, low * jnp.exp(distance), high * jnp.exp(-distance)), low, high)


def _log_uniform_score(x, low, high):
    width = log_ratio(high, low)
    return q.normal_score(jnp.log(log_ratio(x, low) / width), jnp.log(log_ratio(high, x) / width))


def _half_cauchy(z):
    tangent = jnp.tan(0.5 * jnp.pi * jnp.exp(q.log_ndtr(-jnp.abs(z))))
    return jnp.where(z <= 0, tangent, 1.0 / tangent)


def _half_cauchy_score(x):
    log_two_over_pi = q.LOG_2 - q.LOG_PI
    one = jnp.ones_like(x)
    return q.normal_score(log_two_over_pi + jnp.log(jnp.atan2(x, one)), log_two_over_pi + jnp.log(jnp.atan2(one, x)))


def _asymmetric_laplace(z, loc, left, right):
    log_total = jnp.log(left + right)
    below = q.log_ndtr(z) - jnp.log(left) + log_total
    above = q.log_ndtr(-z) - jnp.log(right) + log_total
    return finite(loc + jnp.where(below < 0, left * below, -right * above))


def _asymmetric_laplace_score(x, loc, left, right):
    v = x - loc
    near = jnp.where(v < 0, jnp.log(left) + v / left, jnp.log(right) - v / right) - jnp.log(left + right)
    far = q.log1mexp(-near)
    return q.normal_score(jnp.where(v < 0, near, far), jnp.where(v < 0, far, near))


def _sigmoid(y):
    e = jnp.exp(-jnp.abs(y))
    return jnp.where(y < 0, e, 1.0) / (1.0 + e)


def _kumaraswamy(z, a, b):
    # log(1 - (1 - p)^(1/b)) / a; for tiny (1 - p)-exponents its log is the log exponential itself
    log_e = q.log_exponential(z) - jnp.log(b)
    return inside(jnp.exp(jnp.where(log_e < -45.0, log_e, q.log1mexp(jnp.exp(log_e))) / a), 0.0, 1.0)


def _kumaraswamy_score(x, a, b):
    log_power = a * jnp.log(x)
    log_e = jnp.where(log_power < -45.0, log_power, jnp.log(-jnp.log1p(-jnp.exp(log_power))))
    log_e = jnp.where(log_power > -q.LOG_2, jnp.log(-jnp.log(-jnp.expm1(log_power))), log_e)
    return q.log_exponential_score(jnp.log(b) + log_e)


def _dagum(z, p, a, scale):
    # F = (1 + (x / scale)^-a)^-p: softplus(-y) is exponential, y = a log(x / scale)
    log_e = q.log_exponential(-z) - jnp.log(p)
    e = jnp.exp(log_e)
    y = -jnp.where(log_e < -45.0, log_e, e + q.log1mexp(e))
    return positive(jnp.exp(jnp.log(scale) + y / a))


def _dagum_score(x, p, a, scale):
    y = a * (jnp.log(x) - jnp.log(scale))
    log_e = jnp.where(y > 45.0, -y, jnp.log(jnp.logaddexp(0.0, -y)))
    return -q.log_exponential_score(jnp.log(p) + log_e)


elementwise(
    dist.Normal,
    "loc scale",
    lambda z, loc, scale: finite(loc + scale * z),
    lambda x, loc, scale: (x - loc) / scale,
)
elementwise(
    dist.LogNormal,
    "loc scale",
    lambda z, loc, scale: positive(jnp.exp(loc + scale * z)),
    lambda x, loc, scale: (jnp.log(x) - loc) / scale,
)
_location_scale(dist.Laplace, q.laplace)
_location_scale(dist.Logistic, q.logistic)
_location_scale(dist.SoftLaplace, q.soft_laplace)
_location_scale(dist.Cauchy, q.cauchy)
elementwise(
    dist.StudentT,
    "df loc scale",
    lambda z, df, loc, scale: finite(loc + scale * q.quantile(q.student_t(df), z)),
    lambda x, df, loc, scale: q.score(q.student_t(df), (x - loc) / scale),
)
elementwise(dist.AsymmetricLaplace, "loc left_scale right_scale", _asymmetric_laplace, _asymmetric_laplace_score)
elementwise(
    dist.AsymmetricLaplaceQuantile,
    "loc scale quantile",
    lambda z, loc, scale, p: _asymmetric_laplace(z, loc, scale / (1.0 - p), scale / p),
    lambda x, loc, scale, p: _asymmetric_laplace_score(x, loc, scale / (1.0 - p), scale / p),
)
elementwise(
    dist.Gumbel,
    "loc scale",
    lambda z, loc, scale: finite(loc - scale * q.log_exponential(-z)),
    lambda x, loc, scale: -q.log_exponential_score((loc - x) / scale),
)
elementwise(dist.Uniform, "low high", _uniform, _uniform_score)
elementwise(dist.LogUniform, "low high", _log_uniform, _log_uniform_score)
elementwise(
    dist.Exponential,
    "rate",
    lambda z, rate: positive(q.exponential(z) / rate),
    lambda x, rate: q.log_exponential_score(jnp.log(rate * x)),
)
elementwise(
    dist.Weibull,
    "scale concentration",
    lambda z, scale, k: positive(scale * jnp.exp(q.log_exponential(z) / k)),
    lambda x, scale, k: q.log_exponential_score(k * jnp.log(x / scale)),
)
elementwise(
    dist.Gompertz,
    "concentration rate",
    lambda z, c, rate: positive(jnp.log1p(q.exponential(z) / c) / rate),
    lambda x, c, rate: q.log_exponential_score(jnp.log(c * jnp.expm1(rate * x))),
)
elementwise(
    dist.Pareto,
    "scale alpha",
    lambda z, scale, alpha: inside(scale * jnp.exp(q.exponential(z) / alpha), scale, jnp.inf),
    lambda x, scale, alpha: q.log_exponential_score(jnp.log(alpha * log_ratio(x, scale))),
)
elementwise(
    dist.HalfNormal,
    "scale",
    lambda z, scale: positive(scale * q.half_normal(z)),
    lambda x, scale: q.half_normal_score(x / scale),
)
elementwise(
    dist.HalfCauchy,
    "scale",
    lambda z, scale: positive(scale * _half_cauchy(z)),
    lambda x, scale: _half_cauchy_score(x / scale),
)
elementwise(
    dist.Levy,
    "loc scale",
    lambda z, loc, scale: inside(loc + scale / jnp.square(q.half_normal(-z)), loc, jnp.inf),
    lambda x, loc, scale: -q.half_normal_score(jnp.sqrt(scale / (x - loc))),
)
elementwise(
    dist.Gamma,
    "concentration rate",
    lambda z, a, rate: positive(jnp.exp(q.gamma(z, a) - jnp.log(rate))),
    lambda x, a, rate: q.gamma_score(jnp.log(rate) + jnp.log(x), a),
)
elementwise(
    dist.InverseGamma,
    "concentration rate",
    lambda z, a, rate: positive(jnp.exp(jnp.log(rate) - q.gamma(-z, a))),
    lambda x, a, rate: -q.gamma_score(jnp.log(rate) - jnp.log(x), a),
)
elementwise(
    dist.Beta,
    "concentration1 concentration0",
    lambda z, a, b: inside(_sigmoid(q.beta(z, a, b)), 0.0, 1.0),
    lambda x, a, b: q.beta_score(jnp.log(x) - jnp.log1p(-x), a, b),
)
elementwise(dist.Kumaraswamy, "concentration1 concentration0", _kumaraswamy, _kumaraswamy_score)
elementwise(dist.Dagum, "concentration sharpness scale", _dagum, _dagum_score)
