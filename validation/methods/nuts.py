"""BlackJAX's No-U-Turn sampler on the differentiable model: what gradients buy."""

from __future__ import annotations

import jax
import numpy as np

from validation.methods._base import Method, Result, kept
from validation.nuts import nuts
from validation.target import Target

NUM_CHAINS, NUM_WARMUP = 4, 1000
MAX_R_HAT = 1.01


def run(target: Target, seed: int, num_draws: int, progress: bool, *, budget: int | None = None) -> Result:
    """Four chains of 1,000 adaptation steps; the draws are shared among them.

    `budget` is not followed: the adaptation decides how many leapfrog steps a draw takes.
    """
    assert target.with_gradient is not None
    found = nuts(
        jax.random.key(seed),
        target.with_gradient,
        *target.args,
        num_warmup=NUM_WARMUP,
        num_samples=-(-num_draws // NUM_CHAINS),
        num_chains=NUM_CHAINS,
        progress=progress,
        **target.kwargs,
    )
    by_chain = [{name: draws[i] for name, draws in found.samples.items()} for i in range(NUM_CHAINS)]
    chains = np.stack([target.flatten(chain) for chain in by_chain])
    said = []
    if not found.worst_r_hat <= MAX_R_HAT:
        said.append(f"R-hat is {found.worst_r_hat:.3f}, where at most {MAX_R_HAT} is due")
    if found.num_divergences:
        said.append(f"{found.num_divergences} divergent transitions")
    # Each leapfrog step differentiates the simulator once, which also evaluates it.
    calls = found.num_gradient_evaluations
    return Result(kept(chains, num_draws), calls, calls, found.seconds, warnings=said)


METHODS = [
    Method(
        "nuts",
        f"BlackJAX NUTS, {NUM_CHAINS} chains, {NUM_WARMUP:,} adaptation steps each",
        run,
        needs_gradient=True,
        needs_model=True,
        sources=("validation/nuts.py",),
    )
]
