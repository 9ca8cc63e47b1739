"""Gaussian priors: full covariance, diagonal, or through an eigenbasis such as a Fourier transform."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Float

from enkg_ppl.priors._base import CONDITIONAL_STEPS, CORRECTIONS, Prior
from enkg_ppl.types import AnyArray, Key, Scalar, Vector


class _Matrix(eqx.Module):
    """Multiplication by a fixed matrix, as a pytree so that the matrix is data and not code."""

    matrix: Float[AnyArray, "rows columns"]

    def __call__(self, v: Float[AnyArray, " columns"]) -> Float[AnyArray, " rows"]:
        return self.matrix @ v


def _identity(v):
    return v


class GaussianPrior(Prior):
    """``N(mean, B diag(variances) B^T)`` with an orthonormal basis ``B``.

    Make one with `GaussianPrior(mean, variances)` (diagonal), `GaussianPrior.full(mean, covariance)` or
    `GaussianPrior(mean, variances, to_basis, from_basis)`. `GaussianPrior.standard(dim)` is ``N(0, I)``.

    The denoiser is the Wiener filter ``mean + B diag(variances / (variances + sigma^2)) B^T (x - mean)``.

    Attributes:
        mean: shape (dim,).
        variances: along the columns of ``B``, shape (dim,); all must be positive.
        to_basis: applies ``B^T`` to one vector (for instance an orthonormal cosine transform).
        from_basis: applies ``B`` to one vector.
    """

    mean: Float[AnyArray, " dim"]
    variances: Float[AnyArray, " dim"]
    to_basis: Callable[[Vector], Vector] = _identity
    from_basis: Callable[[Vector], Vector] = _identity

    def __check_init__(self):
        if self.mean.ndim != 1 or self.mean.shape != self.variances.shape:
            raise ValueError(
                "GaussianPrior needs mean and variances as vectors of one length; "
                f"got mean {self.mean.shape}, variances {self.variances.shape}"
            )

    @classmethod
    def standard(cls, dim: int) -> GaussianPrior:
        """``N(0, I)``.

        Args:
            dim: number of dimensions.
        """
        return cls(jnp.zeros(dim), jnp.ones(dim))

    @classmethod
    def full(cls, mean: Float[AnyArray, " dim"], covariance: Float[AnyArray, "dim dim"]) -> GaussianPrior:
        """From a full covariance matrix.

        Args:
            mean: shape (dim,).
            covariance: symmetric positive definite, shape (dim, dim).

        Raises:
            ValueError: where the matrix has an eigenvalue that is not positive.
        """
        mean, covariance = jnp.asarray(mean), jnp.asarray(covariance)
        if covariance.shape != (mean.shape[0], mean.shape[0]):
            raise ValueError(
                f"GaussianPrior.full needs a covariance of shape {(mean.shape[0],) * 2} for a mean of "
                f"shape {mean.shape}; got {covariance.shape}"
            )
        variances, basis = jnp.linalg.eigh(covariance)
        if not bool(jnp.all(variances > 0)):
            raise ValueError(
                "GaussianPrior.full needs a positive definite covariance; its smallest eigenvalue is "
                f"{float(variances[0]):.3g}: add a little to the diagonal"
            )
        return cls(mean, variances, _Matrix(basis.T), _Matrix(basis))

    @property
    def dim(self) -> int:
        return self.mean.shape[0]

    @property
    def is_standard(self) -> bool:
        """Whether this is N(0, I) in the standard basis; needs concrete arrays."""
        plain = self.to_basis is _identity and self.from_basis is _identity
        return plain and bool(jnp.all(self.mean == 0)) and bool(jnp.all(self.variances == 1))

    @property
    def location(self) -> Vector:
        return self.mean

    @property
    def scale(self) -> Scalar:
        return jnp.sqrt(jnp.max(self.variances))

    def denoise(self, x: Vector, sigma: Scalar) -> Vector:
        shrink = self.variances / (self.variances + sigma**2)
        return self.mean + self.from_basis(shrink * self.to_basis(x - self.mean))

    def conditional_sample(self, key: Key, x: Vector, sigma: Scalar, num_steps: int = CONDITIONAL_STEPS) -> Vector:
        return self.conditional_decode(jr.normal(key, x.shape, x.dtype), x, sigma)

    def conditional_decode(self, eps: Vector, x: Vector, sigma: Scalar) -> Vector:
        """The draw of `conditional_sample` that corresponds to a standard-normal vector.

        Args:
            eps: standard-normal vector, shape (dim,).
            x: noisy latent vector, shape (dim,).
            sigma: noise level, above 0.
        """
        variance = self.variances * sigma**2 / (self.variances + sigma**2)
        return self.denoise(x, sigma) + self.from_basis(jnp.sqrt(variance) * eps)

    @property
    def has_affine_denoiser(self) -> bool:
        return True

    @property
    def has_transport(self) -> bool:
        return True

    def decode(self, z: Vector) -> Vector:
        return self.mean + self.from_basis(jnp.sqrt(self.variances) * z)

    def encode(self, x: Vector, num_corrections: int = CORRECTIONS) -> Vector:
        return self.to_basis(x - self.mean) / jnp.sqrt(self.variances)

    def log_prob(self, x: Vector) -> Scalar:
        u = self.to_basis(x - self.mean)
        return -0.5 * jnp.sum(u**2 / self.variances + jnp.log(2 * jnp.pi * self.variances))
