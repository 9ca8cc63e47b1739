"""Run methods on targets, judge the draws, keep everything: ``python -m validation run``."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import difflib
import fnmatch
import io
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import jax
from tqdm import tqdm

from validation.methods import DEFAULT, METHODS, Method, Result
from validation.report import write_report
from validation.scoring import scalar_names, score
from validation.store import Record, Settings, Store, atomic, run_key, score_key
from validation.target import Target

QUICK, ALL = "quick", "all"
COLUMNS: tuple[str, ...] = (
    "target", "method", "seed", "status", "dim", "draws", "c2st", "sliced_w2", "sliced_w2_floor", "mean_worst",
    "mean_rms", "mean_floor", "sd_min", "sd_max", "mean_median", "sd_median", "mode_error", "l2_ratio",
    "ssr", "crps", "l2", "chi2", "log_evidence", "log_evidence_error",
    "forward_evaluations", "evaluations_per_draw", "gradients", "seconds", "warnings", "message", "budget", "key",
)  # fmt: skip


class NameUnknown(ValueError):
    """A target, suite or method that does not exist; the message says what does."""


# -- what to run -------------------------------------------------------------------------------------------------


def choose_targets(
    all_targets: Mapping[str, Target], suites: Sequence[str] = (), patterns: Sequence[str] = ()
) -> list[Target]:
    """Targets of any of the suites ("all": every one) whose name matches any of the patterns.

    With neither, the quick suite; with patterns alone, of all targets.

    Raises `NameUnknown` for a suite that does not exist and a pattern that fits nothing.
    """
    known = {suite for target in all_targets.values() for suite in target.suites}
    for suite in suites:
        if suite not in known | {ALL}:
            raise NameUnknown(_unknown("suite", suite, known | {ALL}))
    if not suites:
        suites = [ALL] if patterns else [QUICK]
    chosen = [t for t in all_targets.values() if ALL in suites or set(suites) & set(t.suites)]
    if not patterns:
        return chosen
    for pattern in patterns:
        if not fnmatch.filter([t.name for t in chosen], pattern):
            raise NameUnknown(_unknown("target", pattern, [t.name for t in chosen]))
    return [t for t in chosen if any(fnmatch.fnmatchcase(t.name, pattern) for pattern in patterns)]


def choose_methods(names: Sequence[str]) -> list[Method]:
    """Methods by name, the default one for none. Raises `NameUnknown`."""
    for name in names:
        if name not in METHODS:
            raise NameUnknown(_unknown("method", name, METHODS))
    return [METHODS[name] for name in dict.fromkeys(names or [DEFAULT])]


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'?" if close else f"see {kind}s with: python -m validation run --list"
    return f"there is no {kind} '{name}'; {hint}"


# -- running -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """One run that is due."""

    target: Target
    method: Method
    seed: int


def plan(targets: Iterable[Target], methods: Sequence[Method], num_seeds: int) -> tuple[list[Job], list[str]]:
    """Every run, target by target; and a sentence for each method that cannot be tried on some target."""
    jobs, refused = [], {}
    for target in targets:
        for method in methods:
            reason = method.refuses(target)
            if reason is not None:
                refused.setdefault(reason, []).append(target.name)
                continue
            jobs += [Job(target, method, seed) for seed in range(num_seeds)]
    return jobs, [f"{reason}: left out on {_some(names)}" for reason, names in refused.items()]


def is_done(job: Job, settings: Settings, store: Store) -> bool:
    """Whether this run is on disk, with this code and these settings. Failed runs are tried again."""
    record = store.read(job.target.name, job.method.name, job.seed)
    return (
        record is not None
        and record.status == "done"
        and record.key == run_key(job.target, job.method, settings)
        and record.scored == score_key(job.target)
    )


def run_one(job: Job, settings: Settings, store: Store) -> Record:
    """Run and judge one method on one target; what it raises is recorded, not raised.

    Draws of the same code and settings are judged again rather than drawn again.
    """
    target, method = job.target, job.method
    key, scored = run_key(target, method, settings), score_key(target)
    record = store.read(target.name, method.name, job.seed)
    draws = None if record is None or record.status != "done" or record.key != key else store.draws(record)
    if record is None or draws is None:
        record = Record(target.name, method.name, job.seed, key, dataclasses.asdict(settings))
    try:
        truth = store.truth(target)
        # Other people's samplers broadcast freely, and what they warn of is not about the posterior.
        with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if draws is None:
                num_draws = target.num_particles or settings.num_draws
                result = method.run(target, job.seed, num_draws, False, budget=settings.budget)
                draws = result.draws
                _enter(record, result)
                record.names = scalar_names(target, record.dim)
            record.figures = dataclasses.asdict(score(target, truth, draws, record.log_evidence))
        record.status, record.message, record.scored = "done", "", scored
    except Exception as error:
        words = str(error).strip().splitlines() or [""]
        record.status, record.message = "failed", f"{type(error).__name__}: {words[0]}"
        record.trace = traceback.format_exc()
        draws = None
    store.write(record, draws)
    return record


def _enter(record: Record, result: Result) -> None:
    record.num_draws, record.dim = result.draws.shape
    record.num_forward_evaluations = int(result.num_forward_evaluations)
    record.num_gradients = int(result.num_gradients)
    record.seconds = float(result.seconds)
    record.log_evidence = None if result.log_evidence is None else float(result.log_evidence)
    record.warnings = list(result.warnings)


def run_all(
    jobs: Sequence[Job],
    settings: Settings,
    store: Store,
    *,
    num_processes: int = 1,
    data: Path | None = None,
    progress: bool = True,
) -> list[Record]:
    """What is due of `jobs`; the rest is left as it is. Returns the new records.

    `num_processes`: above one, targets are shared among as many processes, which look targets up by name, with `data`.
    An interruption leaves what is finished; the same call goes on from there.
    """
    due = [job for job in jobs if not is_done(job, settings, store)]
    new: list[Record] = []
    with tqdm(total=len(jobs), initial=len(jobs) - len(due), disable=not progress, unit="run", leave=True) as bar:
        for record in (
            _in_turn(due, settings, store, bar)
            if num_processes == 1
            else _side_by_side(due, settings, store, num_processes, data)
        ):
            new.append(record)
            bar.update()
            if record.status == "failed":
                bar.write(f"failed: {record.method} on {record.target}, seed {record.seed}: {record.message}")
    return new


def _in_turn(jobs: Sequence[Job], settings: Settings, store: Store, bar: tqdm) -> Iterator[Record]:
    for job in jobs:
        bar.set_description_str(f"{job.target.name}, {job.method.name}, seed {job.seed}")
        yield run_one(job, settings, store)


def _side_by_side(jobs, settings: Settings, store: Store, num_processes: int, data) -> Iterator[Record]:
    """A process takes all runs of a target: the truth is found once, and programs are compiled once."""
    by_target: dict[str, list[tuple[str, int]]] = {}
    for job in jobs:
        by_target.setdefault(job.target.name, []).append((job.method.name, job.seed))
    # Spawned, not forked: JAX has threads by now.
    pool = ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"))
    try:
        tasks = [pool.submit(_work, name, runs, settings, store, data) for name, runs in by_target.items()]
        for task in as_completed(tasks):
            yield from task.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _work(name: str, runs: list[tuple[str, int]], settings: Settings, store: Store, data: Path | None) -> list[Record]:
    from validation.posteriors import targets

    jax.config.update("jax_enable_x64", not settings.float32)
    target = targets(data)[name]
    return [run_one(Job(target, METHODS[method], seed), settings, store) for method, seed in runs]


# -- results -----------------------------------------------------------------------------------------------------


def row(record: Record) -> dict[str, object]:
    """A record as a row of the table, by column."""
    cells: dict[str, object] = {name: getattr(record, name) for name in ("target", "method", "seed", "status", "dim")}
    cells |= {name: _number(value) for name, value in record.figures.items()}
    per_draw = record.num_forward_evaluations / record.num_draws if record.num_draws else None
    cells |= {
        "draws": record.num_draws,
        "log_evidence": _number(record.log_evidence),
        "forward_evaluations": record.num_forward_evaluations,
        "evaluations_per_draw": _number(per_draw),
        "gradients": record.num_gradients,
        "seconds": f"{record.seconds:.1f}",
        "warnings": "; ".join(record.warnings),
        "message": record.message,
        "budget": record.settings.get("budget"),
        "key": record.key,
    }
    return cells


def write_csv(records: Iterable[Record], path: Path) -> None:
    """One row a run, columns `COLUMNS`; empty where a figure is not defined."""

    def write(file) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        table = csv.DictWriter(text, list(COLUMNS))
        table.writeheader()
        table.writerows(row(record) for record in records)
        text.flush()
        text.detach()

    atomic(path, write)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# -- command line ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """``python -m validation run``: 0 where every run was done, 1 where some failed, 2 for a wrong name."""
    from validation.posteriors import targets

    options = _parse(argv)
    jax.config.update("jax_enable_x64", not options.float32)
    try:
        known = targets(options.data)
        if options.list:
            _list(known)
            return 0
        chosen = choose_targets(known, options.suite, options.target)
        methods = choose_methods(options.method)
    except ValueError as error:
        hint = "" if options.data or "method" in str(error) else " (posteriors whose truth is a file need --data DIR)"
        print(f"validation run: {error}{hint}", file=sys.stderr)
        return 2
    if options.data is None:
        print("without --data, the posteriors whose truth is a file are left out")
    jobs, refused = plan(chosen, methods, options.seeds)
    for sentence in refused:
        print(sentence)
    settings = Settings(options.draws, options.budget, options.float32)
    store = Store(options.out)
    interrupted = False
    try:
        new = run_all(jobs, settings, store, num_processes=options.jobs, data=options.data)
        print(f"{len(jobs)} runs: {len(new)} new, {len(jobs) - len(new)} as they were")
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted: what is finished is kept, and the same command goes on from there", file=sys.stderr)
    records = store.records()
    write_csv(records, store.out / "validation.csv")
    page = write_report(store)
    wanted = {(job.target.name, job.method.name, job.seed) for job in jobs}
    mine = [record for record in records if (record.target, record.method, record.seed) in wanted]
    print(table(mine))
    print(f"\n{store.out / 'validation.csv'}\n{page}")
    if interrupted:
        return 130
    return int(any(record.status == "failed" for record in mine))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m validation run", description="Compare methods with posteriors whose truth is known."
    )
    add = parser.add_argument
    add("--suite", nargs="+", default=[], metavar="NAME", help=f"collections of targets, or '{ALL}' (default: {QUICK})")
    add("--target", nargs="+", default=[], metavar="GLOB", help="only targets of these names, as in 'sbibm/slcp/*'")
    add("--method", nargs="+", default=[], metavar="NAME", help=f"default: {DEFAULT}")
    add("--data", type=Path, help="folder with reference draws (sbibm/, posteriordb/)")
    add("--seeds", type=count, default=1, help="runs of each method on each target (default: 1)")
    add("--draws", type=count, default=2000, help="draws of each run, where the target does not say (default: 2000)")
    add("--budget", type=count, help="simulator evaluations that a run aims at (default: what a user would take)")
    add("--out", type=Path, default=Path("report"), help="folder for results (default: report)")
    add("--jobs", type=count, default=1, help="processes (default: 1)")
    add("--float32", action="store_true", help="single precision, JAX's own default (default: double)")
    add("--list", action="store_true", help="show targets, suites and methods, and stop")
    return parser.parse_args(argv)


def count(text: str) -> int:
    """A whole number above zero, from the command line."""
    try:
        value = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got '{text}'")
    return value


def _list(known: Mapping[str, Target]) -> None:
    suites: dict[str, int] = {}
    for target in known.values():
        for suite in target.suites:
            suites[suite] = suites.get(suite, 0) + 1
    print("methods")
    for method in METHODS.values():
        print(f"  {method.name:<16} {method.summary}")
    print(f"suites (and '{ALL}')")
    for suite, size in sorted(suites.items()):
        print(f"  {suite:<28} {size} targets")
    print("targets")
    for target in known.values():
        print(f"  {target.name:<36} {', '.join(target.suites)}")


def table(records: Sequence[Record]) -> str:
    """The figures that matter, as text."""
    # Where no more than the simulated unknowns is known, other figures matter.
    fields = {"CRPS": ("crps", ".3g"), "SSR": ("ssr", ".2f"), "chi^2": ("chi2", ".2f")}
    fields = fields if any(r.figures.get("chi2") is not None for r in records) else {}
    usual = ("C2ST", "mean err", "sd ratio", "modes", "log Z err")
    header = ("target", "method", "seed", *usual, *fields, "evaluations", "time")
    lines: list[tuple[str, ...]] = [header]
    for r in records:
        f = r.figures
        name = (r.target, r.method, str(r.seed))
        if r.status == "failed":
            lines.append((*name, "failed: " + r.message, *[""] * (len(header) - 4)))
            continue
        ratio = f"{f['sd_min']:.2f}-{f['sd_max']:.2f}" if f.get("sd_min") is not None else ""
        lines.append(
            (
                *name,
                _short(f.get("c2st"), ".3f"),
                _short(f.get("mean_worst"), ".2f"),
                ratio,
                _short(f.get("mode_error"), ".0%"),
                _short(f.get("log_evidence_error"), "+.2f"),
                *(_short(f.get(figure), form) for figure, form in fields.values()),
                f"{r.num_forward_evaluations:,}",
                f"{r.seconds:.0f} s",
            )
        )
    whole = [line for line in lines if not line[3].startswith("failed")]
    widths = [max(len(line[i]) for line in (whole if i > 2 else lines)) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _short(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
