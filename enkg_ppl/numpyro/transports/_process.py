"""Gaussian random walks and discretised stochastic differential equations: scores are the increments."""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from enkg_ppl.numpyro.transports._base import checked, from_standard, like, standard_shape, to_standard


@from_standard.register
def _(fn: dist.GaussianRandomWalk, z):
    z = checked(fn, z, fn.shape(), "score")
    return jnp.cumsum(z, -1) * like(fn.scale, z, fn.batch_shape)[..., None]


@to_standard.register
def _(fn: dist.GaussianRandomWalk, value):
    value = checked(fn, value, fn.shape(), "value")
    return jnp.diff(value, axis=-1, prepend=0) / like(fn.scale, value, fn.batch_shape)[..., None]


@standard_shape.register
def _(fn: dist.EulerMaruyama):
    first = math.prod(standard_shape(fn.init_dist)[len(fn.init_dist.batch_shape) :])
    return (*fn.batch_shape, first + math.prod((fn.event_shape[0] - 1, *fn.event_shape[1:])))


@from_standard.register
def _(fn: dist.EulerMaruyama, z):
    z = checked(fn, z, standard_shape(fn), "score")
    init = fn.init_dist.expand(fn.batch_shape)
    score_shape = standard_shape(init)
    first = math.prod(score_shape[len(fn.batch_shape) :])
    start = from_standard(init, z[..., :first].reshape(score_shape))
    noise = z[..., first:].reshape(*fn.batch_shape, fn.event_shape[0] - 1, *fn.event_shape[1:])

    def walk(start, noise, t):
        def step(y, now):
            noise, time, dt = now
            drift, diffusion = _coefficients(fn, y, time)
            y = y + dt * drift + jnp.sqrt(dt) * diffusion * noise
            return y, y

        path = lax.scan(step, start, (noise, t[:-1], jnp.diff(t)))[1]
        return jnp.concatenate([start[None], path])

    return _over_batch(fn, walk, start, noise, like(fn.t, z, fn.shape()[: len(fn.batch_shape) + 1]))


@to_standard.register
def _(fn: dist.EulerMaruyama, value):
    value = checked(fn, value, fn.shape(), "value")
    init = fn.init_dist.expand(fn.batch_shape)
    num_batch = len(fn.batch_shape)
    first = to_standard(init, lax.index_in_dim(value, 0, num_batch, keepdims=False))

    def increments(path, t):
        def score(before, after, time, dt):
            drift, diffusion = _coefficients(fn, before, time)
            return (after - before - dt * drift) / (jnp.sqrt(dt) * diffusion)

        return jax.vmap(score)(path[:-1], path[1:], t[:-1], jnp.diff(t)).ravel()

    noise = _over_batch(fn, increments, value, like(fn.t, value, fn.shape()[: num_batch + 1]))
    return jnp.concatenate([first.reshape(*fn.batch_shape, -1), noise], -1)


def _coefficients(fn, y, time):
    """Drift and diffusion, of the shape and dtype of `y`."""
    with jax.numpy_rank_promotion("allow"):  # the user's function, which may rely on it
        drift, diffusion = fn.sde_fn(y, time)
    return like(drift, y, y.shape), like(diffusion, y, y.shape)


def _over_batch(fn, apply, *arrays):
    """Apply a map of one element of the batch to all of them."""
    for _ in fn.batch_shape:
        apply = jax.vmap(apply)
    return apply(*arrays)
