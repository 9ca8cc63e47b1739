"""The progress bar of a run, outside the numerics."""

from __future__ import annotations

import sys

from tqdm import tqdm

# Share of the bar that the guided flow takes before the refinement.
GUIDE_SHARE = 0.3


class ProgressBar:
    """One bar over all ensembles; silent where `show` is false."""

    def __init__(self, show: bool, num_ensembles: int):
        self._bar = tqdm(
            total=float(num_ensembles),
            disable=not show,
            file=sys.stderr,
            bar_format="EnKG {percentage:3.0f}% |{bar:32}| {elapsed} {desc}",
            leave=True,
        )
        self._done = 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_):
        self._bar.close()

    def guide(self, level: int, num_levels: int) -> None:
        self._show(GUIDE_SHARE * level / num_levels, f"guiding, level {level} of {num_levels}")

    def refine(self, fraction: float, words: str) -> None:
        self._show(GUIDE_SHARE + (1 - GUIDE_SHARE) * fraction, words)

    def next(self) -> None:
        """One more ensemble is done."""
        self._done += 1
        self._show(0.0, "done" if self._done >= self._bar.total else f"ensemble {self._done} done")

    def _show(self, fraction: float, words: str) -> None:
        self._bar.set_description_str(words, refresh=False)
        self._bar.n = min(self._done + fraction, self._bar.total)
        self._bar.refresh()
