"""Two posteriors side by side: means and standard deviations of every scalar parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float


class MomentsRow(NamedTuple):
    """First two moments of one scalar under a posterior and under the reference it is judged by.

    Attributes:
        name: the scalar, `site` or `site[index]`.
        mean: posterior mean.
        sd: posterior standard deviation.
        reference_mean: mean of the reference.
        reference_sd: standard deviation of the reference.
    """

    name: str
    mean: float
    sd: float
    reference_mean: float
    reference_sd: float

    @property
    def shift(self) -> float:
        """Difference of the means in standard deviations of the reference; 0 is right."""
        return (self.mean - self.reference_mean) / self.reference_sd

    @property
    def sd_ratio(self) -> float:
        """Ratio of the standard deviations; 1 is right, below 1 is overconfident."""
        return self.sd / self.reference_sd


def scalars(
    samples: Mapping[str, ArrayLike], sites: Iterable[str] | None = None
) -> Iterator[tuple[str, Float[np.ndarray, " draws"]]]:
    """Take sites apart into named scalars: `theta` with shape `(draws, 2)` gives `theta[0]` and `theta[1]`.

    Args:
        samples: draws of each site, `(draws, *site shape)`.
        sites: the sites to show, in this order; all by default.
    """
    for site in samples if sites is None else sites:
        draws = np.asarray(samples[site])
        for index in np.ndindex(draws.shape[1:]):
            label = f"{site}[{','.join(map(str, index))}]" if index else site
            yield label, draws[:, *index]


def moments_table(
    samples: Mapping[str, ArrayLike], reference: Mapping[str, ArrayLike], sites: Iterable[str] | None = None
) -> list[MomentsRow]:
    """Compare a posterior with a reference, scalar by scalar.

    Args:
        samples: draws of the posterior, `(draws, *site shape)` a site.
        reference: draws of the reference, laid out alike; the number of draws may differ.
        sites: the sites to compare, in this order; by default those that both have.

    Raises:
        ValueError: when a site's shape differs between the two.
    """
    chosen = [site for site in samples if site in reference] if sites is None else list(sites)
    for site in chosen:
        ours, theirs = np.shape(samples[site])[1:], np.shape(reference[site])[1:]
        if ours != theirs:
            raise ValueError(f"site {site!r} has shape {ours} in samples but {theirs} in reference")
    return [
        MomentsRow(name, *map(float, (a.mean(), a.std(ddof=1), b.mean(), b.std(ddof=1))))
        for (name, a), (_, b) in zip(scalars(samples, chosen), scalars(reference, chosen), strict=True)
    ]


def format_moments(rows: Iterable[MomentsRow], names: tuple[str, str] = ("EnKG", "NUTS")) -> str:
    """The table as text; `names` are the posterior and its reference.

    The last line gives the largest |difference of means| and the standard deviations farthest from ratio 1.
    """
    rows = list(rows)
    width = max([len(row.name) for row in rows] + [len("parameter")])
    ours, theirs = names
    header = (
        f"{'parameter':<{width}}  {f'{ours} mean':>11} {'sd':>10}  {f'{theirs} mean':>11} {'sd':>10}"
        f"  {'diff / sd':>9}  {'sd ratio':>8}"
    )
    lines = [header, "-" * len(header)]
    for row in rows:
        lines.append(
            f"{row.name:<{width}}  {row.mean:>11.4g} {row.sd:>10.3g}  {row.reference_mean:>11.4g} "
            f"{row.reference_sd:>10.3g}  {row.shift:>+9.2f}  {row.sd_ratio:>8.2f}"
        )
    if rows:
        shift = max(abs(row.shift) for row in rows)
        ratio = max((row.sd_ratio for row in rows), key=lambda r: abs(np.log(r)))
        lines.append(f"largest difference of means {shift:.2f} sd; sd ratio farthest from one {ratio:.2f}")
    return "\n".join(lines)
