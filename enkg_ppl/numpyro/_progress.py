"""The progress bar of a run, outside the numerics."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import PurePath
from typing import IO, Any

from tqdm import tqdm

# Share of the bar that the guided flow takes, and the share of what is then left that each run of a refinement takes:
# it does not say beforehand how many there will be (a pilot, then the whole ensemble).
GUIDE_SHARE, PASS_SHARE = 0.3, 2 / 3
ALMOST = 0.99  # nothing but the results themselves is more
# Seconds between looks at the clock, and share of the bar from which what is left can be told.
REFRESH, LEAST_SHARE = 1.0, 0.05
# Files of JAX that are at work while a program is traced, lowered or compiled.
COMPILER = {"compiler.py", "mlir.py", "partial_eval.py"}


class ProgressBar:
    """One bar over all ensembles, in whatever order they advance; silent where `show` is false.

    It never goes back, and is full only when the results are there. Beside it stand the stage (or that XLA compiles),
    the number of simulations and their rate, and an estimate of what is left. `count`: simulations so far.
    """

    def __init__(
        self,
        show: bool,
        num_ensembles: int,
        count: Callable[[], int],
        *,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_compiling: Callable[[], bool] | None = None,
    ):
        self._show, self._count, self._clock = show, count, clock
        self._is_compiling = compiling if is_compiling is None else is_compiling
        self._bar: Any = tqdm(
            total=1.0,
            disable=not show,
            file=stream or sys.stderr,
            bar_format="EnKG {percentage:3.0f}% |{bar:16}| {desc}",
            dynamic_ncols=True,
            leave=True,
        )
        self._stages = [_Stage() for _ in range(num_ensembles)]
        self._words = "starting"
        self._started, self._first = clock(), None  # when the first simulation was there
        self._share = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __enter__(self) -> ProgressBar:
        if self._show:
            threading.Thread(target=self._watch, name="EnKG progress", daemon=True).start()
        return self

    def __exit__(self, *_):
        with self._lock:
            self._closed.set()
            self._bar.close()

    def guide(self, ensemble: int, level: int, num_levels: int) -> None:
        """So many levels of the guided flow are done."""
        self._stages[ensemble].guided(level / num_levels)
        self._say(f"guiding, level {level} of {num_levels}")

    def refine(self, ensemble: int, fraction: float, words: str) -> None:
        """A refinement is so far; a smaller fraction than before begins its next run."""
        self._stages[ensemble].refined(fraction)
        self._say(words)

    def done(self, ensemble: int) -> None:
        """This ensemble has its draws."""
        self._stages[ensemble].done()
        done = sum(stage.is_done for stage in self._stages)
        self._say("last look at the draws" if done == len(self._stages) else f"{done} of {len(self._stages)} done")

    def finish(self) -> None:
        """The results are there."""
        with self._lock:
            self._share = 1.0
            self._draw(f"done, {self._counted()} in {_time(self._clock() - self._started)}")

    def tick(self) -> None:
        """Show the time that has gone by."""
        with self._lock:
            if not self._closed.is_set() and self._share < 1:
                self._draw(self._line())

    def _watch(self) -> None:
        while not self._closed.wait(REFRESH):
            self.tick()

    def _say(self, words: str) -> None:
        with self._lock:
            self._words = words
            share = sum(stage.share for stage in self._stages) / len(self._stages)
            self._share = max(self._share, min(share, ALMOST))
            self._draw(self._line())

    def _line(self) -> str:
        if not self._show:
            return ""
        now = self._clock()
        if self._count() and self._first is None:
            self._first = (now, self._share)
        parts = [_time(now - self._started), "compiling" if self._is_compiling() else self._words]
        if self._count():
            parts.append(self._counted())
        if self._first is not None:
            # Until the first simulation most of the time goes into compiling, which is not to come again.
            since, share = now - self._first[0], self._share - self._first[1]
            if share >= LEAST_SHARE:
                parts.append(f"about {_time(since * (1 - self._share) / share)} left")
        return ", ".join(parts)

    def _counted(self) -> str:
        count, seconds = self._count(), self._clock() - self._started
        rate = f" ({count / seconds:,.0f}/s)" if seconds > 0 else ""
        return f"{count:,} simulations{rate}"

    def _draw(self, text: str) -> None:
        self._bar.n = self._share
        self._bar.set_description_str(text, refresh=False)
        self._bar.refresh()


class _Stage:
    """How far one ensemble is, as a share of all that it has to do."""

    def __init__(self):
        self.share, self.is_done = 0.0, False
        self._begun, self._fraction = 0.0, 0.0  # of the run of the refinement that is under way
        self._before: float | None = None  # how far it was when the guided flow began, perhaps after weighted draws

    def guided(self, fraction: float) -> None:
        before = self._before = self.share if self._before is None else self._before
        self._begun, self._fraction = before + GUIDE_SHARE * (1 - before), 0.0
        self.share = before + GUIDE_SHARE * (1 - before) * fraction

    def refined(self, fraction: float) -> None:
        if fraction < self._fraction:
            self._begun = self._end
        self._fraction = fraction
        self.share = self._begun + (self._end - self._begun) * min(fraction, 1.0)

    def done(self) -> None:
        self.share, self.is_done = ALMOST, True

    @property
    def _end(self) -> float:
        return self._begun + PASS_SHARE * (ALMOST - self._begun)


def compiling() -> bool:
    """Whether a thread is making a program out of Python code just now."""
    for frame in sys._current_frames().values():
        while frame is not None:
            path = PurePath(frame.f_code.co_filename)
            if path.name in COMPILER and path.parts[-4:-1].count("_src"):
                return True
            frame = frame.f_back
    return False


def _time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
