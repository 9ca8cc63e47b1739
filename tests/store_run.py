"""A run with a store in a process that may be killed at any moment: python store_run.py KIND STORE LOG RESULT."""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np


def note(amount, rate):
    """A line for every simulation, or every call, that is begun; in one write, so that no two get mixed up."""
    with open(os.environ["STORE_RUN_LOG"], "ab", buffering=0) as file:
        file.write(f"{np.asarray(amount).tobytes().hex()}{np.asarray(rate).tobytes().hex()}\n".encode())


def decay(amount, rate):
    note(amount, rate)
    time.sleep(0.003)
    return amount * np.exp(-rate * np.arange(5))


def decay_or_not(amount, rate):
    note(amount, rate)
    time.sleep(0.003)
    if amount > 6.0:
        raise ArithmeticError("too much of it")
    return np.full(5, np.nan) if rate > 2.0 else amount * np.exp(-rate * np.arange(5))


def decays(amount, rate):
    note(amount, rate)
    time.sleep(0.02)
    # With matrices the last bits of a row follow from how many there are.
    return np.exp(np.stack([np.log(amount), -rate], 1) @ np.stack([np.ones(5), np.arange(5.0)]))


def decays_or_not(amount, rate):
    note(amount, rate)
    time.sleep(0.005)
    if np.any(amount > 20.0):
        raise ArithmeticError("too much of it")
    return amount[:, None] * np.exp(-rate[:, None] * np.arange(5))


def simulator(kind: str):
    from enkg_ppl import blackbox

    settings = {
        "in turn": (decay, {}),
        "threads": (decay, {"executor": ThreadPoolExecutor(4)}),
        "rejecting": (decay_or_not, {"on_failure": "reject"}),
        "vectorized": (decays, {"vectorized": True}),
        "vectorized, tolerating": (decays_or_not, {"vectorized": True}),
    }
    if kind == "processes":
        settings[kind] = decay, {"executor": ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))}
    fn, options = settings[kind]
    return blackbox(fn, (5,), check_deterministic=False, **options)


def main(kind: str, store: str, result: str) -> None:
    import warnings

    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from enkg_ppl import EnKG

    simulate = simulator(kind)

    def model(y=None):
        amount = numpyro.sample("amount", dist.LogNormal(1.0, 1.0))
        rate = numpyro.sample("rate", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(simulate(amount, rate), 0.1).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=64, progress_bar=False, store=store or None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        enkg.run(jax.random.key(0), y=jnp.array([2.1, 1.2, 0.75, 0.5, 0.3]))
    numbers = [enkg.num_forward_evaluations, enkg.log_evidence, simulate.num_calls, simulate.num_reused]
    numbers += [enkg.diagnostics()["num_failed"]]
    np.savez(result, numbers=np.array(numbers), **{name: np.asarray(a) for name, a in enkg.get_samples().items()})


if __name__ == "__main__":
    os.environ["STORE_RUN_LOG"] = sys.argv[3]
    main(sys.argv[1], sys.argv[2], sys.argv[4])
