"""Two gradient-free moves of one half of the ensemble that leave the target exactly invariant.

Both use a reference R fitted to the *other* half, so that R is a constant while this half moves. Attach to every
particle a label ``(c, s) ~ R(c, s | z)``, component and scale; then the target is ``(pi / R)(z) R(c, s, z)``.

- Jump: draw new labels from R and keep the particle's place relative to its ellipse, or draw that too, which is
  an independence proposal; accept
  with ``(pi / R)(z') / (pi / R)(z)``. This is how particles pass between modes; where R is close to the target, fresh
  places forget the old ones at once.
- Slice: given the labels, R is a Gaussian: elliptical slice sampling (Murray, Adams & MacKay 2010, figure 2) with
  the residual ``log pi - log R`` (Nishihara, Murray & Adams 2014, section 2).
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from enkg_ppl.evaluation._blocks import in_blocks
from enkg_ppl.mixtures._student import Reference
from enkg_ppl.refinement._target import Target
from enkg_ppl.refinement.moves._space import Group, Space
from enkg_ppl.types import AnyArray, Ensemble

MAX_SHRINKS = 60  # a bracket that has shrunk this often is at the particle itself


class _Slice(NamedTuple):
    """Elliptical slice moves under way, one a particle."""

    c: Int[AnyArray, " particles"]
    s: Float[AnyArray, " particles"]
    u: Ensemble  # where the particle is on its ellipse
    v: Ensemble  # the other axis of the ellipse
    threshold: Float[AnyArray, " particles"]
    low: Float[AnyArray, " particles"]
    high: Float[AnyArray, " particles"]
    angle: Float[AnyArray, " particles"]
    proposal: Ensemble
    pending: Bool[AnyArray, " particles"]


def _residual(target: Target, reference: Reference, group: Group) -> Float[AnyArray, " particles"]:
    return jax.vmap(lambda particle: target.log_prob(particle) - reference.log_prob(particle.position))(group)


def _where(accept: Bool[AnyArray, " particles"], new: Group, old: Group) -> Group:
    return jax.tree.map(lambda a, b: jnp.where(accept.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


@eqx.filter_jit
def _propose_jump(reference: Reference, position: Ensemble, fresh, uniforms, chi2, places) -> Ensemble:
    k = reference.num_components

    def propose(z, fresh, uniforms, chi2, place):
        u = reference.to_ellipse(z, *reference.draw_labels_given(uniforms[:k], chi2[0], z))
        return reference.from_ellipse(jnp.where(fresh, place, u), *reference.draw_labels(uniforms[k:], chi2[1]))

    return jax.vmap(propose)(position, fresh, uniforms, chi2, places)


@eqx.filter_jit
def _accept_jump(target: Target, reference: Reference, group: Group, proposal: Group, uniforms):
    log_ratio = _residual(target, reference, proposal) - _residual(target, reference, group)
    accept = jnp.log(uniforms) < log_ratio
    return _where(accept, proposal, group), accept


@eqx.filter_jit
def _begin_slice(target: Target, reference: Reference, group: Group, uniforms, chi2, v) -> _Slice:
    n = group.position.shape[0]
    c, s = jax.vmap(reference.draw_labels_given)(uniforms[:, 2:], chi2, group.position)
    u = jax.vmap(reference.to_ellipse)(group.position, c, s)
    threshold = _residual(target, reference, group) + jnp.log(uniforms[:, 0])
    angle = 2 * jnp.pi * uniforms[:, 1]
    proposal = _on_ellipse(reference, u, v, c, s, angle)
    return _Slice(c, s, u, v, threshold, angle - 2 * jnp.pi, angle, angle, proposal, jnp.ones(n, bool))


def _on_ellipse(reference: Reference, u: Ensemble, v: Ensemble, c, s, angle) -> Ensemble:
    point = u * jnp.cos(angle)[:, None] + v * jnp.sin(angle)[:, None]
    return jax.vmap(reference.from_ellipse)(point, c, s)


@eqx.filter_jit
def _advance_slice(target: Target, reference: Reference, group: Group, move: _Slice, proposed: Group, uniforms):
    """Accept the proposals above their slice, shrink the other brackets and propose again."""
    accept = move.pending & (_residual(target, reference, proposed) > move.threshold)
    group = _where(accept, proposed, group)
    low = jnp.where(move.angle < 0, move.angle, move.low)
    high = jnp.where(move.angle < 0, move.high, move.angle)
    angle = low + (high - low) * uniforms
    pending = move.pending & ~accept
    proposal = _on_ellipse(reference, move.u, move.v, move.c, move.s, angle)
    return group, move._replace(low=low, high=high, angle=angle, proposal=proposal, pending=pending)


def jump(
    rng: np.random.Generator,
    space: Space,
    target: Target,
    reference: Reference,
    group: Group,
    fresh: Bool[np.ndarray, " particles"],
) -> tuple[Group, Bool[np.ndarray, " particles"]]:
    """Jump of every particle, one forward evaluation each; `fresh`: which are independence proposals.

    Returns the group and which particles moved: none where the evaluations do not suffice.
    """
    (n, d), dtype, block = group.position.shape, group.position.dtype, space.block
    if not space.affords(n):
        return group, np.zeros(n, bool)
    k, df = reference.num_components, float(reference.df)
    labels, chi2 = rng.random((n, 2 * k)).astype(dtype), rng.chisquare([df + d, df], (n, 2)).astype(dtype)
    places = rng.standard_normal((n, d)).astype(dtype)
    proposal = space.group(in_blocks(_propose_jump, block, (reference,), group.position, fresh, labels, chi2, places))
    return in_blocks(_accept_jump, block, (target, reference), group, proposal, rng.random(n).astype(dtype))


def slice_move(rng: np.random.Generator, space: Space, target: Target, reference: Reference, group: Group) -> Group:
    """Elliptical slice move of every particle; evaluates only the particles that have not moved yet."""
    (n, d), dtype, block = group.position.shape, group.position.dtype, space.block
    k, df = reference.num_components, float(reference.df)
    labels, chi2 = rng.random((n, k + 2)).astype(dtype), rng.chisquare(df + d, n).astype(dtype)
    axes = rng.standard_normal((n, d)).astype(dtype)
    move = in_blocks(_begin_slice, block, (target, reference), group, labels, chi2, axes)
    # Only the particles still pending go on, so that the last few cost one block.
    moved, left = Group(*(np.array(a) for a in group)), np.arange(n)
    for _ in range(MAX_SHRINKS):
        if len(left) == 0 or not space.affords(len(left)):
            break
        here = Group(*(a[left] for a in moved))
        shrinks = rng.random(len(left)).astype(dtype)
        proposed = space.group(move.proposal)
        here, move = in_blocks(_advance_slice, block, (target, reference), here, move, proposed, shrinks)
        for kept, new in zip(moved, here, strict=True):
            kept[left] = new
        keep = move.pending
        left, move = left[keep], jax.tree.map(lambda a, keep=keep: a[keep], move)
    return moved
