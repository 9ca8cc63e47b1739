"""Vorticity fields from a sparse, noisy look at what became of them, under a trained prior: 1,024 unknowns, 256 data.

The settings and truths of `models.navier_stokes`. Nobody knows these posteriors: a run is judged by the field that its
data come from (spread over skill; continuous ranked probability score, here in units of vorticity, not of the field's
standard deviation) and by how its draws fit the data. As in the README's table, but for the random numbers, is

    python -m validation run --suite navier_stokes/T1_low --method enkg-kalman --budget 3000 --float32

Without `--float32` the simulator computes in 64 bits, which takes more than twice as long.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from enkg_ppl import InverseProblem
from models import kolmogorov, navier_stokes
from models.navier_stokes import NUM_PARTICLES, NUM_TRUTHS, SETTINGS
from validation.target import Draws, Target, Truth

# The network's file of settings has a sum of its weights in it.
FILES = (*(Path(module.__file__ or "") for module in (kolmogorov, navier_stokes)), kolmogorov.WEIGHTS / "prior.json")


def targets() -> list[Target]:
    """``navier_stokes/<setting>/<1..8>``."""
    return [
        Target(
            name=f"navier_stokes/{setting}/{number}",
            suites=("navier_stokes", f"navier_stokes/{setting}"),
            truth=functools.partial(_truth, number),
            problem=functools.partial(_problem, setting, number),
            misfit=functools.partial(_misfit, setting, number),
            num_particles=NUM_PARTICLES,
            files=FILES,
        )
        for setting in SETTINGS
        for number in range(1, NUM_TRUTHS + 1)
    ]


def _truth(number: int) -> Truth:
    field = np.asarray(navier_stokes.truths()[number - 1], float)
    return Truth(field[None], source="the field that the data come from", simulated_from=field)


@functools.cache
def _problem(setting: str, number: int) -> InverseProblem:
    return navier_stokes.problem(SETTINGS[setting], navier_stokes.truths()[number - 1], number - 1)


def _misfit(setting: str, number: int, draws: Draws) -> float:
    return navier_stokes.chi2(draws, _problem(setting, number))
