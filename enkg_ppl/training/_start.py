"""What a run of training starts from, in a few numbers, so that a checkpoint goes on with its own run alone.

Names of classes cannot tell a network from another with the same shapes, an optimiser from another, or a centred data
set from one that is not; a run that goes on with the wrong one ends without a word in weights that nobody asked for.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax

from enkg_ppl.training._statistics import Statistics

# Two readings of one stream of data may differ by the events that they begin with, in standard errors; and what
# another processor computes differs by rounding.
ERRORS, ROUNDING = 8.0, 1e-3


def starting_point(params, static, preconditioning, optimizer, summary: Statistics, num_events: int) -> dict[str, Any]:
    """JSON values by a name for people. `optimizer`: the user's own, or None. `summary`: of `num_events` events."""
    arrays, rest = eqx.partition(preconditioning, eqx.is_array)
    return {
        "network": _text(static),
        "starting weights": _number(params),
        "preconditioning": [_text(rest), _number(arrays)],
        "optimizer": None if optimizer is None else _first_step(optimizer, params),
        "centring and scale of the data": [np.ravel(summary.shift).tolist(), float(summary.spread), num_events],
    }


def check_starting_point(path: Path, stored: dict[str, Any] | None, given: dict[str, Any]) -> None:
    """Raises `ValueError` where the checkpoint's run started from something else."""
    for name, value in (stored or {}).items():  # checkpoints of earlier versions have none
        if name not in given or not _agree(value, given[name]):
            raise ValueError(
                f"{path} holds another run, with another {name} than this call has: give another folder, or delete it "
                "to start anew"
            )


def _agree(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=ROUNDING, abs_tol=ROUNDING)
    if not isinstance(a, list):
        return a == b
    if len(a) == 3:  # shift, spread, number of events
        (shift, spread, n), (other, own, m) = a, b
        allowed = ROUNDING + ERRORS / min(n, m) ** 0.5
        close = np.shape(shift) == np.shape(other) and np.all(np.abs(np.subtract(shift, other)) < allowed * spread)
        return bool(close) and abs(own / spread - 1) < allowed
    return all(_agree(x, y) for x, y in zip(a, b, strict=True))


def _text(tree) -> str:
    """A digest of all that is no array: sizes, functions by name, the structure."""
    leaves, structure = jax.tree.flatten(tree)
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", f"{leaves} {structure}").encode()).hexdigest()[:16]


def _number(tree) -> float:
    """A projection of all entries, which another order of them or other values change."""
    total = 0.0
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        flat = np.ravel(np.asarray(leaf, float))
        total += float(flat @ np.cos(i + np.arange(len(flat)))) / max(1, len(flat)) ** 0.5
    return total


def _first_step(optimizer: optax.GradientTransformation, params) -> float:
    """Log of the step that the optimiser makes of a fixed gradient, as its settings are hidden in functions."""
    updates, _ = optimizer.update(jax.tree.map(jax.numpy.cos, params), optimizer.init(params), params)
    return math.log(max(abs(_number(updates)), 1e-300))
