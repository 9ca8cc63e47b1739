"""Noise levels: decreasing standard deviations ``sigma_0 > ... > sigma_{N-1} > sigma_N = 0``.

Those of Karras et al. and of the variance-preserving and variance-exploding diffusions. A new `Schedule` has a number
of steps and implements `levels`; it is used by ``schedule=`` of `EnKG`, `infer` and `guide`.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from enkg_ppl._checks import check_share, check_whole
from enkg_ppl.types import Scalar

__all__ = ["Karras", "Schedule", "VarianceExploding", "VariancePreserving", "karras_levels"]


class Schedule(eqx.Module):
    """A decreasing sequence of noise levels, in units of the latent vector.

    Attributes:
        num_steps: number of steps; there is one more level, the final 0.
    """

    num_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def levels(self) -> Float[Array, " num_steps+1"]:
        """Return the noise levels, largest first, ending in exactly 0."""


def _check_range(name: str, low_name: str, low, high_name: str, high) -> None:
    if not 0 < low < high:
        raise ValueError(f"{name} needs 0 < {low_name} < {high_name}; got {low_name}={low}, {high_name}={high}")


def karras_levels(num_steps: int, sigma_min, sigma_max, rho: float) -> Float[Array, " num_steps"]:
    """Noise levels of Karras et al. (2022), eq. 5, without the final zero.

    Args:
        num_steps: number of levels; static.
        sigma_min: smallest noise level.
        sigma_max: largest noise level.
        rho: larger values put more levels near `sigma_min`.
    """
    if num_steps == 1:
        return jnp.asarray(sigma_max)[None]
    ramp = jnp.arange(num_steps) / (num_steps - 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


class Karras(Schedule):
    """``sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``.

    The defaults are the paper's.

    Attributes:
        num_steps: N.
        sigma_min: smallest noise level before 0, in units of the latent vector.
        sigma_max: largest noise level, in units of the latent vector.
        rho: larger values put more levels near `sigma_min`.

    Raises:
        ValueError: unless ``0 < sigma_min < sigma_max``, ``rho > 0`` and ``num_steps >= 1``.

    Source: Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv
    2206.00364, eq. 5.
    """

    num_steps: int = eqx.field(static=True, default=80)
    sigma_min: float | Scalar = 0.002
    sigma_max: float | Scalar = 80.0
    rho: float = eqx.field(static=True, default=7.0)

    def __check_init__(self):
        check_whole("Karras", num_steps=self.num_steps)
        _check_range("Karras", "sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        if not self.rho > 0:
            raise ValueError(f"Karras needs rho > 0; got rho={self.rho}")

    def levels(self) -> Float[Array, " num_steps+1"]:
        levels = karras_levels(self.num_steps, self.sigma_min, self.sigma_max, self.rho)
        return jnp.append(levels, 0.0)


class VariancePreserving(Schedule):
    """Noise levels of the variance-preserving diffusion, ``sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1``.

    ``t`` decreases in equal steps from 1 to ``epsilon``; ``beta_d = beta_max - beta_min``. The scaling ``s(t)`` of the
    VP process belongs to the denoiser, so here the levels are those of the unscaled vector.

    Attributes:
        num_steps: number of levels before 0.
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
        epsilon: smallest time.

    Raises:
        ValueError: unless ``0 < beta_min < beta_max``, ``0 < epsilon < 1`` and ``num_steps >= 1``.

    Source: Song et al., arXiv 2011.13456, eq. 32-33, in the form of Karras et al. (2022), table 1.
    """

    num_steps: int = eqx.field(static=True, default=100)
    beta_min: float = 0.1
    beta_max: float = 20.0
    epsilon: float = 1e-3

    def __check_init__(self):
        check_whole("VariancePreserving", num_steps=self.num_steps)
        _check_range("VariancePreserving", "beta_min", self.beta_min, "beta_max", self.beta_max)
        check_share("VariancePreserving", epsilon=self.epsilon)

    def levels(self) -> Float[Array, " num_steps+1"]:
        t = jnp.linspace(1.0, self.epsilon, self.num_steps)
        exponent = 0.5 * (self.beta_max - self.beta_min) * t**2 + self.beta_min * t
        return jnp.append(jnp.sqrt(jnp.expm1(exponent)), 0.0)


class VarianceExploding(Schedule):
    """Geometric noise levels, ``sigma_i = sigma_max (sigma_min / sigma_max)^(i / (N-1))``.

    Attributes:
        num_steps: N.
        sigma_min: smallest noise level before 0, in units of the latent vector.
        sigma_max: largest noise level, in units of the latent vector.

    Raises:
        ValueError: unless ``0 < sigma_min < sigma_max`` and ``num_steps >= 1``.

    Source: Song et al., arXiv 2011.13456, eq. 31; Karras et al. (2022), table 1.
    """

    num_steps: int = eqx.field(static=True, default=100)
    sigma_min: float | Scalar = 0.02
    sigma_max: float | Scalar = 100.0

    def __check_init__(self):
        check_whole("VarianceExploding", num_steps=self.num_steps)
        _check_range("VarianceExploding", "sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def levels(self) -> Float[Array, " num_steps+1"]:
        exponents = jnp.linspace(0.0, 1.0, self.num_steps)
        return jnp.append(self.sigma_max * (self.sigma_min / self.sigma_max) ** exponents, 0.0)
