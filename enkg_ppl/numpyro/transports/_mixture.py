"""Mixtures of scalar components, each with a transport of its own.

Tails are weighted sums of the components' tails, which their scores give exactly; a quantile of the mixture lies
between the smallest and the largest of the components' quantiles at the same score.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from enkg_ppl import quantiles as q
from enkg_ppl.numpyro.transports._base import (
    checked,
    finite,
    from_standard,
    inside,
    like,
    log_density_like,
    to_standard,
)
from enkg_ppl.numpyro.transports._refusal import UnsupportedPriorError, reason

MIXTURES = (dist.MixtureSameFamily, dist.MixtureGeneral)


def _over_components(fn, apply, array):
    """``apply(component, array)`` for every component, stacked along a new last axis."""
    if fn.event_shape:
        raise UnsupportedPriorError(reason(fn))
    if isinstance(fn, dist.MixtureGeneral):
        parts = [apply(component.expand(fn.batch_shape), array) for component in fn.component_distributions]
        return jnp.stack(parts, -1)
    shape = (*fn.batch_shape, fn.mixture_size)
    return apply(fn.component_distribution.expand(shape), jnp.broadcast_to(array[..., None], shape))


def _score(component, value):
    """The score of a value, infinite outside the component's support."""
    low, high = (
        jnp.broadcast_to(jnp.asarray(getattr(component.support, name, bound), value.dtype), value.shape)
        for name, bound in (("lower_bound", -jnp.inf), ("upper_bound", jnp.inf))
    )
    score = to_standard(component, inside(value, low, high))
    return jnp.where(value <= low, -jnp.inf, jnp.where(value >= high, jnp.inf, score))


def _log_tails(fn, x):
    scores = _over_components(fn, _score, x)
    log_weights = jax.nn.log_softmax(like(fn.mixing_distribution.logits, scores, scores.shape))
    both = logsumexp(log_weights[None] + jnp.stack([q.log_ndtr(scores), q.log_ndtr(-scores)]), axis=-1)
    return jnp.minimum(both, 0.0)


def _from_standard(fn, z):
    z = checked(fn, z, fn.shape(), "score")
    quantiles = _over_components(fn, from_standard, z)
    low, high = finite(quantiles.min(-1)), finite(quantiles.max(-1))

    def tails(x):
        return *_log_tails(fn, x), log_density_like(fn, x)

    return q.invert(tails, z, low, high, low + 0.5 * (high - low))


def _to_standard(fn, value):
    value = checked(fn, value, fn.shape(), "value")
    return q.normal_score(*_log_tails(fn, value))


for _cls in MIXTURES:
    from_standard.register(_cls, _from_standard)
    to_standard.register(_cls, _to_standard)
