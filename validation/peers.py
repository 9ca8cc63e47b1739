"""How many simulator calls each method needs for a good posterior: ``python -m validation peers``."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from validation.methods import DEFAULT, METHODS, Method
from validation.report import look, style
from validation.runner import choose_methods, choose_targets, count, plan, run_all
from validation.store import Record, Settings, Store, atomic, group
from validation.target import Target

# What a posterior must reach, as a mean over the observations of a task.
MAX_C2ST, MAX_MOMENT_ERROR = 0.55, 0.2
# A method that spends less than this share of what it may spend has stopped by itself: more budget changes nothing.
SPENT = 0.5
PEERS = [name for name, method in METHODS.items() if not method.needs_gradient and name not in ("enkg-published",)]


class Step(NamedTuple):
    """One budget: means over observations and seeds.

    `calls`: simulator evaluations that were spent. `c2st`: NaN where it is not defined. `mean_error`: of the posterior
    means, worst scalar, in posterior sd. `sd_error`: of the sds, worst scalar, relative.
    """

    target: str
    method: str
    budget: int
    calls: float
    c2st: float
    mean_error: float
    sd_error: float
    failed: int

    @property
    def holds(self) -> bool:
        """Whether the posterior is good; a run that failed or gave no finite draws is not."""
        errors = (self.mean_error, self.sd_error)
        return not self.failed and self.c2st <= MAX_C2ST and all(error <= MAX_MOMENT_ERROR for error in errors)


def summarise(records: Sequence[Record], budget: int) -> Step:
    """The means over the runs of one method on one task with one budget."""

    def mean(figure: Callable[[Record], float | None]) -> float:
        values = [figure(record) for record in records if record.status == "done"]
        # A missing figure is a missing proof.
        return float(np.mean([np.nan if value is None else value for value in values])) if values else float("nan")

    def sd_error(record: Record) -> float | None:
        low, high = (record.figures.get(name) for name in ("sd_min", "sd_max"))
        return None if low is None or high is None else max(1 - low, high - 1)

    first = records[0]
    return Step(
        target=group(first.target),
        method=first.method,
        budget=budget,
        calls=mean(lambda r: r.num_forward_evaluations),
        c2st=mean(lambda r: r.figures.get("c2st")),
        mean_error=mean(lambda r: r.figures.get("mean_worst")),
        sd_error=mean(sd_error),
        failed=sum(record.status != "done" for record in records),
    )


def search(run: Callable[[int], Step], start: int, most: int) -> list[Step]:
    """Double the budget from `start` until the posterior is good, the method spends no more, or `most` is exceeded."""
    steps: list[Step] = []
    for budget in itertools.takewhile(lambda b: b <= most, (start * 2**i for i in itertools.count())):
        steps.append(run(budget))
        stopped = len(steps) > 1 and max(step.calls for step in steps[-2:]) < SPENT * budget
        if steps[-1].holds or steps[-1].failed or stopped:
            break
    return steps


# Budgets of a curve, from scarce to plenty.
CURVE = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


def curve(run: Callable[[int], Step], most: int) -> list[Step]:
    """Every budget up to `most`, until the method stops by itself."""
    steps: list[Step] = []
    for budget in (b for b in CURVE if b <= most):
        steps.append(run(budget))
        if not steps[-1].failed and steps[-1].calls < SPENT * budget:
            break
    return steps


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 2 for a wrong name."""
    from validation.posteriors import targets

    options = _parse(argv)
    jax.config.update("jax_enable_x64", True)
    try:
        known = targets(options.data)
        patterns = [p if any(c in p for c in "*?[") or p in known else f"{p}/*" for p in options.targets]
        chosen = choose_targets(known, (), patterns)
        methods = choose_methods(options.methods)
    except ValueError as error:
        print(f"validation peers: {error}", file=sys.stderr)
        return 2
    steps: list[Step] = []
    path = options.out / ("curve.csv" if options.curve else "peers.csv")
    try:
        for name, members in itertools.groupby(chosen, key=lambda target: group(target.name)):
            task = list(members)
            for method in methods:
                found = _steps(task, method, options)
                steps += found
                print(f"{name}, {method.name}: {verdict(found)}", flush=True)
                _write_csv(steps, path)
    except KeyboardInterrupt:
        print("\ninterrupted: what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    print(f"\n{table(steps)}\n\n{path}")
    if options.curve:
        picture = path.with_suffix(".png")
        curve_figure(steps).savefig(picture, dpi=120)
        print(picture)
    return 0


def _steps(task: Sequence[Target], method: Method, options: argparse.Namespace) -> list[Step]:
    def run(budget: int) -> Step:
        settings = Settings(num_draws=options.draws, budget=budget)
        store = Store(options.out, runs=f"peers/{budget}")
        jobs, _ = plan(task, [method], options.seeds)
        run_all(jobs, settings, store, num_processes=options.jobs, data=options.data)
        records = [store.read(job.target.name, method.name, job.seed) for job in jobs]
        return summarise([record for record in records if record is not None], budget)

    if not plan(task, [method], 1)[0]:
        return []
    if options.curve:
        return curve(run, min(options.most, CURVE[-1]))
    return search(run, options.start, options.most)


def verdict(steps: Sequence[Step]) -> str:
    """How a search ended, in words."""
    if not steps:
        return "cannot be tried"
    last = steps[-1]
    figures = f"C2ST {last.c2st:.3f}, means {last.mean_error:.2f} sd off, sds {last.sd_error:.0%}"
    if last.holds:
        return f"{last.calls:,.0f} calls ({figures})"
    if last.failed:
        return f"failed at a budget of {last.budget:,}"
    return f"not with {last.calls:,.0f} calls ({figures})"


def table(steps: Sequence[Step]) -> str:
    """Tasks down, methods across: calls needed, or > the most that was tried."""
    methods = list(dict.fromkeys(step.method for step in steps))
    rows = [("calls needed", *methods)]
    for name in dict.fromkeys(step.target for step in steps):
        cells = []
        for method in methods:
            mine = [step for step in steps if (step.target, step.method) == (name, method)]
            if not mine or mine[-1].failed:
                cells.append("failed" if mine else "")
            else:
                cells.append(f"{'' if mine[-1].holds else '> '}{mine[-1].calls:,.0f}")
        rows.append((name, *cells))
    widths = [max(len(line[i]) for line in rows) for i in range(len(methods) + 1)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in rows)


def curve_figure(steps: Sequence[Step]) -> Figure:
    """C2ST, worst mean and worst sd against calls, a column for each task and a line for each method."""
    figures = (
        ("c2st", "C2ST", MAX_C2ST),
        ("mean_error", "worst mean, posterior sd", MAX_MOMENT_ERROR),
        ("sd_error", "worst sd, relative", MAX_MOMENT_ERROR),
    )
    tasks = list(dict.fromkeys(step.target for step in steps))
    methods = list(dict.fromkeys(step.method for step in steps))
    with style():
        figure = Figure(figsize=(3.2 * len(tasks) + 1.4, 7.5), layout="constrained")
        axes = figure.subplots(len(figures), len(tasks), sharex=True, squeeze=False)
        for j, task in enumerate(tasks):
            for ax, (name, words, limit) in zip(axes[:, j], figures, strict=True):
                for i, method in enumerate(methods):
                    mine = [step for step in steps if (step.target, step.method) == (task, method) and not step.failed]
                    ax.plot(
                        [step.calls for step in mine],
                        [getattr(step, name) for step in mine],
                        **look(i),
                        linewidth=2.5 if method == DEFAULT else 1.0,
                        markersize=5,
                        label=method,
                    )
                ax.axhspan(0, limit, color="0.93", zorder=0)  # good enough
                ax.set_xscale("log")
                ax.xaxis.set_minor_formatter(NullFormatter())
                if name == "c2st":
                    ax.set_ylim(0.45, 1.02)
                    ax.set_title(task, fontsize=9)
                else:
                    ax.set_yscale("log")
                    ax.set_ylim(1e-3, 10)
                if j == 0:
                    ax.set_ylabel(words)
        figure.supxlabel("simulator calls", fontsize=9)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=min(8, len(labels)))
    return figure


def _write_csv(steps: Sequence[Step], path: Path) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow((*Step._fields, "holds"))
    rows.writerows((*step, step.holds) for step in steps)
    atomic(path, lambda file: file.write(text.getvalue().encode()))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m validation peers",
        description=f"Double the budget until C2ST is at most {MAX_C2ST} and moments are within {MAX_MOMENT_ERROR} sd, "
        "as means over the observations of a task.",
    )
    add = parser.add_argument
    add("--targets", nargs="+", required=True, metavar="NAME", help="tasks or patterns, as in sbibm/two_moons")
    add("--methods", nargs="+", default=PEERS, metavar="NAME", help=f"default: {' '.join(PEERS)}")
    add("--data", type=Path, help="folder with reference draws (sbibm/, posteriordb/)")
    add("--curve", action="store_true", help="every budget from 1,000 to 100,000 calls, and a picture of the errors")
    add("--start", type=count, default=10_000, help="first budget, simulator evaluations (default: 10000)")
    add("--most", type=count, default=2_560_000, help="largest budget (default: 2560000)")
    add("--seeds", type=count, default=1, help="runs of each method on each observation (default: 1)")
    add("--draws", type=count, default=2000, help="draws of each run (default: 2000)")
    add("--out", type=Path, default=Path("report"), help="folder for results (default: report)")
    add("--jobs", type=count, default=1, help="processes (default: 1)")
    return parser.parse_args(argv)
