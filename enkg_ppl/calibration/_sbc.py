"""Simulation-based calibration: simulate parameters and data, infer, rank; again and again.

Where parameters are drawn from the prior and data from them, the rank of a parameter among draws of its posterior is
uniform if the posterior is right. Sources: Talts, Betancourt, Simpson, Vehtari & Gelman (2018), arXiv 1804.06788; ranks
of the log likelihood, which also catch a posterior that ignores the data: Modrák, Moon, Kim, Bürkner, Huurre,
Faltejsková, Gelman & Vehtari (2023), Bayesian Analysis 20, arXiv 2211.02383.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from tqdm import tqdm

from enkg_ppl._checks import check_whole
from enkg_ppl.calibration._compiled import CompiledMCMC
from enkg_ppl.calibration._file import DONE, FAILED, PENDING, State, load, save
from enkg_ppl.calibration._identity import identity
from enkg_ppl.calibration._rank import rank, rank_log_likelihood
from enkg_ppl.calibration._result import LOG_LIKELIHOOD, SBC
from enkg_ppl.calibration._simulate import PriorPredictive, Simulated
from enkg_ppl.calibration._witness import Simulations, check_witness
from enkg_ppl.numpyro import EnKG

# Runs that fail from the first data set on are no calibration study but a mistake in the call.
HOPELESS = 3


def sbc(
    model: Callable,
    inference: Any,
    *,
    num_datasets: int = 300,
    rng_key: jax.Array,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    data: str | Iterable[str] | Mapping[str, str] | None = None,
    sites: Sequence[str] | None = None,
    log_likelihood: bool = True,
    num_draws: int = 99,
    keep_draws: bool = True,
    file: str | Path | None = None,
    progress_bar: bool = True,
) -> SBC:
    """Is an inference calibrated on a model? Ranks of simulated truths among its posterior draws, over many data sets.

    A run that raises is recorded in `SBC.failures` and one that warns in `SBC.warnings`; neither ends the study, unless
    the first three all raise.

    Args:
        model: any NumPyro model that can simulate its data, black boxes included (one evaluation a data set).
        inference: an object with ``run(rng_key, *args, **kwargs)`` and ``get_samples()``, such as ``EnKG(model)`` or
            ``MCMC(NUTS(model), ...)``; or a function that makes one from the model, such as `EnKG`. It is used for
            every data set, so that its compiled programs are kept; its own progress bar is off meanwhile.
        num_datasets: data sets to simulate; the bands are as wide as about ``1 / sqrt(num_datasets)``.
        rng_key: data set i uses ``fold_in(rng_key, i)`` and so does not depend on the others.
        args: arguments of the model besides the data.
        kwargs: keyword arguments of the model besides the data.
        data: the observed sites: a name, several, or ``{site: argument}``. By default every site that has the name of
            an argument which `args` and `kwargs` leave open. Where a site is no argument of the model, the model is
            conditioned on it, and `inference` must be a function of the model.
        sites: latent or deterministic sites to rank, scalar by scalar (default: all latent sites).
        log_likelihood: rank the log likelihood of the data too (free of evaluations with `EnKG`, otherwise one run of
            the model a draw).
        num_draws: draws that each truth is ranked among: a random choice of an ensemble's particles, or draws of a
            chain spaced as far as possible; a chain whose effective sample size is below `num_draws` is recorded as a
            warning.
        keep_draws: keep these draws, which `coverage` needs (``num_datasets * num_draws * dim`` numbers).
        file: a ``.npz`` written after every data set. Called again with the same arguments, `sbc` continues where it
            stopped, with the ranks of an unbroken run; with more data sets it adds to them. It simulates one of the
            stored data sets again, to check that the file is of this model.
        progress_bar: show one.

    Raises:
        ModelError: for a model that cannot be simulated.
        TypeError: for an inference that cannot run.
        ValueError: for a file of another study and for invalid numbers.
        RuntimeError: where the first runs all fail.
    """
    check_whole("sbc", num_datasets=num_datasets, num_draws=num_draws)
    if not isinstance(rng_key, jax.Array | np.ndarray):
        raise TypeError(f"sbc needs rng_key as jax.random.key(0) gives it; got {rng_key!r}")
    prior = PriorPredictive(model, args, kwargs or {}, data)
    engine = _engine(inference, prior)
    shapes = _ranked_sites(prior, sites)
    names = [name for site, shape in shapes.items() for name in _scalars(site, shape)]
    dim = len(names)
    if log_likelihood:
        if LOG_LIKELIHOOD in shapes:
            raise ValueError("a site of the model is named 'log_likelihood': rename it, or pass log_likelihood=False")
        names.append(LOG_LIKELIHOOD)
    study = identity(model, engine, rng_key, prior, names, num_draws, keep_draws)
    path = None if file is None else Path(file)
    state = None if path is None else load(path, study)
    simulations = None if path is None else Simulations(model, engine, prior, data)
    if path and state and simulations and state.witness:
        check_witness(path, state.witness_row, state.witness, simulations, _keys(rng_key, state.witness_row)[0])
    state = state or State.empty(num_datasets, len(names), dim, num_draws, keep_draws)
    state = state.with_room(num_datasets)

    pending = [i for i in range(num_datasets) if state.status[i] == PENDING]
    bar = tqdm(
        total=num_datasets,
        initial=num_datasets - len(pending),
        desc="SBC",
        unit="data set",
        disable=not progress_bar,
        file=sys.stderr,
    )
    with bar, _own_bar_off(engine):
        for done_now, i in enumerate(pending):
            keys = _keys(rng_key, i)
            simulated = _one(i, state, prior, engine, keys, shapes, log_likelihood, num_draws)
            if simulations and simulated and not state.witness:
                state.witness, state.witness_row = simulations.witness(keys[0], simulated), i
            if path is not None and np.any(state.status == DONE):  # a mistake in the call leaves no file behind
                save(path, study, state)
            bar.set_postfix_str(_postfix(state, num_datasets), refresh=False)
            bar.update()
            if i + 1 == done_now + 1 == HOPELESS and len(state.failures) == HOPELESS:
                raise RuntimeError(
                    f"each of the first {HOPELESS} data sets failed, the last with {state.failures[i]}: run the "
                    "inference once by hand on data of your own"
                )
    return _result(state, num_datasets, names, shapes, num_draws, keep_draws)


def _keys(rng_key: jax.Array, i: int) -> jax.Array:
    """Of data set `i`: for its simulation, its inference and its ranks."""
    return jr.split(jr.fold_in(rng_key, i), 3)


def _one(
    i: int, state: State, prior: PriorPredictive, engine, keys, shapes, log_likelihood: bool, num_draws: int
) -> Simulated | None:
    """Simulate, infer and rank data set `i`; what comes of it goes into its row. Returns what was simulated."""
    key_data, key_run, key_rank = keys
    simulated = None
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            simulated = prior.simulate(key_data)
            data = simulated.data
            state.truths[i] = _flat(simulated.truth, shapes, 0)
            engine.run(key_run, *prior.args, **prior.kwargs, **data)
            rng = np.random.default_rng(np.asarray(jr.key_data(key_rank)))
            samples = {name: np.asarray(value) for name, value in engine.get_samples().items()}
            chosen = _choose(engine, samples, simulated.truth, shapes, num_draws, rng)
            draws = _flat({name: samples[name][chosen] for name in shapes}, shapes, 1)
            ends = _flat_ends(simulated, shapes)
            ranks = rank(draws, state.truths[i], rng, *ends)
            if log_likelihood:
                of_draws = _log_likelihood(prior, engine, samples, chosen, data)
                ranks = np.append(ranks, rank_log_likelihood(of_draws, simulated.log_likelihood, rng))
            if len(state.draws):
                state.draws[i] = draws
            state.ranks[i], state.status[i] = ranks, DONE
        except Exception as error:
            state.failures[i] = f"{type(error).__name__}: {error}"
            state.status[i] = FAILED
    count = getattr(engine, "num_forward_evaluations", None) if state.status[i] == DONE else None
    state.evaluations[i] = -1 if count is None else count
    state.seconds[i] = time.perf_counter() - started
    told = [str(w.message) for w in caught if issubclass(w.category, UserWarning | RuntimeWarning)]
    if told:
        state.warnings[i] = list(dict.fromkeys(told))
    return simulated


def _choose(engine, samples, truth, shapes, num_draws: int, rng) -> np.ndarray:
    """Which of the posterior draws to rank among."""
    for name, shape in shapes.items():
        if name not in samples:
            raise ValueError(f"the inference gives no draws of site '{name}' (only of {', '.join(samples)})")
        if samples[name].shape[1:] != shape:
            raise ValueError(f"draws of site '{name}' have shape {samples[name].shape[1:]} where the model has {shape}")
    total = len(samples[next(iter(shapes))])
    if total < num_draws:
        raise ValueError(f"the inference gives {total} draws: lower num_draws (now {num_draws}), or draw more")
    if isinstance(engine, EnKG):  # particles have no order
        return rng.choice(total, num_draws, replace=False)
    _warn_if_dependent(engine, truth, shapes, num_draws)
    # The middles of num_draws equal stretches, the whole shifted at random: the last draw is no better than others.
    return ((np.arange(num_draws) + rng.uniform()) * total / num_draws).astype(int)


def _warn_if_dependent(engine, truth, shapes, num_draws: int) -> None:
    """Warn of draws that are worth fewer independent ones than truths are ranked among."""
    try:
        chains = engine.get_samples(group_by_chain=True)
    except TypeError:  # independent draws, of something that knows no chains
        return
    smallest = min(float(np.min(_sizes(np.asarray(chains[name]), truth[name]), initial=np.inf)) for name in shapes)
    if smallest < num_draws:
        warnings.warn(
            f"the smallest effective sample size is {smallest:.0f}, below num_draws = {num_draws}: ranks among "
            "dependent draws are not uniform; draw more, or lower num_draws",
            stacklevel=2,
        )


def _sizes(chains: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Effective sample sizes of every entry.

    Successive draws on opposite sides make the estimate negative: they are worth more than independent ones. Of draws
    that are all the same it is NaN: they are worth one, unless the entry is a constant of the model.
    """
    total = chains.shape[0] * chains.shape[1]
    constant = np.all(chains == chains[:1, :1], axis=(0, 1))
    with np.errstate(all="ignore"):
        sizes = np.asarray(effective_sample_size(chains), float)
    sizes = np.where(sizes < 0, total, sizes)
    sizes = np.where(constant, np.where(chains[0, 0] == truth, total, 1), sizes)
    return np.where(np.isnan(sizes), 0, sizes)


def _log_likelihood(prior: PriorPredictive, engine, samples, chosen, data) -> np.ndarray:
    """Log density of the data at the chosen draws, from the run where it kept it."""
    if hasattr(engine, "get_log_likelihood"):
        pointwise = [np.asarray(value)[chosen] for value in engine.get_log_likelihood().values()]
        return np.sum([value.reshape(len(chosen), -1).sum(axis=1) for value in pointwise], axis=0)
    return prior.log_likelihood({name: samples[name][chosen] for name in prior.latents}, data)


def _flat(values: Mapping[str, np.ndarray], shapes, lead: int) -> np.ndarray:
    """Sites side by side: ``(dim,)``, or ``(draws, dim)`` where values lead with draws."""
    columns = [np.asarray(values[name], float) for name in shapes]
    return np.concatenate([column.reshape((*column.shape[:lead], -1)) for column in columns], axis=-1)


def _flat_ends(simulated: Simulated, shapes) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the supports, ``(dim,)`` each, as `_flat` lays out the sites; NaN for none."""
    none = {name: np.full(shape, np.nan) for name, shape in shapes.items() if name not in simulated.ends}
    low, high = (_flat(none | {n: pair[k] for n, pair in simulated.ends.items()}, shapes, 0) for k in range(2))
    return low, high


def _scalars(site: str, shape: tuple[int, ...]) -> list[str]:
    return [f"{site}[{','.join(map(str, index))}]" if index else site for index in np.ndindex(shape)]


def _result(state: State, n: int, names, shapes, num_draws: int, keep_draws: bool) -> SBC:
    return SBC(
        ranks=state.ranks[:n],
        names=names,
        num_draws=num_draws,
        sites=dict(shapes),
        evaluations=state.evaluations[:n],
        seconds=state.seconds[:n],
        failures={i: text for i, text in state.failures.items() if i < n},
        warnings={i: texts for i, texts in state.warnings.items() if i < n},
        truths=state.truths[:n],
        draws=state.draws[:n] if keep_draws else None,
    )


def _postfix(state: State, n: int) -> str:
    counted = state.evaluations[:n][state.evaluations[:n] >= 0]
    parts = [f"{counted.sum():,} evaluations"] if len(counted) else []
    failed = int(np.sum(state.status[:n] == FAILED))
    return ", ".join(parts + ([f"{failed} failed"] if failed else []))


# -- what is asked for ---------------------------------------------------------------------------------------------


def _engine(inference, prior: PriorPredictive):
    ready = not isinstance(inference, type) and hasattr(inference, "run")
    if not ready and not callable(inference):
        raise TypeError(f"sbc needs an inference such as EnKG(model), or a function that makes one; got {inference!r}")
    if ready and prior.conditioned:
        raise TypeError(
            f"the data of {', '.join(prior.data)} are no argument of the model, so sbc conditions the model on them: "
            "pass a function that makes the inference from a model, such as EnKG or lambda model: EnKG(model)"
        )
    engine = inference if ready else inference(prior.model)
    for method in ("run", "get_samples"):
        if not callable(getattr(engine, method, None)):
            raise TypeError(f"sbc needs an inference with run and get_samples; {engine!r} has no {method}")
    if isinstance(engine, MCMC) and CompiledMCMC.takes(engine):
        return CompiledMCMC(engine, tuple(prior.data.values()))
    return engine


def _ranked_sites(prior: PriorPredictive, sites: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    known = prior.latents | prior.deterministics
    if sites is None:
        return dict(prior.latents)
    sites = [sites] if isinstance(sites, str) else list(sites)
    for site in sites:
        if site not in known:
            raise ValueError(f"sites may hold {', '.join(known)}; got {site!r}")
    if not sites:
        raise ValueError("sites is empty: name at least one, or leave it out for all latent sites")
    return {site: known[site] for site in sites}


class _own_bar_off:
    """One progress bar is enough: that of the inference is off meanwhile."""

    def __init__(self, engine):
        self.engine, self.shown = engine, getattr(engine, "progress_bar", None)

    def __enter__(self):
        if self.shown:
            self.engine.progress_bar = False

    def __exit__(self, *_):
        if self.shown:
            self.engine.progress_bar = self.shown
