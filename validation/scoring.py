"""Judge one run against the truth: the figures of a row of the table."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
from jaxtyping import Float
from numpyro import handlers

from enkg_ppl import calibration
from validation import metrics
from validation.compare import scalars
from validation.target import Draws, Target, Truth


@dataclasses.dataclass(frozen=True)
class Score:
    """How far draws are from the truth; None where a figure is not defined for the target.

    `c2st`: 0.5 at best. `sliced_w2`, with `sliced_w2_floor` for as many exact draws.
    `mean_worst`, `mean_rms`: error of the mean over the scalars, in posterior sd; `mean_floor`: the worst stays below
    it for exact draws, 19 times of 20. `sd_min`, `sd_max`: sd of the draws over that of the truth.
    `mean_median`, `sd_median`: medians over the scalars, of the absolute error and of the ratio; for images, whose
    hundreds of pixels have a worst one by chance.
    `mode_error`: worst relative error of a mode's mass. `log_evidence_error`: nats.
    Where the data were simulated from known unknowns: `l2_ratio`, how far the mean is from them, over how far the exact
    mean is; `ssr`, spread over skill; `crps`, in the draws' units. Where no more than those is known: `l2`, how far the
    mean is from them, over their own length; `chi2`, of the data, per datum.
    """

    c2st: float | None = None
    sliced_w2: float | None = None
    sliced_w2_floor: float | None = None
    mean_worst: float | None = None
    mean_rms: float | None = None
    mean_floor: float | None = None
    sd_min: float | None = None
    sd_max: float | None = None
    mean_median: float | None = None
    sd_median: float | None = None
    mode_error: float | None = None
    l2_ratio: float | None = None
    ssr: float | None = None
    crps: float | None = None
    l2: float | None = None
    chi2: float | None = None
    log_evidence_error: float | None = None


def score(target: Target, truth: Truth, draws: Draws, log_evidence: float | None = None, *, seed: int = 1) -> Score:
    """All figures of one run. Draws that are not finite score as badly as can be, C2ST 1, and nothing else."""
    draws = np.asarray(draws, float)
    if draws.shape[1:] != truth.draws.shape[1:]:
        raise ValueError(
            f"draws of '{target.name}' must have {truth.draws.shape[1]} columns as its truth has; got {draws.shape}"
        )
    if not np.isfinite(draws).all():
        return Score(c2st=1.0)
    unknowns = truth.simulated_from
    if len(truth.draws) == 1 and unknowns is not None:
        return Score(
            l2=metrics.relative_l2(draws.mean(axis=0), unknowns),
            chi2=None if target.misfit is None else target.misfit(draws),
            **_against(unknowns, draws),
        )
    dim = draws.shape[1]
    mean = metrics.mean_error(draws, truth.means, truth.sds)
    floor = metrics.mean_error_floor(truth.draws, len(draws), mean_is_exact=truth.mean is not None)
    sd = metrics.sd_ratio(draws, truth.sds)
    modes = None
    if target.modes is not None:
        labels = target.modes(draws)
        if truth.masses is not None:
            modes = metrics.mode_mass_error(labels, truth.masses)
        else:
            modes = metrics.mode_masses(labels, target.modes(truth.draws))
    evidence = None
    if log_evidence is not None and truth.log_evidence is not None:
        evidence = log_evidence - truth.log_evidence
    against_unknowns = {}
    if unknowns is not None:
        exact = metrics.relative_l2(truth.means, unknowns)
        distance = metrics.relative_l2(draws.mean(axis=0), unknowns) / exact
        against_unknowns = {"l2_ratio": distance, **_against(unknowns, draws)}
    return Score(
        c2st=metrics.c2st(draws, truth.draws, seed=seed) if dim <= metrics.MAX_CLASSIFIED_DIM else None,
        sliced_w2=metrics.sliced_wasserstein(draws, truth.draws),
        sliced_w2_floor=metrics.sliced_wasserstein_floor(truth.draws, len(draws)),
        mean_worst=mean.worst,
        mean_rms=mean.rms,
        mean_floor=floor.worst,
        sd_min=sd.smallest,
        sd_max=sd.largest,
        mean_median=float(np.median(np.abs(draws.mean(axis=0) - truth.means) / truth.sds)),
        sd_median=float(np.median(draws.std(axis=0, ddof=1) / truth.sds)),
        mode_error=modes,
        log_evidence_error=evidence,
        **against_unknowns,
    )


def _against(unknowns: Float[np.ndarray, " dim"], draws: Draws) -> dict[str, float]:
    """What only needs the unknowns that the data were simulated from."""
    return {
        "ssr": calibration.spread_skill_ratio(draws, unknowns),
        "crps": float(np.mean(calibration.crps(draws, unknowns))),
    }


def scalar_names(target: Target, dim: int) -> list[str]:
    """What the columns of the draws are called: `site` or `site[index]`, or `x[i]` for a latent vector."""
    plain = [f"x[{i}]" for i in range(dim)]
    if target.model is None:
        return plain
    model = target.model

    def values() -> dict:
        trace = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(*target.args, **target.kwargs)
        return {name: trace[name]["value"] for name in target.sites}

    try:
        shapes = jax.eval_shape(values)  # without calling a simulator in host code
    except Exception:  # a model that looks at its values: names are not worth a failed run
        return plain
    blank = {name: np.empty((1, *shape.shape)) for name, shape in shapes.items()}
    return [name for name, _ in itertools.islice(scalars(blank, target.sites), dim)]
