"""Is the study in a file one of this model? One data set of it, simulated again with its key, must come out the same.

Names and settings cannot tell: another prior, noise or simulator under the same name leaves them as they are, and a
study that goes on with it would mix the ranks of two models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from enkg_ppl.calibration._simulate import PriorPredictive, Simulated

Witness = dict[str, np.ndarray]

# Agreement of an array simulated twice, elementwise and against its largest entry: rounding of another compiler or
# processor passes, and a change that a study of calibration could see does not.
RTOL, ATOL = 1e-4, 1e-6
TRUTH, DATA, LOG_LIKELIHOOD, INFERENCE = "truth", "data", "log_likelihood", "inference"


class Simulations:
    """What the model of a study simulates, and what the model of its inference does where that is another object.

    `model`: as the user gave it. `engine`: the inference. `data`: as `sbc` takes it.
    """

    def __init__(self, model: Callable, engine: Any, prior: PriorPredictive, data):
        self.prior = prior
        self.other = None
        own = _model_of(engine)
        if own is not None and own is not model and own is not prior.model:
            try:
                self.other = PriorPredictive(own, prior.args, prior.kwargs, data or prior.data)
            except Exception:  # a model that infers but cannot simulate has nothing to compare
                self.other = None

    def witness(self, key: jax.Array, simulated: Simulated | None = None) -> Witness:
        """One data set by name of the array; `key`: that of its simulation, `simulated`: what came of it if known."""
        found = _named(self.prior.simulate(key) if simulated is None else simulated)
        if self.other is not None:
            found |= {f"{INFERENCE}/{name}": value for name, value in _named(self.other.simulate(key)).items()}
        return found


def check_witness(path: Path, row: int, stored: Witness, simulations: Simulations, key: jax.Array) -> None:
    """Simulate data set `row` again. Raises `ValueError` where it differs from what the file holds.

    A simulator with random numbers of its own gives other data each time; then only the parameters are compared.
    """
    remedy = "give another file, or delete this one to start anew"
    try:
        now = simulations.witness(key)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be checked, as simulating its data set {row} again fails with {type(error).__name__} "
            f"({error}): mend the model, or {remedy}"
        ) from error
    wrong = _differing(stored, now)
    if wrong and not any(_part(name) == TRUTH for name in wrong):
        again = simulations.witness(key)
        wrong = [name for name in wrong if _same(now.get(name), again.get(name))]
    if wrong:
        name = wrong[0]
        whose = "model of the inference" if name.startswith(INFERENCE) else "model"
        raise ValueError(
            f"{path} holds a study of another {whose}: simulated again, its data set {row} has {_words(name)} = "
            f"{_short(now.get(name))} where the file has {_short(stored.get(name))}: {remedy}"
        )


def _model_of(engine: Any) -> Callable | None:
    for holder in (engine, getattr(engine, "sampler", None)):
        for name in ("model", "_model"):
            found = getattr(holder, name, None)
            if callable(found):
                return found
    return None


def _named(simulated: Simulated) -> Witness:
    named = {f"{TRUTH}/{name}": np.asarray(value) for name, value in simulated.truth.items()}
    named |= {f"{DATA}/{name}": np.asarray(value) for name, value in simulated.data.items()}
    return named | {LOG_LIKELIHOOD: np.asarray(simulated.log_likelihood)}


def _differing(stored: Witness, now: Witness) -> list[str]:
    """Names of arrays that are not the same, parameters first; a model of the inference that is the study's own
    simulates what the study does."""
    if any(name.startswith(INFERENCE) for name in (*stored, *now)):
        stored, now = _with_inference(stored), _with_inference(now)
    names = dict.fromkeys((*stored, *now))
    return [name for name in names if not _same(stored.get(name), now.get(name))]


def _with_inference(witness: Witness) -> Witness:
    if any(name.startswith(INFERENCE) for name in witness):
        return witness
    return witness | {f"{INFERENCE}/{name}": value for name, value in witness.items()}


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return False
    if a.dtype.kind not in "fc":
        return bool(np.array_equal(a, b))
    scale = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
    return bool(np.allclose(a, b, rtol=RTOL, atol=ATOL * scale, equal_nan=True))


def _part(name: str) -> str:
    return name.removeprefix(f"{INFERENCE}/").partition("/")[0]


def _words(name: str) -> str:
    part, _, site = name.removeprefix(f"{INFERENCE}/").partition("/")
    return {TRUTH: f"'{site}'", DATA: f"data '{site}'"}.get(part, "log likelihood of the data")


def _short(value: np.ndarray | None) -> str:
    if value is None:
        return "nothing"
    flat = np.ravel(value)
    some = ", ".join(f"{entry:.6g}" for entry in flat[:3])
    return some if value.ndim == 0 else f"[{some}{', ...' if len(flat) > 3 else ''}] of shape {value.shape}"
