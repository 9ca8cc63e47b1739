"""Every ordinary NumPyro prior as a deterministic map of a standard normal.

``theta = from_standard(fn, z)`` with ``z ~ N(0, I)`` has distribution `fn`, so a posterior becomes ``N(z; 0,
I) L(from_standard(fn, z))`` whatever the prior. The maps are elementwise quantile transforms (increasing,
exact in both tails) or affine ones; none needs to be differentiated, all may be traced with parameters that
depend on other latents, and the dtype of `z` (or of the value) is the dtype of the computation and of the
result.

To support another distribution, register it with `from_standard` and `to_standard` (and with `standard_shape`
if the score has another shape than the value), here or in your own code.
"""

import math
from collections.abc import Callable
from functools import singledispatch

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float
from numpyro.distributions import truncated
from numpyro.distributions.transforms import AbsTransform

from enkg_ppl import _quantile as q


class UnsupportedPriorError(TypeError):
    """A latent site has a distribution that is not a transport of a standard normal; says what to write
    instead.
    """


@singledispatch
def standard_shape(fn: dist.Distribution) -> tuple[int, ...]:
    """Shape of the standard normal score that `from_standard` takes, batch dimensions of `fn` first."""
    return fn.shape()


@singledispatch
def from_standard(fn: dist.Distribution, z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value of `fn` at a standard normal score.

    **Arguments:** `fn`; `z` of shape ``standard_shape(fn)``.
    **Returns:** the value, of shape ``fn.shape()`` and the dtype of `z`, strictly inside the support: what
    rounds to a bound, to zero or to infinity becomes the nearest float inside.
    **Raises:** `UnsupportedPriorError` for a distribution without a transport; `ValueError` for a wrong
    shape.
    """
    raise UnsupportedPriorError(_reason(fn))


@singledispatch
def to_standard(fn: dist.Distribution, value: Float[Array, "..."]) -> Float[Array, "..."]:
    """The inverse of `from_standard`: the score, of shape ``standard_shape(fn)``, of a value of shape
    ``fn.shape()``.

    **Raises:** `UnsupportedPriorError` for a distribution without a transport; `ValueError` for a wrong
    shape.
    """
    raise UnsupportedPriorError(_reason(fn))


def _reason(fn) -> str:
    name = type(fn).__name__
    if isinstance(fn, dist.MaskedDistribution):
        return (
            f"{name} is not a prior: masking removes the density of a latent site, so it would be improper; "
            "mask the likelihood, or leave the site out of the model."
        )
    if isinstance(fn, dist.ImproperUniform):
        return (
            f"{name} cannot be sampled, and the ensemble starts in the prior; give a proper prior, "
            "e.g. dist.Normal(0, 100)."
        )
    if isinstance(fn, dist.Delta):
        return (
            f"{name} leaves nothing to infer; write the site as numpyro.deterministic, or pass the value as a constant."
        )
    if isinstance(fn, dist.Unit):
        return f"{name} carries no value, only a log weight; declare it with obs=, or through numpyro.factor."
    if _folds(fn):
        return (
            f"{name} takes an absolute value, which has no inverse; use dist.HalfNormal, dist.HalfCauchy or "
            "a truncated distribution."
        )
    if isinstance(fn, dist.VonMises):
        return (
            f"{name} has no transport from a standard normal; sample the angle from dist.Uniform(-jnp.pi, jnp.pi) and "
            "add this density by numpyro.factor."
        )
    if _is_discrete(fn):
        return (
            f"{name} is discrete, and the ensemble moves along continuous paths; marginalise the site out "
            "of the likelihood, or condition on it."
        )
    return (
        f"{name} has no transport from a standard normal; build the site from supported distributions, or "
        "register one with from_standard.register and to_standard.register."
    )


def _folds(fn) -> bool:
    transformed = isinstance(fn, dist.TransformedDistribution)
    return transformed and any(isinstance(t, AbsTransform) for t in fn.transforms)


def _is_discrete(fn) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):
        return False


# ----------------------------------------------------------------------------------------------------
# Elementwise families: one line each at the end of this section
# ----------------------------------------------------------------------------------------------------


def _above(bound: Float[Array, "..."]) -> Float[Array, "..."]:
    """The next float up, skipping the denormals, which accelerators and XLA on the CPU flush to zero."""
    tiny = jnp.finfo(bound.dtype).tiny
    up = jnp.nextafter(bound, jnp.full_like(bound, jnp.inf))
    return jnp.where(jnp.abs(up) < tiny, tiny, up)


def _inside(value, low, high) -> Float[Array, "..."]:
    """Move what rounded to a bound (infinity included) to the nearest float inside the open interval."""
    low, high = jnp.broadcast_to(low, value.shape), jnp.broadcast_to(high, value.shape)
    return jnp.clip(value, _above(low.astype(value.dtype)), -_above(-high.astype(value.dtype)))


def _positive(value: Float[Array, "..."]) -> Float[Array, "..."]:
    return _inside(value, 0.0, jnp.inf)


def _finite(value: Float[Array, "..."]) -> Float[Array, "..."]:
    return _inside(value, -jnp.inf, jnp.inf)


def _checked(fn: dist.Distribution, array, shape: tuple[int, ...], what: str) -> Float[Array, "..."]:
    array = jnp.asarray(array)
    if array.shape != shape:
        raise ValueError(f"{type(fn).__name__} takes a {what} of shape {shape}; got {array.shape}")
    return array


def _elementwise(cls: type, names: str, forward: Callable, inverse: Callable) -> None:
    """Register ``forward(z, *parameters)`` and ``inverse(value, *parameters)`` for a scalar family.

    Parameters are broadcast to the batch shape and cast to the dtype of the array, so neither rank promotion
    nor a double-precision constant in the model reaches the formulas.
    """

    def parameters(fn, array):
        values = (jnp.asarray(getattr(fn, name), array.dtype) for name in names.split())
        return (jnp.broadcast_to(v, array.shape) for v in values)

    @from_standard.register(cls)
    def _(fn, z):
        z = _checked(fn, z, fn.shape(), "score")
        return forward(z, *parameters(fn, z))

    @to_standard.register(cls)
    def _(fn, value):
        value = _checked(fn, value, fn.shape(), "value")
        return inverse(value, *parameters(fn, value))


def _location_scale(cls: type, family: Callable[[], q.Symmetric]) -> None:
    _elementwise(
        cls,
        "loc scale",
        lambda z, loc, scale: _finite(loc + scale * q.quantile(family(), z)),
        lambda x, loc, scale: q.score(family(), (x - loc) / scale),
    )


def _uniform(z, low, high):
    width = high - low
    p = jnp.exp(q.log_ndtr(-jnp.abs(z)))
    return _inside(jnp.where(z <= 0, low + width * p, high - width * p), low, high)


def _uniform_score(x, low, high):
    width = high - low
    return q.normal_score(jnp.log((x - low) / width), jnp.log((high - x) / width))


def _log_uniform(z, low, high):
    log_p = q.log_ndtr(-jnp.abs(z))
    distance = _log_ratio(high, low) * jnp.exp(log_p)
    return _inside(jnp.where(z <= 0, low * jnp.exp(distance), high * jnp.exp(-distance)), low, high)


def _log_uniform_score(x, low, high):
    width = _log_ratio(high, low)
    return q.normal_score(jnp.log(_log_ratio(x, low) / width), jnp.log(_log_ratio(high, x) / width))


def _log_ratio(x, y):
    """``log(x / y)``, from the difference where the two are close."""
    ratio = x / y
    close = jnp.abs(ratio - 1.0) < 0.5
    return jnp.where(close, jnp.log1p(jnp.where(close, (x - y) / y, 0.0)), jnp.log(ratio))


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
    return _finite(loc + jnp.where(below < 0, left * below, -right * above))


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
    return _inside(jnp.exp(jnp.where(log_e < -45.0, log_e, q.log1mexp(jnp.exp(log_e))) / a), 0.0, 1.0)


def _kumaraswamy_score(x, a, b):
    log_power = a * jnp.log(x)
    log_e = jnp.where(log_power < -45.0, log_power, jnp.log(-jnp.log1p(-jnp.exp(log_power))))
    log_e = jnp.where(log_power > -q.LOG_2, jnp.log(-jnp.log(-jnp.expm1(log_power))), log_e)
    return q.log_exponential_score(jnp.log(b) + log_e)


_elementwise(
    dist.Normal,
    "loc scale",
    lambda z, loc, scale: _finite(loc + scale * z),
    lambda x, loc, scale: (x - loc) / scale,
)
_elementwise(
    dist.LogNormal,
    "loc scale",
    lambda z, loc, scale: _positive(jnp.exp(loc + scale * z)),
    lambda x, loc, scale: (jnp.log(x) - loc) / scale,
)
_location_scale(dist.Laplace, q.laplace)
_location_scale(dist.Logistic, q.logistic)
_location_scale(dist.SoftLaplace, q.soft_laplace)
_location_scale(dist.Cauchy, q.cauchy)
_elementwise(
    dist.StudentT,
    "df loc scale",
    lambda z, df, loc, scale: _finite(loc + scale * q.quantile(q.student_t(df), z)),
    lambda x, df, loc, scale: q.score(q.student_t(df), (x - loc) / scale),
)
_elementwise(dist.AsymmetricLaplace, "loc left_scale right_scale", _asymmetric_laplace, _asymmetric_laplace_score)
_elementwise(
    dist.Gumbel,
    "loc scale",
    lambda z, loc, scale: _finite(loc - scale * q.log_exponential(-z)),
    lambda x, loc, scale: -q.log_exponential_score((loc - x) / scale),
)
_elementwise(dist.Uniform, "low high", _uniform, _uniform_score)
_elementwise(dist.LogUniform, "low high", _log_uniform, _log_uniform_score)
_elementwise(
    dist.Exponential,
    "rate",
    lambda z, rate: _positive(q.exponential(z) / rate),
    lambda x, rate: q.log_exponential_score(jnp.log(rate * x)),
)
_elementwise(
    dist.Weibull,
    "scale concentration",
    lambda z, scale, k: _positive(scale * jnp.exp(q.log_exponential(z) / k)),
    lambda x, scale, k: q.log_exponential_score(k * jnp.log(x / scale)),
)
_elementwise(
    dist.Gompertz,
    "concentration rate",
    lambda z, c, rate: _positive(jnp.log1p(q.exponential(z) / c) / rate),
    lambda x, c, rate: q.log_exponential_score(jnp.log(c * jnp.expm1(rate * x))),
)
_elementwise(
    dist.Pareto,
    "scale alpha",
    lambda z, scale, alpha: _inside(scale * jnp.exp(q.exponential(z) / alpha), scale, jnp.inf),
    lambda x, scale, alpha: q.log_exponential_score(jnp.log(alpha * _log_ratio(x, scale))),
)
_elementwise(
    dist.HalfNormal,
    "scale",
    lambda z, scale: _positive(scale * q.half_normal(z)),
    lambda x, scale: q.half_normal_score(x / scale),
)
_elementwise(
    dist.HalfCauchy,
    "scale",
    lambda z, scale: _positive(scale * _half_cauchy(z)),
    lambda x, scale: _half_cauchy_score(x / scale),
)
_elementwise(
    dist.Levy,
    "loc scale",
    lambda z, loc, scale: _inside(loc + scale / jnp.square(q.half_normal(-z)), loc, jnp.inf),
    lambda x, loc, scale: -q.half_normal_score(jnp.sqrt(scale / (x - loc))),
)
_elementwise(
    dist.Gamma,
    "concentration rate",
    lambda z, a, rate: _positive(jnp.exp(q.gamma(z, a) - jnp.log(rate))),
    lambda x, a, rate: q.gamma_score(jnp.log(rate) + jnp.log(x), a),
)
_elementwise(
    dist.InverseGamma,
    "concentration rate",
    lambda z, a, rate: _positive(jnp.exp(jnp.log(rate) - q.gamma(-z, a))),
    lambda x, a, rate: -q.gamma_score(jnp.log(rate) - jnp.log(x), a),
)
_elementwise(
    dist.Beta,
    "concentration1 concentration0",
    lambda z, a, b: _inside(_sigmoid(q.beta(z, a, b)), 0.0, 1.0),
    lambda x, a, b: q.beta_score(jnp.log(x) - jnp.log1p(-x), a, b),
)
_elementwise(dist.Kumaraswamy, "concentration1 concentration0", _kumaraswamy, _kumaraswamy_score)


# ----------------------------------------------------------------------------------------------------
# Truncation of a symmetric location-scale family
# ----------------------------------------------------------------------------------------------------

_BASES: dict[type, Callable] = {
    dist.Normal: lambda base, shape, dtype: q.normal(),
    dist.Cauchy: lambda base, shape, dtype: q.cauchy(),
    dist.Laplace: lambda base, shape, dtype: q.laplace(),
    dist.Logistic: lambda base, shape, dtype: q.logistic(),
    dist.SoftLaplace: lambda base, shape, dtype: q.soft_laplace(),
    dist.StudentT: lambda base, shape, dtype: q.student_t(jnp.broadcast_to(jnp.asarray(base.df, dtype), shape)),
}


def _truncation(fn, array):
    """Family, location, scale and bounds of a truncated distribution, as arrays like `array`."""
    base = fn.base_dist
    family = next(make for cls, make in _BASES.items() if isinstance(base, cls))
    values = (base.loc, base.scale, getattr(fn, "low", -math.inf), getattr(fn, "high", math.inf))
    values = (jnp.broadcast_to(jnp.asarray(v, array.dtype), array.shape) for v in values)
    return family(base, array.shape, array.dtype), *values


def _from_standard_truncated(fn, z):
    z = _checked(fn, z, fn.shape(), "score")
    family, loc, scale, low, high = _truncation(fn, z)
    a, b = (low - loc) / scale, (high - loc) / scale
    # Below the median count from `low`, above it from `high`: the same problem reflected. Near a bound the
    # distance from it is what is accurate, elsewhere the distance from the location.
    lower = z <= 0
    sign = jnp.where(lower, 1.0, -1.0)
    value, offset = q.truncated_lower(family, -jnp.abs(z), jnp.where(lower, a, -b), jnp.where(lower, b, -a))
    at_bound = q.nearer_bound(value, offset)
    anchor = jnp.where(at_bound, jnp.where(lower, low, high), loc)
    return _inside(anchor + sign * scale * jnp.where(at_bound, offset, value), low, high)


def _to_standard_truncated(fn, value):
    value = _checked(fn, value, fn.shape(), "value")
    family, loc, scale, low, high = _truncation(fn, value)
    distances = ((value - loc) / scale, (value - low) / scale, (high - value) / scale)
    return q.truncated_score(family, *distances, (low - loc) / scale, (high - loc) / scale)


for _cls in (
    truncated.LeftTruncatedDistribution,
    truncated.RightTruncatedDistribution,
    truncated.TwoSidedTruncatedDistribution,
):
    from_standard.register(_cls, _from_standard_truncated)
    to_standard.register(_cls, _to_standard_truncated)


# ----------------------------------------------------------------------------------------------------
# Multivariate normals
# ----------------------------------------------------------------------------------------------------


@from_standard.register
def _(fn: dist.MultivariateNormal, z):
    z = _checked(fn, z, fn.shape(), "score")
    loc, tril = _mean_and_factor(fn, fn.scale_tril, z)
    return loc + jnp.einsum("...ij,...j->...i", tril, z)


@to_standard.register
def _(fn: dist.MultivariateNormal, value):
    value = _checked(fn, value, fn.shape(), "value")
    loc, tril = _mean_and_factor(fn, fn.scale_tril, value)
    return solve_triangular(tril, (value - loc)[..., None], lower=True)[..., 0]


@from_standard.register
def _(fn: dist.LowRankMultivariateNormal, z):
    z = _checked(fn, z, fn.shape(), "score")
    loc, factor = _mean_and_factor(fn, fn.cov_factor, z)
    scale = jnp.sqrt(jnp.broadcast_to(jnp.asarray(fn.cov_diag, z.dtype), z.shape))
    return loc + scale * _low_rank_root(factor / scale[..., None], z, lambda s: 1.0 / (1.0 + s))


@to_standard.register
def _(fn: dist.LowRankMultivariateNormal, value):
    value = _checked(fn, value, fn.shape(), "value")
    loc, factor = _mean_and_factor(fn, fn.cov_factor, value)
    scale = jnp.sqrt(jnp.broadcast_to(jnp.asarray(fn.cov_diag, value.dtype), value.shape))
    return _low_rank_root(factor / scale[..., None], (value - loc) / scale, lambda s: -1.0 / (s * (1.0 + s)))


def _mean_and_factor(fn, factor, array):
    factor = jnp.asarray(factor, array.dtype)
    factor = jnp.broadcast_to(factor, fn.batch_shape + factor.shape[-2:])
    return jnp.broadcast_to(jnp.asarray(fn.loc, array.dtype), array.shape), factor


def _low_rank_root(factor, x, weight):
    """``x + A V w(s) V^T A^T x`` for ``A^T A = V (s^2 - 1) V^T``: the symmetric root of ``I + A A^T``, or its
    inverse.

    The root is ``w(s) = (s - 1) / (s^2 - 1) = 1 / (s + 1)``, the inverse root ``(1/s - 1) / (s^2 - 1)``.
    """
    values, vectors = jnp.linalg.eigh(jnp.einsum("...ki,...kj->...ij", factor, factor))
    basis = jnp.einsum("...ki,...ij->...kj", factor, vectors)
    s = jnp.sqrt(1.0 + jnp.maximum(values, 0.0))
    return x + jnp.einsum("...kj,...j->...k", basis, weight(s) * jnp.einsum("...kj,...k->...j", basis, x))


# ----------------------------------------------------------------------------------------------------
# Wrappers
# ----------------------------------------------------------------------------------------------------


@standard_shape.register
def _(fn: dist.Independent):
    return standard_shape(fn.base_dist)


@from_standard.register
def _(fn: dist.Independent, z):
    return from_standard(fn.base_dist, z)


@to_standard.register
def _(fn: dist.Independent, value):
    return to_standard(fn.base_dist, value)


@standard_shape.register
def _(fn: dist.ExpandedDistribution):
    base = fn.base_dist
    return fn.batch_shape + standard_shape(base)[len(base.batch_shape) :]


@from_standard.register
def _(fn: dist.ExpandedDistribution, z):
    z = _checked(fn, z, standard_shape(fn), "score")
    return _over_copies(fn, lambda one: from_standard(fn.base_dist, one), z)


@to_standard.register
def _(fn: dist.ExpandedDistribution, value):
    value = _checked(fn, value, fn.shape(), "value")
    return _over_copies(fn, lambda one: to_standard(fn.base_dist, one), value)


def _over_copies(fn, apply, array):
    """Apply a map of the base distribution to every independent copy that an expanded distribution holds.

    Copies are the leading new dimensions, and every dimension where the base has size 1 and the expansion
    more. All are moved to the front, mapped over as one, and moved back.
    """
    base_batch = fn.base_dist.batch_shape
    lead = len(fn.batch_shape) - len(base_batch)
    widened = [lead + i for i, size in enumerate(base_batch) if fn.batch_shape[lead + i] != size]
    copies = (*range(lead), *widened)
    front = jnp.moveaxis(array, copies, range(len(copies)))
    sizes = front.shape[: len(copies)]
    own = base_batch + array.shape[len(fn.batch_shape) :]
    mapped = jax.vmap(apply)(front.reshape(math.prod(sizes), *own))
    event = mapped.shape[1 + len(base_batch) :]
    kept = tuple(size for i, size in enumerate(base_batch) if lead + i not in widened)
    return jnp.moveaxis(mapped.reshape(sizes + kept + event), range(len(copies)), copies)


@standard_shape.register
def _(fn: dist.TransformedDistribution):
    return standard_shape(fn.base_dist)


@from_standard.register
def _(fn: dist.TransformedDistribution, z):
    if _folds(fn):
        raise UnsupportedPriorError(_reason(fn))
    value = from_standard(fn.base_dist, z)
    with jax.numpy_rank_promotion("allow"):  # the transforms are NumPyro's, and rely on it
        for transform in fn.transforms:
            value = transform(value)
    return jnp.asarray(value, jnp.result_type(z))


@to_standard.register
def _(fn: dist.TransformedDistribution, value):
    if _folds(fn):
        raise UnsupportedPriorError(_reason(fn))
    dtype = jnp.result_type(value)
    with jax.numpy_rank_promotion("allow"):
        for transform in reversed(fn.transforms):
            value = transform.inv(value)
    return to_standard(fn.base_dist, jnp.asarray(value, dtype))
