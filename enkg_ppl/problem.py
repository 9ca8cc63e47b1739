"""An inverse problem in three pieces: prior over latents, forward map, likelihood of its output.

What `infer` and `guide` take where there is no NumPyro model; `EnKG` makes one of its model. Any
`enkg_ppl.priors.Prior` goes with any function and any `enkg_ppl.likelihood.Likelihood`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx

from enkg_ppl.likelihood import Likelihood
from enkg_ppl.types import Output, Scalar, Vector

if TYPE_CHECKING:
    from enkg_ppl.priors import Prior

__all__ = ["InverseProblem"]


def _identity(x):
    return x


class InverseProblem(eqx.Module):
    """Find the latents x, ``x ~ prior``, from data ``y ~ likelihood(. | forward(x))``.

    Attributes:
        prior: a `Prior` over vectors of length dim.
        forward: the simulator, for ONE latent vector; JAX code, or host code wrapped by `blackbox`. It is never
            differentiated.
        likelihood: a `Likelihood` of the simulator's output.
        constrain: from a latent vector to the user's unknowns.
        unconstrain: the inverse of `constrain`.
        unconstrained_values: for a prior N(0, I): the unconstrained parameters of the simulator as a function of the
            latent vector that needs no simulation; None where they are the latent vector itself. One for each
            coordinate of the latent vector, and then any others. A refinement uses it to separate the information of
            the data from that of the prior.
        replay: the simulator with more of its results, ``(values, forward(x))``, where the caller needs the values at
            the draws, so that these are not simulated again.
    """

    prior: Prior
    forward: Callable[[Vector], Output]
    likelihood: Likelihood
    constrain: Callable[[Vector], Any] = _identity
    unconstrain: Callable[[Any], Vector] = _identity
    unconstrained_values: Callable[[Vector], Vector] | None = None
    replay: Callable[[Vector], tuple[Any, Output]] | None = None

    @property
    def dim(self) -> int:
        """Length of the latent vector."""
        return self.prior.dim

    def log_likelihood(self, x: Vector) -> Scalar:
        """Log likelihood in nats of one latent vector: one forward evaluation.

        Args:
            x: latent vector, shape (dim,).
        """
        return self.likelihood.log_prob(self.forward(x))
