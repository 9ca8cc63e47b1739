"""`EnKG`: inference for NumPyro models whose simulator has no gradient, with the surface of `numpyro.infer.MCMC`."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.infer import MCMC

from enkg_ppl._checks import check_whole
from enkg_ppl._infer import RunProgress, infer
from enkg_ppl._keywords import explain_keywords
from enkg_ppl.diagnostics import Diagnostics
from enkg_ppl.evaluation._black_box import BlackBoxError, raise_host_failure, watch_black_boxes
from enkg_ppl.evaluation._blocks import block_size
from enkg_ppl.evaluation._ensembles import METHODS, Barrier, EnsembleMethod, run_ensembles
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.evaluation._failure import MOST_CHECKS, Run, continue_run
from enkg_ppl.evaluation._ledger import Ledger
from enkg_ppl.evaluation._store import Store
from enkg_ppl.guidance import Correction
from enkg_ppl.numpyro._arguments import (
    OF_MCMC,
    about_plates,
    as_typed_key,
    check_extra_fields,
    check_model,
)
from enkg_ppl.numpyro._init import starting_points
from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.numpyro._partial import PartialResult, kept_on_failure
from enkg_ppl.numpyro._predict import sample_observed, sample_prior
from enkg_ppl.numpyro._progress import ProgressBar
from enkg_ppl.numpyro._refusals import ModelError
from enkg_ppl.numpyro._renamed import new_names, renamed, renamed_run, what_was_renamed
from enkg_ppl.numpyro._result import Result, collect
from enkg_ppl.numpyro._summary import notes, table, worth
from enkg_ppl.numpyro._traced import TracedResult, is_traced, run_traced
from enkg_ppl.posterior import Posterior
from enkg_ppl.problem import InverseProblem
from enkg_ppl.refinement import Refinement
from enkg_ppl.schedule import Schedule
from enkg_ppl.types import Ensemble

MAX_LISTED = 64  # entries of a diffusion prior's site that a summary lists one by one
AMPLE = 24  # simulations a particle, below which a budget has none left to repeat
SEED_PRIOR, SEED_PREDICTIVE = 0, 1  # of what `to_arviz` draws on request


class EnKG(MCMC):
    """Ensemble Kalman Diffusion Guidance for NumPyro models; the simulator is evaluated but never differentiated.

    Use it in place of ``MCMC(NUTS(model), ...)``: `run`, then `get_samples`, `print_summary`, `to_arviz`. A chain is an
    independent ensemble and a draw is a particle. It is an `MCMC`, so that everything that reads one, such as
    `arviz.from_numpyro`, reads this.

    Args:
        model: a NumPyro model with continuous latent sites; simulators in host code go through `blackbox`.
        num_particles: particles in an ensemble, which is also the number of draws; at least 4.
        num_ensembles: independent ensembles, the chains of R-hat.
        ensemble_method: "sequential", one after the other; "parallel", on all JAX devices at once; "vectorized", side
            by side on one device, so that every call of the simulator serves all ensembles.
        correction: how the guided flow uses the data (default `KalmanCorrection()`).
        schedule: noise levels of the guided flow (default: those of the correction).
        refine: "auto" makes the posterior exact: by weighted draws (`AdaptiveImportanceSampling`) where these suffice,
            otherwise from the guided ensemble by `TemperedSMC` or, in latent spaces large for this many particles, by
            `EllipticalSlice`; `diagnostics()` gives the choice and the reason. A refinement such as `TemperedSMC(...)`
            does so with your settings; None returns the guided ensemble as it is.
        progress_bar: show one.
        max_forward_evaluations: limit on simulator evaluations of the whole run, shared equally by the ensembles and
            never exceeded. A warning says where it cut the run short; a run that it cannot pay for at all is refused
            before the first simulation.
        chunk_size: particles simulated at a time, to bound memory (default: all).
        init: known starting points, a dictionary with a value for every latent site, or a list of such; modes within
            their reach are found, whichever others are.
        store: a folder, or a `enkg_ppl.evaluation.Store`, for the simulations of all black boxes of the model that have
            no store of their own. Stored simulations are not repeated, whatever the data, the prior and the noise. A
            run that was killed can be continued: with the same key it ends with the numbers of an unbroken run. See
            `blackbox`.

    Source: Zheng et al., arXiv 2409.20175 (guidance); the refinements have their own.
    """

    @explain_keywords("EnKG", instead=OF_MCMC)
    def __init__(
        self,
        model: Callable,
        *,
        num_particles: int = 1024,
        num_ensembles: int = 1,
        ensemble_method: EnsembleMethod = "sequential",
        correction: Correction | None = None,
        schedule: Schedule | None = None,
        refine: Literal["auto"] | Refinement | None = "auto",
        progress_bar: bool = True,
        max_forward_evaluations: int | None = None,
        chunk_size: int | None = None,
        init: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        store: Store | str | Path | None = None,
    ):
        # MCMC.__init__ sets up chains of a kernel; there is none here, so it is not called.
        check_model(model)
        least = 4 if refine is not None else 2
        why = " (ensembles are split in two halves of at least 2 particles)"
        check_whole("EnKG", least, why, num_particles=num_particles)
        check_whole("EnKG", 1, " (each ensemble is a chain)", num_ensembles=num_ensembles)
        if ensemble_method not in METHODS:
            raise ValueError(f"ensemble_method must be one of {', '.join(METHODS)}; got {ensemble_method!r}")
        if not (refine is None or refine == "auto" or isinstance(refine, Refinement)):
            raise TypeError(f"refine must be 'auto', None or a refinement such as TemperedSMC(); got {refine!r}")
        if correction is not None and not isinstance(correction, Correction):
            raise TypeError(f"correction must be a correction such as KalmanCorrection(); got {correction!r}")
        if schedule is not None and not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a schedule such as Karras(); got {schedule!r}")
        self.model = model
        self.num_particles = num_particles
        self.num_ensembles = num_ensembles
        self.ensemble_method: EnsembleMethod = ensemble_method
        self.correction = correction
        self.schedule = schedule
        self.refine: Any = refine
        self.progress_bar = progress_bar
        if max_forward_evaluations is not None:
            why = " (a budget for the whole run, or None)"
            check_whole("EnKG", 1, why, max_forward_evaluations=max_forward_evaluations)
        self.max_forward_evaluations = max_forward_evaluations
        self.chunk_size = chunk_size
        if init is not None and refine is None:
            raise ValueError("init needs a refinement, which searches from there: leave refine at 'auto'")
        self.init = init
        self.store = None if store is None else Store(store)
        # What readers of an MCMC look at.
        self.sampler = SimpleNamespace(model=model)
        self.num_chains, self.num_samples, self.thinning = num_ensembles, num_particles, 1
        self._args: tuple = ()
        self._kwargs: dict[str, Any] = {}
        self._result: Result | TracedResult | None = None
        self.partial: PartialResult | None = None

    def __repr__(self) -> str:
        done = "not run yet" if self._result is None else f"{self.num_forward_evaluations:,} forward evaluations"
        name = getattr(self.model, "__name__", "model")
        return f"EnKG({name}, num_particles={self.num_particles}, num_ensembles={self.num_ensembles}; {done})"

    def run(self, rng_key: jax.Array, *args: Any, extra_fields: tuple[str, ...] = (), **kwargs: Any) -> None:
        """Infer the latent sites of ``model(*args, **kwargs)``; the results are then on this object.

        Inside `jax.jit` or `jax.vmap`, with the data as arguments of `run`, it is a call of the host, once for every
        data set. Draws, extra fields, log likelihood, evidence and `num_warnings` are then part of the program; what
        ArviZ and `diagnostics` read stays on the host, where the warnings are given.

        Warns where a diagnostic exceeds its threshold. After an error, `partial` (see `PartialResult`) has the work
        done until then; it is None after a run that completed.

        Args:
            rng_key: from `jax.random.key` or `PRNGKey`.
            *args: arguments of the model.
            extra_fields: for `get_extra_fields`; "potential_energy" is always there and "log_likelihood" is the other
                one.
            **kwargs: keyword arguments of the model.

        Raises:
            ModelError: (a `ValueError`) where the model cannot be inferred.
            BlackBoxError: where a black box fails.
            TypeError: for arguments that the model does not take.
        """
        check_extra_fields(extra_fields)
        if is_traced(rng_key, args, kwargs):
            self._result = run_traced(self, as_typed_key(rng_key), args, kwargs, extra_fields)
            return
        started = time.perf_counter()
        self.partial = None
        rng_key = as_typed_key(rng_key)
        numpyro_model = NumPyroModel(self.model, args, kwargs)
        problem = numpyro_model.problem()
        init = None if self.init is None else starting_points(numpyro_model, self.init)
        ledgers = Ledger.shared(self.max_forward_evaluations, self.num_ensembles)
        evaluator = Evaluator(problem, block_size(self.num_particles), self.chunk_size)
        if self.store is not None and not evaluator.has_black_box:
            raise ModelError(
                "store= keeps the simulations of black boxes, and the model has none: wrap the costly part of it, as "
                "in simulate = blackbox(fn, shape=...), or leave store out"
            )
        finished: dict[int, Posterior] = {}
        limit = ledgers[0].limit
        seen = Run(limit is None or limit >= AMPLE * self.num_particles, self.store)
        held = MOST_CHECKS if seen.check and evaluator.on_host else 0
        for ledger in ledgers:
            ledger.held += held  # for a repeated simulation, by which a random one is found out
        with (
            kept_on_failure(self, numpyro_model, problem, ledgers, finished, evaluator.batch_size),
            continue_run(seen),
            ProgressBar(self.progress_bar, self.num_ensembles, lambda: sum(ledger.count for ledger in ledgers)) as bar,
        ):

            def one(i: int, barrier: Barrier | None) -> Posterior:
                progress = RunProgress(functools.partial(bar.guide, i), functools.partial(bar.refine, i))
                own = evaluator.another(ledgers[i], barrier)
                finished[i] = self._infer(jr.fold_in(rng_key, i), numpyro_model, problem, own, init, progress)
                bar.done(i)
                return finished[i]

            try:
                posteriors = run_ensembles(one, self.num_ensembles, self.ensemble_method)
            except BlackBoxError as error:
                hinted = about_plates(error, numpyro_model.plates)
                if hinted is error:
                    raise
                raise hinted from error
            ledgers[0].held -= held
            ledgers[0].count += seen.num_checks
            result = collect(
                numpyro_model, problem, posteriors, ledgers, evaluator.batch_size, self.chunk_size, extra_fields
            )
            result.diagnostics["warnings"] = [*seen.finish(), *result.diagnostics.warnings]
            result.diagnostics |= seen.accounts_of_stores()
            bar.finish()
        result.seconds = time.perf_counter() - started
        self._args, self._kwargs, self._result = args, kwargs, result
        for sentence in result.diagnostics.warnings:
            if sentence not in seen.told:
                warnings.warn(f"EnKG: {sentence}", stacklevel=2)

    def _infer(
        self,
        key,
        numpyro_model: NumPyroModel,
        problem: InverseProblem,
        evaluator: Evaluator,
        init: Ensemble | None,
        progress: RunProgress,
    ) -> Posterior:
        """One ensemble: the guided flow, then the refinement."""
        if self.refine is None and not numpyro_model.guided:
            reasons = "; ".join(f"'{name}': {why}" for name, why in numpyro_model.unguided.items())
            raise ModelError(f"the guidance can use no observed site ({reasons}): leave refine at 'auto'")
        return infer(
            key,
            problem,
            num_particles=self.num_particles,
            correction=self.correction,
            schedule=self.schedule,
            refine=self.refine,
            guided=bool(numpyro_model.guided),
            init=init,
            check=False,  # the last look at the draws does that
            last_look=True,
            evaluator=evaluator,
            progress=progress,
        )

    # -- results -------------------------------------------------------------------------------------------------

    @property
    def _done(self) -> Result | TracedResult:
        if self._result is None:
            raise RuntimeError("EnKG has no draws yet: call run(rng_key, ...) first")
        return self._result

    def _on_host(self, what: str) -> Result:
        """The results of a run outside of any JAX program."""
        result = self._done
        if isinstance(result, TracedResult):
            raise TypeError(
                f"{what} of a run inside jax.jit or jax.vmap stays on the host: run outside for it, or use "
                "get_samples, get_extra_fields, get_log_likelihood, log_evidence and num_warnings"
            )
        return result

    def get_samples(self, group_by_chain: bool = False) -> dict[str, jax.Array]:
        """Draws of every latent and deterministic site, by name.

        Args:
            group_by_chain: keep the ensembles apart.

        Returns:
            Arrays of leading shape ``(num_ensembles * num_particles,)``, or ``(num_ensembles, num_particles)`` by
                chain.
        """
        return _grouped(self._done.samples, group_by_chain)

    def get_weighted_samples(self) -> tuple[dict[str, jax.Array], jax.Array]:
        """All simulated points and their weights, where the draws were obtained by weighting.

        An average under the weights is more precise than one over `get_samples`, whose draws are resampled.

        Returns:
            Values of every latent and deterministic site, of leading shape ``(points,)``, and the weights, of the same
                leading shape, which sum to one. Points of all ensembles are in one set.

        Raises:
            ValueError: where draws were moved, or where the simulated values took too much memory to be kept.
        """
        result = self._on_host("get_weighted_samples")
        sets = [one for one in result.weighted if one is not None]
        if len(sets) < len(result.weighted):
            raise ValueError(
                f"the draws of this run were moved, not weighted ({result.diagnostics['refinement']}): use get_samples"
            )
        if any(one.simulated is None for one in sets):
            raise ValueError(
                "the values of sites at all points took more than 256 MB and were not kept: use get_samples"
            )
        log_weights = np.concatenate([one.log_weights for one in sets])
        weights = np.exp(log_weights - log_weights.max())
        samples = jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts)), *(one.simulated for one in sets))
        return samples, jnp.asarray(weights / weights.sum())

    def get_extra_fields(self, group_by_chain: bool = False) -> dict[str, jax.Array]:
        """``potential_energy``, and the fields requested by `extra_fields` of `run`.

        Potential energy is minus the log of prior times likelihood, the prior being N(0, I) in z.

        Args:
            group_by_chain: keep the ensembles apart; shapes as in `get_samples`.
        """
        return _grouped(self._done.extra_fields, group_by_chain)

    def get_log_likelihood(self, group_by_chain: bool = False) -> dict[str, jax.Array]:
        """Log density in nats of every datum at every draw, by observed site.

        Args:
            group_by_chain: keep the ensembles apart; leading shapes as in `get_samples`.
        """
        return _grouped(self._done.log_likelihood, group_by_chain)

    def print_summary(self, prob: float = 0.9, exclude_deterministic: bool = True) -> None:
        """Print mean, sd, median, the shortest credible interval, n_eff and r_hat of every site.

        The columns of `numpyro.diagnostics.print_summary`, with three significant digits of the standard deviation.
        n_eff is at most the effective size of the weights and the number of unique particles; r_hat compares ensembles,
        and is "-" where there is one. Warnings of the run are printed below. Sites of a `DiffusionPrior` with more than
        64 entries, such as images, get one line of extremes instead of a line for each entry.

        Args:
            prob: probability of the interval.
            exclude_deterministic: leave out deterministic sites.
        """
        result = self._on_host("print_summary")
        sites = dict(result.samples)
        if exclude_deterministic:
            sites = {name: sites[name] for name in result.latent_names}
        large = [name for name in result.diffusion_names if name in sites and sites[name][0, 0].size > MAX_LISTED]
        listed = {name: values for name, values in sites.items() if name not in large}
        lines = ["", *table(listed, prob, result.diagnostics)] if listed else []
        lines += [f"{name}: {_extremes(sites[name], prob, result.diagnostics)}" for name in large]
        print("\n".join([*lines, "", *notes(result.diagnostics)]))  # noqa: T201 (what the caller asked for)

    def diagnostics(self) -> Diagnostics:
        """Table of what the run did, its cost, and the signs that the posterior should not be trusted."""
        return self._on_host("diagnostics").diagnostics

    @property
    def num_warnings(self) -> Any:
        """Number of diagnostics beyond their thresholds; an array inside `jax.jit` and `jax.vmap`."""
        result = self._done
        return result.num_warnings if isinstance(result, TracedResult) else len(result.diagnostics.warnings)

    def to_arviz(
        self,
        *,
        prior: bool | dict[str, jax.Array] = False,
        posterior_predictive: bool | dict[str, jax.Array] = False,
        log_likelihood: bool = False,
        **options: Any,
    ):
        """The results as ArviZ reads them: `InferenceData` (0.x) or `DataTree` (1.x); dimensions chain and draw.

        Always the groups posterior, sample_stats and observed_data. A site that has the name of a dimension, or '/' in
        its name as under `numpyro.handlers.scope`, is renamed, with a warning that gives the new name.

        Args:
            prior: add prior and prior_predictive; True costs one forward evaluation a draw, not counted in
                `num_forward_evaluations`. Or a dictionary as `numpyro.infer.Predictive` returns it.
            posterior_predictive: add this group, from the simulations of the run: no evaluation. Or a dictionary as for
                `prior`.
            log_likelihood: add this group, from the simulations of the run: no evaluation.
            **options: for `arviz.from_numpyro` (coords, dims, ...).
        """
        from enkg_ppl._arviz import from_fitted  # importing ArviZ takes seconds

        result = self._on_host("to_arviz")
        if prior is True:
            model = NumPyroModel(self.model, self._args, self._kwargs)
            prior = sample_prior(jr.key(SEED_PRIOR), model, self.num_ensembles, self.num_particles, self.store)
        if posterior_predictive is True:
            posterior_predictive = sample_observed(jr.key(SEED_PREDICTIVE), result.observations)
        pointwise = jax.device_get(result.log_likelihood) if log_likelihood else None
        groups = [prior or None, posterior_predictive or None, pointwise]
        names = new_names(*_names_in(result, groups[:2], options))
        if names:
            warnings.warn(f"EnKG: {what_was_renamed(names)}", stacklevel=2)
            groups = [renamed(group, names) for group in groups]
            options = {key: renamed(value, names) if key == "dims" else value for key, value in options.items()}
        run = renamed_run(self, names) if names else self
        # ArviZ runs the model once, at a draw of the prior that is always the same.
        with self._with_store():
            return from_fitted(run, groups[0], groups[1], groups[2], options)

    @contextlib.contextmanager
    def _with_store(self) -> Iterator[None]:
        """Inside, black boxes use the store of this object, as in a run; without one it is no run."""
        if self.store is None:
            yield
            return
        with watch_black_boxes(store=self.store), raise_host_failure():
            yield

    @property
    def num_forward_evaluations(self) -> Any:
        """Exact number of simulator evaluations that the last run requested: one per particle per call.

        Results taken from a store count too, so that a continued run takes the same decisions as an unbroken one. The
        number of black-box simulations actually made is `diagnostics()["num_simulated"]`, and of those reused
        ``["num_reused"]``.
        """
        return self._done.num_forward_evaluations

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the last run, compilation included."""
        return self._on_host("seconds").seconds

    @property
    def log_evidence(self) -> Any:
        """Log marginal likelihood in nats, averaged over the ensembles; None with the reason in `diagnostics()`."""
        return self._done.log_evidence

    @property
    def log_evidence_error(self) -> Any:
        """Standard error of `log_evidence` in nats, from the weights and the scatter of the ensembles; or None."""
        return self._done.log_evidence_error

    # -- what an MCMC has and an ensemble has not ----------------------------------------------------------------

    def warmup(self, *args, **kwargs):
        """Refused: an ensemble has no warm-up.

        Args:
            *args: ignored.
            **kwargs: ignored.

        Raises:
            TypeError: always.
        """
        raise TypeError("EnKG has no warm-up phase: call run(rng_key, ...) alone")

    @property
    def last_state(self):
        """None: an ensemble has no state from which a run could continue."""
        return None

    @property
    def post_warmup_state(self):
        """None: an ensemble has no warm-up."""
        return None

    def transfer_states_to_host(self) -> None:
        """Move the draws to host memory."""
        result = self._on_host("transfer_states_to_host")
        for name in ("samples", "extra_fields", "observations", "log_likelihood"):
            setattr(result, name, jax.device_get(getattr(result, name)))

    def __getstate__(self):
        return self.__dict__.copy()


def _extremes(values: jax.Array, prob: float, diagnostics: Diagnostics) -> str:
    """A line on a site with many entries, shape (ensembles, particles, *event)."""
    found = worth({"": values}, prob, diagnostics)[""]
    mean, sd = found["mean"], found["std"]
    shape = " x ".join(str(n) for n in values.shape[2:])
    line = f"{mean.size:,} entries ({shape}); means {mean.min():.3g} to {mean.max():.3g}, sds {sd.min():.3g} to "
    line += f"{sd.max():.3g}, n_eff from {np.nanmin(found['n_eff']):.0f}"
    return line if values.shape[0] == 1 else f"{line}, r_hat up to {np.nanmax(found['r_hat']):.3f}"


def _names_in(result: Result, groups: list, options: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Number of axes of every site that ArviZ is given, chains and draws apart, and its other dimensions."""
    ranks = {name: np.ndim(value) - 2 for name, value in result.samples.items()}
    # ArviZ 0.23 gives a single datum an axis.
    ranks |= {name: max(1, np.ndim(observation.value) - 2) for name, observation in result.observations.items()}
    for group in groups:  # of one chain, or without chains, where they are the user's own
        ranks = {name: max(0, np.ndim(value) - 2) for name, value in (group or {}).items()} | ranks
    given = [name for names in (options.get("dims") or {}).values() for name in names]
    return ranks, [*result.plates, *given, *(options.get("coords") or {})]


def _grouped(values: dict[str, jax.Array], group_by_chain: bool) -> dict[str, jax.Array]:
    if group_by_chain:
        return dict(values)
    return {name: value.reshape((-1, *value.shape[2:])) for name, value in values.items()}
