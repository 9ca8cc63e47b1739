"""A network trained on draws of a toy whose score is known, set beside it: denoiser, density, draws.

The toys and the recipe are in `models.toys`.

    python -m validation.demos.toys two_moons
"""

from __future__ import annotations

import argparse
import time

import jax.random as jr
import numpy as np

from models import toys
from validation.metrics import c2st


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m validation.demos.toys",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("toy", choices=toys.TOYS)
    parser.add_argument("--num-steps", type=int, default=toys.NUM_STEPS)
    parser.add_argument("--batch-size", type=int, default=toys.BATCH_SIZE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    exact = toys.TOYS[options.toy]()
    started = time.process_time()
    prior = toys.train(
        exact,
        seed=options.seed,
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        progress_bar=not options.quiet,
    )
    keys = jr.split(jr.key(1000 + options.seed), 4)
    print(f"{options.toy}: {options.num_steps} steps, {time.process_time() - started:.0f} s of CPU with compilation")
    for sigma, excess in toys.excess_error(prior, exact, keys[0]).items():
        print(f"  excess of the denoiser's error at noise level {sigma:g}: {100 * excess:.2f} %")
    error = toys.log_prob_error(prior, exact, keys[1]) / prior.dim
    print(f"  log_prob: mean absolute error {np.abs(error).mean():.4f} nats a dimension, bias {error.mean():+.4f}")
    score = c2st(toys.flow_draws(prior, keys[2], 5000), toys.draws(keys[3], exact, 5000))
    print(f"  two-sample classifier on 5,000 draws of each: {score:.3f}")


if __name__ == "__main__":
    main()
