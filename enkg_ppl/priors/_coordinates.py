"""Whole ensembles between x, where the prior lives, and z, where it is N(0, I)."""

from __future__ import annotations

import equinox as eqx

from enkg_ppl.evaluation._blocks import in_blocks
from enkg_ppl.priors._base import Prior
from enkg_ppl.priors._chunks import chunked_vmap
from enkg_ppl.types import Ensemble


@eqx.filter_jit
def _decode(prior: Prior, z: Ensemble) -> Ensemble:
    return chunked_vmap(prior, lambda z: prior.decode(z), z)


@eqx.filter_jit
def _encode(prior: Prior, x: Ensemble) -> Ensemble:
    return chunked_vmap(prior, lambda x: prior.encode(x), x)


@eqx.filter_jit
def _encode_roughly(prior: Prior, x: Ensemble) -> Ensemble:
    return chunked_vmap(prior, lambda x: prior.encode(x, 0), x)


def decode_all(prior: Prior, z: Ensemble, block: int) -> Ensemble:
    """x of every z, `block` particles at a time."""
    return in_blocks(_decode, block, (prior,), z)


def encode_all(prior: Prior, x: Ensemble, block: int, exact: bool = False) -> Ensemble:
    """z of every x: to begin from, a fifth of the cost, or whose x is x."""
    return in_blocks(_encode if exact else _encode_roughly, block, (prior,), x)
