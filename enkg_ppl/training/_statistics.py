"""What the prior has to know of its data: centre, spread, and the widest direction."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Up to here the covariance is diagonalised; above, its widest direction is found by iteration.
EXACT_DIM = 512
NUM_ITERATIONS = 30


class Statistics(NamedTuple):
    """`shift` broadcasts against an event; `spread` is one number, because the noise is the same in every direction."""

    shift: np.ndarray
    spread: float
    location: np.ndarray  # (dim,): mean of the events
    scale: float  # sd along the widest direction


def statistics(events: np.ndarray, centre: str, sigma_data: float) -> Statistics:
    """Of events ``(events, *event_shape)``.

    `centre`: "element" (a mean for each element), "channel" (one for each index of the events' first axis) or
    "none". The spread makes the root mean square of ``(x - shift) / spread`` equal to `sigma_data`.
    """
    event_shape = events.shape[1:]
    flat = events.reshape(len(events), math.prod(event_shape)).astype(np.float64)
    location = flat.mean(axis=0)
    mean = location.reshape(event_shape)
    if centre == "element":
        shift = mean
    elif centre == "channel":
        shift = mean.mean(axis=tuple(range(1, len(event_shape))), keepdims=True)
    elif centre == "none":
        shift = np.zeros((1,) * len(event_shape))
    else:
        raise ValueError(f"centre must be 'element', 'channel' or 'none'; got {centre!r}")
    centred = flat - location
    rms = math.sqrt(np.mean(centred**2) + np.mean((mean - shift) ** 2))
    if not rms > 0:
        raise ValueError("data must vary; every event is the same, so there is no prior to learn")
    return Statistics(shift, rms / sigma_data, location, widest_sd(centred))


def widest_sd(centred: np.ndarray) -> float:
    """Standard deviation along the widest principal direction of rows with mean zero."""
    num, dim = centred.shape
    if dim <= EXACT_DIM:
        return math.sqrt(np.linalg.eigvalsh(centred.T @ centred / num)[-1])
    # Few rows in many dimensions look wider along their own widest direction than the distribution is: the
    # direction is taken from one half and the variance along it from the other.
    first, second = centred[::2], centred[1::2]
    direction = np.random.default_rng(0).standard_normal(dim)
    for _ in range(NUM_ITERATIONS):
        direction = first.T @ (first @ direction)
        direction /= np.linalg.norm(direction)
    return math.sqrt(np.mean((second @ direction) ** 2))
