"""The progress bar: it never goes back, says what is going on, and is full only when the results are there."""

import contextlib
import io
import re
import time
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import EnKG
from enkg_ppl.numpyro._progress import ProgressBar, compiling


def lines_of(text):
    """What the bar showed, one after the other, without the terminal's codes."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", text.replace("\x1b[A", "")) if line.startswith("EnKG")]


def share_of(line):
    return int(line.split("%")[0].removeprefix("EnKG"))


class Run:
    """A bar with a clock and a count that a test moves."""

    def __init__(self, num_ensembles=1):
        self.now, self.count, self.busy, self.stream = 100.0, 0, False, io.StringIO()
        self.bar = ProgressBar(
            True,
            num_ensembles,
            lambda: self.count,
            stream=self.stream,
            clock=lambda: self.now,
            is_compiling=lambda: self.busy,
        )

    @property
    def lines(self):
        return lines_of(self.stream.getvalue())

    @property
    def shares(self):
        return [share_of(line) for line in self.lines]


def test_it_never_goes_back_and_is_full_only_at_the_end():
    """Two ensembles, each with a pilot and then the whole one, whose fractions begin anew."""
    run = Run(2)
    bar = run.bar
    for i in range(2):
        for level in range(1, 9):
            bar.guide(i, level, 8)
        for stage in ("pilot", "another pilot", "tempering"):
            for fraction in (0.0, 0.02, 0.4, 1.0):
                bar.refine(i, fraction, f"{stage}, temperature {fraction:g}")
        bar.done(i)
    before = len(run.lines)
    assert run.shares == sorted(run.shares)
    assert max(run.shares) == 99
    bar.refine(0, 0.0, "late")
    assert run.shares[-1] == 99
    bar.finish()
    assert run.shares[-1] == 100
    assert before < len(run.lines)
    assert run.shares.index(100) == len(run.shares) - 1


def test_every_run_of_a_refinement_moves_it():
    run = Run()
    run.bar.guide(0, 8, 8)
    seen = []
    for _ in range(3):
        run.bar.refine(0, 0.0, "")
        run.bar.refine(0, 1.0, "")
        seen.append(run.shares[-1])
    assert seen == [76, 91, 96]


def test_it_says_what_is_going_on():
    run = Run()
    run.busy, run.now = True, 112.0
    run.bar.tick()
    assert run.lines[-1].endswith("| 0:12, compiling")
    run.busy, run.count, run.now = False, 512, 120.0
    run.bar.guide(0, 1, 8)
    assert run.lines[-1].endswith("| 0:20, guiding, level 1 of 8, 512 simulations (26/s)")
    run.count, run.now = 4096, 134.0
    run.bar.guide(0, 8, 8)
    # From 3.75 % at 20 s to 30 % at 34 s: the other 70 % at that rate.
    left = int(14 * 0.7 / (0.3 - 0.3 / 8))
    assert run.lines[-1].endswith(f"guiding, level 8 of 8, 4,096 simulations (120/s), about 0:{left} left")
    run.now = 3834.0
    run.bar.tick()
    assert "| 1:02:14, guiding, level 8 of 8, 4,096 simulations (1/s), about" in run.lines[-1]
    run.bar.done(0)
    assert "last look at the draws" in run.lines[-1]
    run.bar.finish()
    assert run.lines[-1].endswith("done, 4,096 simulations (1/s) in 1:02:14")


def test_it_shows_the_time_on_its_own(monkeypatch):
    """Nothing happens in the run, as while XLA compiles, and yet the clock goes on."""
    monkeypatch.setattr("enkg_ppl.numpyro._progress.REFRESH", 0.01)
    run = Run()
    with run.bar:
        run.now = 165.0
        until = time.monotonic() + 10
        while not any("1:05" in line for line in run.lines) and time.monotonic() < until:
            time.sleep(0.01)
    assert any("1:05" in line for line in run.lines)
    shown = len(run.lines)
    time.sleep(0.05)
    assert len(run.lines) == shown, "it ends with the run"


def test_an_error_leaves_it_as_it_is():
    run = Run()
    with contextlib.suppress(RuntimeError), run.bar:
        run.bar.guide(0, 4, 8)
        raise RuntimeError
    assert run.shares[-1] == 15


def test_weighted_draws_begin_at_nothing_and_what_follows_goes_on_from_there():
    run = Run()
    with run.bar:
        run.bar.refine(0, 0.0, "searching for modes")
        assert run.shares[-1] == 0
        run.bar.refine(0, 0.5, "100 of 200 effective draws")
        assert run.shares[-1] == 33
        for level in range(1, 9):
            run.bar.guide(0, level, 8)
        assert run.shares[-1] == 53  # 33 % and three tenths of the rest
        run.bar.refine(0, 0.2, "temperature 0.2")
    assert run.shares == sorted(run.shares)


def test_compiling_is_seen():
    assert not compiling()
    seen = []

    @jax.jit
    def program(x):
        seen.append(compiling())
        return x

    program(1.0)
    assert seen == [True]
    program(1.0)
    assert not compiling()


@pytest.mark.parametrize("refine", ["auto", None])
def test_a_run(capsys, refine):
    def model(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a, 0.5).expand([2]).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=16, num_ensembles=2, refine=refine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few particles are not enough
        enkg.run(jr.key(0), y=jnp.array([0.5, 0.7]))
    lines = lines_of(capsys.readouterr().err)
    shares = [share_of(line) for line in lines]
    assert shares == sorted(shares)
    assert shares[0] < 50
    assert shares.index(100) == len(shares) - 1 or "done" in lines[shares.index(100)]
    assert f"done, {enkg.num_forward_evaluations:,} simulations" in lines[-1]
    assert any("last look at the draws" in line for line in lines)
