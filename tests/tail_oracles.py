"""Log tails and log densities that scipy lacks, or loses digits of: oracles for the transports of scalar priors."""

import numpy as np
import scipy.special

GAUSS_NODES, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(64)


class Truncated:
    """Tails of a truncated distribution from those of the whole; by quadrature where the difference
    cancels.
    """

    def __init__(self, base, low, high):
        self.base, self.low, self.high = base, low, high
        self.total = self.log_mass(low, high)

    def log_mass(self, a, b):
        a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
        short = b - a < 0.3
        width = np.where(short, b - a, 1.0)
        nodes = np.where(short, a, 0.0)[..., None] + width[..., None] * (GAUSS_NODES + 1) / 2
        quadrature = scipy.special.logsumexp(self.base.logpdf(nodes), b=GAUSS_WEIGHTS / 2, axis=-1)
        lower = np.stack([self.base.logcdf(b), self.base.logcdf(a)])
        upper = np.stack([self.base.logsf(a), self.base.logsf(b)])
        tails = np.where(a + b < 2 * self.base.median(), lower, upper)
        sign = np.array([1.0, -1.0]).reshape(2, *[1] * a.ndim)
        return np.where(short, np.log(width) + quadrature, scipy.special.logsumexp(tails, b=sign, axis=0))

    def logcdf(self, x):
        return self.log_mass(self.low, x) - self.total

    def logsf(self, x):
        return self.log_mass(x, self.high) - self.total

    def logpdf(self, x):
        return self.base.logpdf(x) - self.total


class LogUniform:
    """Tails near a bound, where scipy's own difference of logs cancels."""

    def __init__(self, low, high):
        self.low, self.high = low, high
        self.width = np.log(high / low)

    def logcdf(self, x):
        return np.log(np.log1p((x - self.low) / self.low) / self.width)

    def logsf(self, x):
        return np.log(np.log1p((self.high - x) / x) / self.width)

    def logpdf(self, x):
        return -np.log(x * self.width)


class Kumaraswamy:
    def __init__(self, a, b):
        self.a, self.b = a, b

    def logcdf(self, x):
        return np.log(-np.expm1(self.b * np.log1p(-(x**self.a))))

    def logsf(self, x):
        return self.b * np.log1p(-(x**self.a))

    def logpdf(self, x):
        return np.log(self.a * self.b) + (self.a - 1) * np.log(x) + (self.b - 1) * np.log1p(-(x**self.a))


class Mixture:
    def __init__(self, weights, parts):
        self.weights, self.parts = np.asarray(weights, float), parts

    def mixed(self, name, x):
        terms = np.stack([getattr(part, name)(x) for part in self.parts], -1)
        return scipy.special.logsumexp(terms, b=self.weights, axis=-1)

    def logcdf(self, x):
        return self.mixed("logcdf", x)

    def logsf(self, x):
        return self.mixed("logsf", x)

    def logpdf(self, x):
        return self.mixed("logpdf", x)


class Folded:
    """The absolute value of a distribution."""

    def __init__(self, base):
        self.base, self.part = base, Truncated(base, -1.0, 1.0)

    def logcdf(self, x):
        return self.part.log_mass(-x, x)

    def logsf(self, x):
        return np.logaddexp(self.base.logsf(x), self.base.logcdf(-x))

    def logpdf(self, x):
        return np.logaddexp(self.base.logpdf(x), self.base.logpdf(-x))


class VonMises:
    """Tails by quadrature over 400 panels, and the Bessel function."""

    def __init__(self, kappa):
        self.kappa = kappa

    def logpdf(self, x):
        return -2 * self.kappa * np.sin(x / 2) ** 2 - np.log(2 * np.pi * scipy.special.ive(0, self.kappa))

    def logsf(self, x):
        edges = np.linspace(x, np.pi, 401)
        width = (edges[1:] - edges[:-1])[..., None]
        terms = self.logpdf(edges[:-1, ..., None] + width * (GAUSS_NODES + 1) / 2)
        return scipy.special.logsumexp(terms, b=width * GAUSS_WEIGHTS / 2, axis=(0, -1))

    def logcdf(self, x):
        return self.logsf(-x)


class PowerLaw:
    """Density proportional to ``x^alpha`` between two bounds, `low` above 0 or `alpha` above -1."""

    def __init__(self, alpha, low, high):
        self.alpha, self.low, self.high = alpha, low, high
        self.total = self.log_mass(low, high)

    def log_mass(self, a, b):
        rate, low = self.alpha + 1, np.where(np.asarray(a) > 0, a, np.finfo(float).tiny)
        width = np.where(np.asarray(a) > 0, np.log1p((b - a) / low), np.inf)
        if rate == 0:
            return np.log(width)
        # from the end where the density of log x is larger
        peak = np.log(b) if rate > 0 else np.log(low)
        return rate * peak + np.log(-np.expm1(-abs(rate) * width) / abs(rate))

    def logcdf(self, x):
        return self.log_mass(self.low, x) - self.total

    def logsf(self, x):
        return self.log_mass(x, self.high) - self.total

    def logpdf(self, x):
        return self.alpha * np.log(x) - self.total


class Dagum:
    def __init__(self, p, a, scale):
        self.p, self.a, self.scale = p, a, scale

    def logcdf(self, x):
        return -self.p * np.log1p((x / self.scale) ** -self.a)

    def logsf(self, x):
        return np.log(-np.expm1(self.logcdf(x)))

    def logpdf(self, x):
        power = (x / self.scale) ** self.a
        return np.log(self.a * self.p / x) + self.p * np.log(power) - (self.p + 1) * np.log1p(power)
