"""The compiled part of training: steps of Adam on the denoising loss, and the held-out loss."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float

from enkg_ppl.training._loss import LogNormalNoise, denoising_loss
from enkg_ppl.types import Key, Scalar

# The averaging window grows with the run until it reaches the half-life asked for, or the early, bad weights would
# stay in it. (Karras et al. 2022 use the same ramp.)
EMA_RAMP = 0.05


class Weights(NamedTuple):
    """What a step changes: the network's parameters, their moving average, and the optimiser's state."""

    params: Any
    average: Any
    optimizer: Any
    step: Array


class Settings(NamedTuple):
    """Numbers that can change without compiling anew."""

    learning_rate: float
    warm_up: float  # steps
    num_steps: float
    ema_half_life: float  # steps


class Frozen:
    """A pytree without arrays, as one hashable object."""

    def __init__(self, tree):
        leaves, self._structure = jax.tree.flatten(tree)
        self._leaves = tuple(leaves)

    def thaw(self):
        return jax.tree.unflatten(self._structure, self._leaves)

    def __eq__(self, other):
        return isinstance(other, Frozen) and (self._leaves, self._structure) == (other._leaves, other._structure)

    def __hash__(self):
        return hash((self._leaves, self._structure))


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: the network's and the preconditioning's structure, the noise levels and the optimiser."""

    network: Frozen
    preconditioning: Frozen
    noise: LogNormalNoise
    max_gradient_norm: float | None
    weight_decay: float
    optimizer: optax.GradientTransformation | None

    def transformation(self) -> optax.GradientTransformation:
        """Up to the learning rate; the user's own optimiser whole."""
        if self.optimizer is not None:
            return self.optimizer
        clip = [] if self.max_gradient_norm is None else [optax.clip_by_global_norm(self.max_gradient_norm)]
        decay = [optax.add_decayed_weights(self.weight_decay)] if self.weight_decay else []
        return optax.chain(*clip, optax.scale_by_adam(), *decay)

    def loss(self, params, arrays, key: Key, events) -> Scalar:
        network = eqx.combine(params, self.network.thaw())
        preconditioning = eqx.combine(arrays, self.preconditioning.thaw())
        return denoising_loss(network, preconditioning, self.noise, key, events)


def learning_rate(step, settings: Settings):
    """Linear from zero over the warm-up, then half a cosine down to zero at the last step."""
    ramp = jnp.minimum(1.0, (step + 1) / jnp.maximum(settings.warm_up, 1))
    progress = (step - settings.warm_up) / jnp.maximum(settings.num_steps - settings.warm_up, 1)
    return settings.learning_rate * ramp * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))


def ema_decay(step, settings: Settings):
    """Share of the past in the moving average: its half-life, at most a share of the steps done so far."""
    half_life = jnp.minimum(settings.ema_half_life, EMA_RAMP * (step + 1))
    return 0.5 ** (1 / jnp.maximum(half_life, 1e-3))


def initial(program: Program, params) -> Weights:
    """Before the first step; the average is a copy, since both are given to the next step."""
    copy = functools.partial(jax.tree.map, lambda leaf: jnp.array(leaf, copy=True))
    return Weights(copy(params), copy(params), program.transformation().init(params), jnp.zeros((), jnp.int32))


def one_step(program: Program, settings: Settings, arrays, key: Key, weights: Weights, events):
    key = jr.fold_in(key, weights.step)
    loss, gradient = jax.value_and_grad(program.loss)(weights.params, arrays, key, events)
    updates, optimizer = program.transformation().update(gradient, weights.optimizer, weights.params)
    if program.optimizer is None:
        rate = learning_rate(weights.step, settings)
        updates = jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates)
    params = optax.apply_updates(weights.params, updates)
    decay = ema_decay(weights.step, settings)
    average = jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype), weights.average, params)
    return Weights(params, average, optimizer, weights.step + 1), loss


@functools.partial(jax.jit, static_argnames="program", donate_argnames="weights")
def advance(
    program: Program, settings: Settings, arrays, key: Key, weights: Weights, batches, num_steps
) -> tuple[Weights, Float[Array, " steps"]]:
    """Up to as many steps as there are batches ``(steps, batch, *event_shape)``, and the loss of each.

    The random numbers of a step follow from `key` and the number of the step, so that it does not matter where a run
    was broken. `num_steps` is data, so that a shorter last call compiles nothing.
    """
    if batches.shape[0] == 1:  # a loop would only stand in the way of the compiler
        weights, loss = one_step(program, settings, arrays, key, weights, batches[0])
        return weights, loss[None]

    def body(i, carry):
        weights, losses = carry
        weights, loss = one_step(program, settings, arrays, key, weights, batches[i])
        return weights, losses.at[i].set(loss)

    return jax.lax.fori_loop(0, num_steps, body, (weights, jnp.zeros(batches.shape[0], batches.dtype)))


@functools.partial(jax.jit, static_argnames="program")
def held_out_loss(program: Program, arrays, key: Key, params, events) -> Scalar:
    return program.loss(params, arrays, key, events)
