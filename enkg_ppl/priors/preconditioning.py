"""How a network's output becomes a denoiser: ``D(x, sigma) = skip x + out network(in x, noise)``.

The formulas are those of Karras et al. 2022 (arXiv 2206.00364), table 1, "Network and preconditioning". Noise levels
are those of the unscaled vector, ``x = x0 + sigma eps``, also where the network was trained on
``x_t = sqrt(a) x0 + sqrt(1 - a) eps``: that is ``x_t = x / sqrt(1 + sigma^2)`` with ``sigma = sqrt((1 - a) / a)``.

A new `Preconditioning` implements `coefficients`, which returns the four `Coefficients` of a noise level; one whose
network was trained on the steps of a schedule derives from `Stepped`. It is used as the second argument of
`enkg_ppl.priors.NetworkPrior`, and by ``preconditioning=`` of `train_prior` and of the importers.
`PRECONDITIONINGS` has those here by class name, as files name them.
"""

from __future__ import annotations

import abc
import math
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from enkg_ppl.types import AnyArray, Scalar

__all__ = [
    "EDM",
    "IDDPM",
    "PRECONDITIONINGS",
    "VE",
    "VP",
    "Coefficients",
    "Direct",
    "Discrete",
    "Preconditioning",
    "Stepped",
]

PREDICTIONS = ("noise", "v", "x0")
# C_1 and C_2 of the table: a step keeps at least this share of the signal, and the cosine's offset.
IDDPM_LARGEST_STEP, IDDPM_OFFSET = 0.001, 0.008


class Coefficients(NamedTuple):
    """The four scalars of one noise level: ``D(x, sigma) = skip x + out network(input x, noise)``.

    Attributes:
        skip: factor of the noisy input in the denoiser.
        out: factor of the network's output.
        input: factor of the network's input.
        noise: the network's noise coordinate.
    """

    skip: Scalar
    out: Scalar
    input: Scalar
    noise: Scalar


class Preconditioning(eqx.Module):
    """The scaling of a network's input and output at every noise level."""

    @abc.abstractmethod
    def coefficients(self, sigma: Scalar) -> Coefficients:
        """The scalars of a noise level.

        Args:
            sigma: noise level, above 0, in the network's units of the data.
        """

    def loss_weight(self, sigma: Scalar) -> Scalar:
        """Weight of ``|D(x, sigma) - x0|^2`` in training, ``1 / out^2``: equal weight for every level.

        Args:
            sigma: noise level, above 0.

        Source: Karras et al. 2022, eq. 8 and appendix B.6.
        """
        return 1 / self.coefficients(sigma).out ** 2

    @property
    def sigma_min(self) -> float | None:
        """Smallest noise level of the network's training, None where the formulas set no bound."""
        return None

    @property
    def sigma_max(self) -> float | None:
        """Largest noise level of the network's training, None where the formulas set no bound."""
        return None

    def config(self) -> dict:
        """The arguments as JSON values: ``PRECONDITIONINGS[name](**config)`` makes it again."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class EDM(Preconditioning):
    """Input and target of unit variance at every noise level; the noise coordinate is ``log(sigma) / 4``.

    Args:
        sigma_data: standard deviation of an entry of the data, in the network's units.
        negated: for a network that predicts the target with the other sign; with ``sigma_data=1`` that is the v of
            Salimans & Ho (arXiv 2202.00512).
        sigma_min: smallest noise level of the training, None where not known.
        sigma_max: largest noise level of the training, None where not known.

    Source: Karras et al. 2022, table 1, last column.
    """

    sigma_data: float = eqx.field(static=True)
    negated: bool = eqx.field(static=True)
    smallest: float | None = eqx.field(static=True)
    largest: float | None = eqx.field(static=True)

    def __init__(
        self,
        sigma_data: float = 0.5,
        *,
        negated: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ):
        self.sigma_data, self.negated, self.smallest, self.largest = sigma_data, negated, sigma_min, sigma_max

    def __check_init__(self):
        _need(self.sigma_data > 0, f"EDM needs sigma_data > 0; got sigma_data={self.sigma_data}")
        smallest, largest = self.smallest or 0.0, math.inf if self.largest is None else self.largest
        _need(
            0 <= smallest < largest,
            f"EDM needs 0 < sigma_min < sigma_max; got sigma_min={self.smallest}, sigma_max={self.largest}",
        )

    @property
    def sigma_min(self):
        return self.smallest

    @property
    def sigma_max(self):
        return self.largest

    def config(self):
        levels = {"sigma_min": self.smallest, "sigma_max": self.largest}
        given = {name: value for name, value in levels.items() if value is not None}
        return {"sigma_data": self.sigma_data} | ({"negated": True} if self.negated else {}) | given

    def coefficients(self, sigma):
        total = sigma**2 + self.sigma_data**2
        root = jnp.sqrt(total)
        skip = self.sigma_data**2 / total
        sign = -1 if self.negated else 1
        return Coefficients(skip, sign * sigma * self.sigma_data / root, 1 / root, jnp.log(sigma) / 4)


class VP(Preconditioning):
    """Noise prediction in continuous time (DDPM++ cont.); the noise coordinate is ``(num_steps - 1) t(sigma)``.

    ``sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1``.

    Attributes:
        beta_d: slope of ``beta(t) = beta_min + beta_d t``.
        beta_min: beta at t = 0.
        num_steps: steps of the training, M.
        time_min: smallest time of the training.

    Source: Song et al., arXiv 2011.13456, eq. 32; Karras et al. 2022, table 1, first column.
    """

    beta_d: float = eqx.field(static=True, default=19.9)
    beta_min: float = eqx.field(static=True, default=0.1)
    num_steps: int = eqx.field(static=True, default=1000)
    time_min: float = eqx.field(static=True, default=1e-5)

    def __check_init__(self):
        _need(self.beta_d > 0, f"VP needs beta_d > 0; got beta_d={self.beta_d}")
        _need(self.beta_min > 0, f"VP needs beta_min > 0; got beta_min={self.beta_min}")
        _need(self.num_steps > 1, f"VP needs num_steps > 1; got num_steps={self.num_steps}")
        _need(0 < self.time_min < 1, f"VP needs 0 < time_min < 1; got time_min={self.time_min}")

    def time(self, sigma: Scalar) -> Scalar:
        """t of a noise level, 1 at `sigma_max`.

        Args:
            sigma: noise level.
        """
        growth = 2 * jnp.log1p(sigma**2)
        # The root's difference from beta_min, written so that small noise levels lose no digits.
        return growth / (jnp.sqrt(self.beta_min**2 + self.beta_d * growth) + self.beta_min)

    def _sigma(self, time: float) -> float:
        return float(np.sqrt(np.expm1(0.5 * self.beta_d * time**2 + self.beta_min * time)))

    @property
    def sigma_min(self):
        return self._sigma(self.time_min)

    @property
    def sigma_max(self):
        return self._sigma(1.0)

    def coefficients(self, sigma):
        one = jnp.ones_like(sigma)
        return Coefficients(one, -sigma, 1 / jnp.sqrt(sigma**2 + 1), (self.num_steps - 1) * self.time(sigma))


class VE(Preconditioning):
    """Score prediction without scaling (NCSN++ cont.); the noise coordinate is ``log(sigma / 2)``.

    Args:
        sigma_min: smallest noise level of the training.
        sigma_max: largest noise level of the training.

    Source: Song et al., arXiv 2011.13456, section 3.4; Karras et al. 2022, table 1, second column.
    """

    smallest: float = eqx.field(static=True)
    largest: float = eqx.field(static=True)

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0):
        self.smallest, self.largest = float(sigma_min), float(sigma_max)

    def __check_init__(self):
        _need(
            0 < self.smallest < self.largest,
            f"VE needs 0 < sigma_min < sigma_max; got sigma_min={self.smallest}, sigma_max={self.largest}",
        )

    @property
    def sigma_min(self):
        return self.smallest

    @property
    def sigma_max(self):
        return self.largest

    def config(self):
        return {"sigma_min": self.smallest, "sigma_max": self.largest}

    def coefficients(self, sigma):
        one = jnp.ones_like(sigma)
        return Coefficients(one, sigma, one, jnp.log(sigma / 2))


class Stepped(Preconditioning):
    """Trained on a finite number of noise levels only."""

    @abc.abstractmethod
    def sigmas(self) -> np.ndarray:
        """Noise levels of the steps, increasing."""

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas()[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas()[-1])


class IDDPM(Stepped):
    """Noise prediction on the cosine grid of improved DDPM; the noise coordinate is the nearest step's number.

    Attributes:
        num_steps: M.
        nearest: False interpolates the step's number in log sigma instead, which avoids jumps that disturb an ODE
            solver.

    Source: Nichol & Dhariwal, arXiv 2102.09672; Karras et al. 2022, table 1, third column.
    """

    num_steps: int = eqx.field(static=True, default=1000)
    nearest: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        _need(self.num_steps > 1, f"IDDPM needs num_steps > 1; got num_steps={self.num_steps}")

    def sigmas(self) -> np.ndarray:
        """Noise levels of the steps 0 (least noise) to M - 1."""
        M = self.num_steps
        alpha_bar = np.sin(0.5 * np.pi * np.arange(M + 1) / M / (IDDPM_OFFSET + 1)) ** 2
        u = np.zeros(M + 1)
        for j in range(M, 0, -1):
            u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], IDDPM_LARGEST_STEP) - 1)
        return u[M - 1 :: -1]

    def coefficients(self, sigma):
        one, noise = jnp.ones_like(sigma), _step(sigma, self.sigmas(), self.nearest)
        return Coefficients(one, -sigma, 1 / jnp.sqrt(sigma**2 + 1), noise)


class Discrete(Stepped):
    """A network trained on the steps of a discrete schedule, ``x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps``.

    The network's noise coordinate is ``time_scale * step + time_offset``.

    Args:
        alphas_cumprod: ``a_t`` of steps 0, 1, ..., decreasing, between 0 and 1.
        prediction: what the network predicts, "noise" (eps; Ho et al., arXiv 2006.11239), "v" (``sqrt(a) eps - sqrt(1 -
            a) x0``; Salimans & Ho, arXiv 2202.00512, section 4) or "x0".
        time_scale: factor of the step's number.
        time_offset: added to it.
        nearest: round the step's number, for a network that was trained on whole numbers only, instead of interpolating
            it in log sigma.
    """

    alphas_cumprod: tuple[float, ...] = eqx.field(static=True)
    prediction: Literal["noise", "v", "x0"] = eqx.field(static=True)
    time_scale: float = eqx.field(static=True)
    time_offset: float = eqx.field(static=True)
    nearest: bool = eqx.field(static=True)

    def __init__(
        self,
        alphas_cumprod: AnyArray | tuple[float, ...] | list[float],
        prediction: Literal["noise", "v", "x0"] = "noise",
        *,
        time_scale: float = 1.0,
        time_offset: float = 0.0,
        nearest: bool = False,
    ):
        alphas = np.asarray(alphas_cumprod, float)
        _need(
            alphas.ndim == 1 and len(alphas) > 1,
            f"Discrete needs alphas_cumprod as a vector of two numbers at least, one a step; got shape {alphas.shape}",
        )
        _need(
            bool(np.all((alphas > 0) & (alphas < 1)) and np.all(np.diff(alphas) < 0)),
            "Discrete needs alphas_cumprod between 0 and 1 and decreasing, the cumulative product of (1 - beta); "
            f"got {alphas[0]:.4g}, {alphas[1]:.4g}, ..., {alphas[-1]:.4g}",
        )
        _need(
            prediction in PREDICTIONS,
            f"Discrete needs prediction 'noise', 'v' or 'x0'; got prediction={prediction!r}",
        )
        self.alphas_cumprod = tuple(alphas.tolist())
        self.prediction = prediction
        self.time_scale, self.time_offset = float(time_scale), float(time_offset)
        self.nearest = bool(nearest)

    def sigmas(self) -> np.ndarray:
        """Noise levels of the steps."""
        alphas = np.asarray(self.alphas_cumprod)
        return np.sqrt((1 - alphas) / alphas)

    def config(self):
        return {**super().config(), "alphas_cumprod": list(self.alphas_cumprod)}

    def coefficients(self, sigma):
        one = jnp.ones_like(sigma)
        root = jnp.sqrt(sigma**2 + 1)
        noise = self.time_scale * _step(sigma, self.sigmas(), self.nearest) + self.time_offset
        if self.prediction == "noise":
            return Coefficients(one, -sigma, 1 / root, noise)
        if self.prediction == "v":
            return Coefficients(1 / root**2, -sigma / root, 1 / root, noise)
        return Coefficients(0 * one, one, 1 / root, noise)


class Direct(Preconditioning):
    """No preconditioning: the network is the denoiser, ``D(x, sigma) = network(x, sigma)``."""

    def coefficients(self, sigma):
        one = jnp.ones_like(sigma)
        return Coefficients(0 * one, one, one, sigma)


# By class name, as files name them.
PRECONDITIONINGS: dict[str, type[Preconditioning]] = {
    kind.__name__: kind for kind in (EDM, VP, VE, IDDPM, Discrete, Direct)
}


def _step(sigma: Scalar, sigmas: np.ndarray, nearest: bool) -> Scalar:
    """Number of the step whose noise level this is; `sigmas` increases with the step."""
    if nearest:
        table = jnp.asarray(sigmas, jnp.result_type(sigma))
        return jnp.argmin(jnp.abs(table - sigma)).astype(table.dtype)
    table = jnp.asarray(np.log(sigmas), jnp.result_type(sigma))
    return jnp.interp(jnp.log(sigma), table, jnp.arange(len(sigmas), dtype=table.dtype))


def _need(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
