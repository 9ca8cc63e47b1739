"""Inversion of a distribution that is known by its tails and density, to the last bit from anywhere."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from enkg_ppl.quantiles._tails import Values, _log_tails

# Bisection of the bit patterns needs at most 64 steps; Newton's, between them, usually no more than 10.
MAX_STEPS = 150


def invert(tails: Callable, z: Values, low: Values, high: Values, start: Values) -> Values:
    """The value in ``[low, high]`` whose tail probabilities are those of a score.

    Newton on the log of the smaller tail, safeguarded as in Numerical Recipes (section 9.4): where a step leaves the
    bracket, or the last one did not halve the error, the bracket is halved. It is halved in the order of the floats,
    not in their distance, so that a value of 1e-300 between 0 and 1 is found as fast as any other.

    Args:
        tails: ``tails(x)`` gives the logs of the lower tail, of the upper tail and of the density.
        z: score.
        low: finite lower end of a bracket of the value.
        high: finite upper end.
        start: initial value between them.
    """
    lower = z <= 0
    log_p, log_q = _log_tails(z)
    target = jnp.where(lower, log_p, log_q)
    eps = jnp.finfo(z.dtype).eps
    tolerance = 4.0 * eps * (1.0 - target)

    def evaluate(x):
        log_p, log_q, log_density = tails(x)
        log_tail = jnp.where(lower, log_p, log_q)
        excess = jnp.where(lower, log_tail - target, target - log_tail)  # negative left of the root
        return excess, excess * jnp.exp(log_tail - log_density)

    def unfinished(carry):
        n, _, settled = carry
        return (n < MAX_STEPS) & ~jnp.all(settled)

    def advance(carry):
        n, (low, high, x, last), settled = carry
        excess, step = evaluate(x)
        low, high = jnp.where(excess < 0, x, low), jnp.where(excess < 0, high, x)
        middle, newton = _middle(low, high), x - step
        found = (jnp.abs(excess) <= tolerance) | (jnp.abs(step) <= 0.5 * eps * jnp.abs(x))
        found = found | (middle == low) | (middle == high)
        usable = (newton > low) & (newton < high) & (jnp.abs(excess) < 0.5 * last)
        settled = settled | found
        x = jnp.where(settled, x, jnp.where(usable, newton, middle))
        return n + 1, (low, high, x, jnp.abs(excess)), settled

    state = (low, high, start, jnp.full_like(start, jnp.inf))
    return lax.while_loop(unfinished, advance, (jnp.asarray(0), state, jnp.zeros(z.shape, bool)))[1][2]


def _middle(low: Values, high: Values) -> Values:
    """The float half-way from `low` to `high`, counted in floats."""
    kind = jnp.int64 if low.dtype == jnp.float64 else jnp.int32
    smallest = jnp.iinfo(kind).min

    def swap(i):  # bit patterns of negative floats run backwards; the map is its own inverse
        return jnp.where(i < 0, smallest - i, i)

    a, b = swap(lax.bitcast_convert_type(low, kind)), swap(lax.bitcast_convert_type(high, kind))
    return lax.bitcast_convert_type(swap((a >> 1) + (b >> 1) + (a & b & 1)), low.dtype)
