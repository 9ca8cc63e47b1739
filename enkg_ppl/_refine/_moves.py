"""Two gradient-free moves of one half of the ensemble that leave the target exactly invariant.

Both use a reference R fitted to the *other* half, so that R is a constant while this half moves. Attach to every
particle a label ``(c, s) ~ R(c, s | z)``, component and scale; then the target is ``(pi / R)(z) R(c, s, z)``.

- Label jump: draw new labels from R and keep the particle's place relative to its ellipse; accept with
  ``(pi / R)(z') / (pi / R)(z)``. This is how particles pass between modes.
- Slice: given the labels, R is a Gaussian: elliptical slice sampling (Murray, Adams & MacKay 2010, figure 2) with
  the residual ``log pi - log R`` (Nishihara, Murray & Adams 2014, section 2).
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from enkg_ppl._forward import Evaluator
from enkg_ppl._random import normals, uniforms
from enkg_ppl._refine._reference import StudentMixture
from enkg_ppl._types import Ensemble, Key, Scalar, Vector

MAX_SHRINKS = 60  # a bracket that has shrunk this often is at the particle itself


class Target(eqx.Module):
    """The tempered posterior between a reference and the posterior, as a log density of (z, log likelihood).

    ``log pi = (1 - beta) log q(z) + beta (log N(z; 0, I) + log L)``, where q is the prior itself (`start` None:
    ordinary tempering of the likelihood) or a mixture that covers the posterior.
    """

    beta: Scalar
    start: Start | None

    def log_prob(self, z: Vector, log_likelihood: Scalar) -> Scalar:
        # Where beta is 0 a likelihood of zero does not count yet.
        tempered = jnp.where(self.beta > 0, self.beta * log_likelihood, 0.0)
        if self.start is None:
            return log_standard_normal(z) + tempered
        return (1 - self.beta) * self.start.log_prob(z) + self.beta * log_standard_normal(z) + tempered


class Start(eqx.Module):
    """A proposal that covers the posterior: a fitted mixture with a share of the prior, so that no mode is lost."""

    mixture: StudentMixture
    prior_share: float

    def log_prob(self, z: Vector) -> Scalar:
        return jnp.logaddexp(
            jnp.log1p(-self.prior_share) + self.mixture.log_prob(z),
            jnp.log(self.prior_share) + log_standard_normal(z),
        )

    def sample(self, key: Key, num_particles: int) -> Ensemble:
        key_uniform, key_normal = jr.split(key)
        k, d = self.mixture.means.shape
        dtype = self.mixture.means.dtype
        numbers = uniforms(key_uniform, (num_particles, k + 1), dtype)
        return _sample_start(self, numbers, normals(key_normal, (num_particles, self.mixture.df + 2 * d), dtype))


@eqx.filter_jit
def _sample_start(start: Start, uniforms, normals) -> Ensemble:
    def sample(uniforms, normals):
        df, d = start.mixture.df, start.mixture.means.shape[1]
        labels = start.mixture.draw_labels(uniforms[1:], normals[:df])
        near = start.mixture.from_ellipse(normals[df : df + d], *labels)
        return jnp.where(uniforms[0] < start.prior_share, normals[df + d :], near)

    return jax.vmap(sample)(uniforms, normals)


def log_standard_normal(z: Vector) -> Scalar:
    return -0.5 * jnp.sum(z**2) - 0.5 * z.shape[0] * jnp.log(2 * jnp.pi)


class Group(NamedTuple):
    """One half of the ensemble."""

    z: Ensemble
    log_likelihood: Float[Array, " particles"]


class _Slice(NamedTuple):
    """Elliptical slice moves under way, one a particle."""

    c: Int[Array, " particles"]
    s: Float[Array, " particles"]
    u: Ensemble  # where the particle is on its ellipse
    v: Ensemble  # the other axis of the ellipse
    threshold: Float[Array, " particles"]
    low: Float[Array, " particles"]
    high: Float[Array, " particles"]
    angle: Float[Array, " particles"]
    proposal: Ensemble
    pending: Bool[Array, " particles"]


def _residual(target: Target, reference: StudentMixture, z: Ensemble, log_likelihood):
    return jax.vmap(lambda z, ll: target.log_prob(z, ll) - reference.log_prob(z))(z, log_likelihood)


@eqx.filter_jit
def _propose_jump(reference: StudentMixture, z: Ensemble, uniforms, normals) -> Ensemble:
    k, d = reference.means.shape

    def propose(z, uniforms, normals):
        u = reference.to_ellipse(z, *reference.draw_labels_given(uniforms[:k], normals[: reference.df + d], z))
        return reference.from_ellipse(u, *reference.draw_labels(uniforms[k:], normals[reference.df + d :]))

    return jax.vmap(propose)(z, uniforms, normals)


@eqx.filter_jit
def _accept_jump(target: Target, reference: StudentMixture, group: Group, proposal: Group, uniforms):
    log_ratio = _residual(target, reference, *proposal) - _residual(target, reference, *group)
    accept = jnp.log(uniforms) < log_ratio
    z = jnp.where(accept[:, None], proposal.z, group.z)
    return Group(z, jnp.where(accept, proposal.log_likelihood, group.log_likelihood)), jnp.mean(accept)


@eqx.filter_jit
def _begin_slice(target: Target, reference: StudentMixture, group: Group, uniforms, normals) -> _Slice:
    n, d = group.z.shape
    c, s = jax.vmap(reference.draw_labels_given)(uniforms[:, 2:], normals[:, d:], group.z)
    u, v = jax.vmap(reference.to_ellipse)(group.z, c, s), normals[:, :d]
    threshold = _residual(target, reference, *group) + jnp.log(uniforms[:, 0])
    angle = 2 * jnp.pi * uniforms[:, 1]
    proposal = _on_ellipse(reference, u, v, c, s, angle)
    return _Slice(c, s, u, v, threshold, angle - 2 * jnp.pi, angle, angle, proposal, jnp.ones(n, bool))


def _on_ellipse(reference: StudentMixture, u: Ensemble, v: Ensemble, c, s, angle) -> Ensemble:
    point = u * jnp.cos(angle)[:, None] + v * jnp.sin(angle)[:, None]
    return jax.vmap(reference.from_ellipse)(point, c, s)


@eqx.filter_jit
def _advance_slice(target: Target, reference: StudentMixture, group: Group, move: _Slice, log_likelihood, uniforms):
    """Accept the proposals above their slice, shrink the other brackets and propose again."""
    above = _residual(target, reference, move.proposal, log_likelihood) > move.threshold
    accept = move.pending & above
    group = Group(
        jnp.where(accept[:, None], move.proposal, group.z),
        jnp.where(accept, log_likelihood, group.log_likelihood),
    )
    low = jnp.where(move.angle < 0, move.angle, move.low)
    high = jnp.where(move.angle < 0, move.high, move.angle)
    angle = low + (high - low) * uniforms
    pending = move.pending & ~accept
    proposal = _on_ellipse(reference, move.u, move.v, move.c, move.s, angle)
    return group, move._replace(low=low, high=high, angle=angle, proposal=proposal, pending=pending)


def jump(key: Key, evaluate: Evaluator, target: Target, reference: StudentMixture, group: Group):
    """Label jump of every particle: one forward evaluation each. Returns the group and the share that moved."""
    key_labels, key_scales, key_accept = jr.split(key, 3)
    (n, d), dtype = group.z.shape, group.z.dtype
    k, df = reference.means.shape[0], reference.df
    labels, scales = uniforms(key_labels, (n, 2 * k), dtype), normals(key_scales, (n, 2 * df + d), dtype)
    z = _propose_jump(reference, group.z, labels, scales)
    proposal = Group(z, evaluate.log_likelihood(z))
    return _accept_jump(target, reference, group, proposal, uniforms(key_accept, (n,), dtype))


def slice_move(key: Key, evaluate: Evaluator, target: Target, reference: StudentMixture, group: Group) -> Group:
    """Elliptical slice move of every particle; evaluates only the particles that have not moved yet."""
    key_uniform, key_normal, key_shrink = jr.split(key, 3)
    (n, d), dtype = group.z.shape, group.z.dtype
    numbers = uniforms(key_uniform, (n, reference.means.shape[0] + 2), dtype)
    axes = normals(key_normal, (n, reference.df + 2 * d), dtype)
    shrinks = uniforms(key_shrink, (MAX_SHRINKS, n), dtype)
    move = _begin_slice(target, reference, group, numbers, axes)
    for i in range(MAX_SHRINKS):
        pending = np.asarray(move.pending)
        if not pending.any():
            break
        log_likelihood = evaluate.log_likelihood(move.proposal, pending)
        group, move = _advance_slice(target, reference, group, move, log_likelihood, shrinks[i])
    return group
