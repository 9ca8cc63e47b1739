"""The classical Runge-Kutta step, for twins of simulators whose steps are of one length."""

from __future__ import annotations

from collections.abc import Callable

import jax


def runge_kutta(field: Callable[[jax.Array], jax.Array], state: jax.Array, step: float) -> jax.Array:
    """The state a `step` later, where ``field(state)`` is its rate of change; an error of order step^5."""
    k1 = field(state)
    k2 = field(state + step / 2 * k1)
    k3 = field(state + step / 2 * k2)
    k4 = field(state + step * k3)
    return state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
