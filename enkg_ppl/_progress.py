"""The progress bar of a run, outside the numerics."""

from __future__ import annotations

import sys

from tqdm import tqdm

# Share of the bar that the guided flow takes before the refinement.
GUIDE_SHARE = 0.3


class ProgressBar:
    """One bar over all ensembles, in whatever order they advance; silent where `show` is false."""

    def __init__(self, show: bool, num_ensembles: int):
        self._bar = tqdm(
            total=float(num_ensembles),
            disable=not show,
            file=sys.stderr,
            bar_format="EnKG {percentage:3.0f}% |{bar:32}| {elapsed} {desc}",
            leave=True,
        )
        self._shares = [0.0] * num_ensembles

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_):
        self._bar.close()

    def guide(self, ensemble: int, level: int, num_levels: int) -> None:
        self._show(ensemble, GUIDE_SHARE * level / num_levels, f"guiding, level {level} of {num_levels}")

    def refine(self, ensemble: int, fraction: float, words: str) -> None:
        self._show(ensemble, GUIDE_SHARE + (1 - GUIDE_SHARE) * fraction, words)

    def done(self, ensemble: int) -> None:
        """This ensemble has its draws."""
        self._shares[ensemble] = 1.0
        done = sum(share == 1 for share in self._shares)
        self._show(ensemble, 1.0, "done" if done == len(self._shares) else f"{done} of {len(self._shares)} done")

    def _show(self, ensemble: int, share: float, words: str) -> None:
        self._shares[ensemble] = share
        self._bar.set_description_str(words, refresh=False)
        self._bar.n = min(sum(self._shares), self._bar.total)
        self._bar.refresh()
