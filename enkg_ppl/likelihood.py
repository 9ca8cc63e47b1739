"""Likelihoods as functions of the SIMULATOR OUTPUT g, never of the latent: no simulator gradient is needed.

Data with Gaussian noise, counts, and data with outliers have theirs here. A new `Likelihood` implements `log_prob` and
`fisher`, from which its working `Response` follows, the form in which corrections see it.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from enkg_ppl.types import AnyArray, Output, Scalar

__all__ = ["GaussianLikelihood", "Likelihood", "PoissonLikelihood", "Response", "StudentTLikelihood"]


class Response(NamedTuple):
    """The likelihood in the form of the Kalman step: ``observation = prediction + N(0, noise)``.

    Attributes:
        prediction: shape (m,), in the units of `observation`.
        observation: shape (m,).
        noise: variances, shape (m,).
    """

    prediction: Float[AnyArray, " m"]
    observation: Float[AnyArray, " m"]
    noise: Float[AnyArray, " m"]


class Likelihood(eqx.Module):
    """``log p(y | g)`` for one particle's simulator output g.

    A new likelihood implements `log_prob` and `fisher`; the rest follows.
    """

    @abc.abstractmethod
    def log_prob(self, g: Output) -> Scalar:
        """Log likelihood in nats, normalised in y.

        Args:
            g: simulator output of one particle, shape (m,).
        """

    def score(self, g: Output) -> Output:
        """Gradient of `log_prob` with respect to g.

        Args:
            g: simulator output of one particle, shape (m,).
        """
        return jax.grad(self.log_prob)(g)

    @abc.abstractmethod
    def fisher(self, g: Output) -> Float[Array, " m"]:
        """Diagonal of the Fisher information ``E[score score^T]`` under ``y ~ p(. | g)``.

        Args:
            g: simulator output of one particle, shape (m,).
        """

    def response(self, g: Output) -> Response:
        """The working response of Fisher scoring, ``g + F^-1 score`` with noise ``F^-1``.

        For Gaussian noise this is y and Gamma.

        Args:
            g: simulator output of one particle, shape (m,).

        Source: McCullagh & Nelder (1989), section 2.5.
        """
        noise = 1 / self.fisher(g)
        return Response(g, g + noise * self.score(g), noise)


def _check_positive(owner: str, name: str, value) -> None:
    if not isinstance(value, Tracer) and not bool(jnp.all(jnp.asarray(value) > 0)):
        raise ValueError(f"{owner} needs {name} > 0 everywhere; got a smallest value of {jnp.min(value)}")


class GaussianLikelihood(Likelihood):
    """``y ~ N(g, noise_sd^2)``, independent data.

    Correlated noise: multiply y and the simulator's output by the inverse Cholesky factor of Gamma.

    Args:
        y: data, shape (m,).
        noise_sd: scalar or shape (m,), units of y.
    """

    y: Float[Array, " m"]
    noise_sd: Float[Array, " m"]

    def __init__(self, y, noise_sd):
        _check_positive("GaussianLikelihood", "noise_sd", noise_sd)
        self.y = jnp.asarray(y)
        if self.y.ndim != 1:
            raise ValueError(f"GaussianLikelihood needs y as a vector; got shape {self.y.shape}: use y.ravel()")
        self.noise_sd = jnp.broadcast_to(jnp.asarray(noise_sd, self.y.dtype), self.y.shape)

    def log_prob(self, g: Float[Array, " m"]) -> Scalar:
        residual = (self.y - g) / self.noise_sd
        return -0.5 * jnp.sum(residual**2 + jnp.log(2 * jnp.pi * self.noise_sd**2))

    def fisher(self, g: Float[Array, " m"]) -> Float[Array, " m"]:
        return 1 / self.noise_sd**2


class PoissonLikelihood(Likelihood):
    """``y ~ Poisson(g)`` with rates ``g > 0``.

    Args:
        y: counts, shape (m,).
    """

    y: Float[Array, " m"]

    def __init__(self, y):
        self.y = jnp.asarray(y, float)

    def log_prob(self, g: Float[Array, " m"]) -> Scalar:
        safe = jnp.where(g > 0, g, 1.0)
        log_prob = self.y * jnp.log(safe) - safe - jax.scipy.special.gammaln(self.y + 1)
        return jnp.sum(jnp.where(g > 0, log_prob, -jnp.inf))

    def fisher(self, g: Float[Array, " m"]) -> Float[Array, " m"]:
        return 1 / jnp.maximum(g, jnp.finfo(g.dtype).tiny)

    def response(self, g: Float[Array, " m"]) -> Response:
        # g + F^-1 score = y exactly; written out so that a rate of 0 stays finite.
        return Response(g, self.y, jnp.maximum(g, 0.0))


class StudentTLikelihood(Likelihood):
    """``y ~ g + scale * t_df``, for data with outliers.

    Args:
        y: data, shape (m,).
        scale: scalar or shape (m,), units of y.
        df: degrees of freedom.
    """

    y: Float[Array, " m"]
    scale: Float[Array, " m"]
    df: Float[Array, ""]

    def __init__(self, y, scale, df):
        _check_positive("StudentTLikelihood", "scale", scale)
        _check_positive("StudentTLikelihood", "df", df)
        self.y = jnp.asarray(y)
        self.scale = jnp.broadcast_to(jnp.asarray(scale, self.y.dtype), self.y.shape)
        self.df = jnp.asarray(df, self.y.dtype)

    def log_prob(self, g: Float[Array, " m"]) -> Scalar:
        r = (self.y - g) / self.scale
        return jnp.sum(jax.scipy.stats.t.logpdf(r, self.df) - jnp.log(self.scale))

    def fisher(self, g: Float[Array, " m"]) -> Float[Array, " m"]:
        # Lange, Little & Taylor (1989), JASA 84, appendix B.
        return (self.df + 1) / ((self.df + 3) * self.scale**2)
