"""What a finished run leaves, collected by one last look at its draws."""

from __future__ import annotations

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from enkg_ppl.diagnostics._diagnose import Diagnostics, diagnose
from enkg_ppl.diagnostics._fields import NUM_PRIOR_DRAWS, check_ensemble
from enkg_ppl.evaluation._black_box import raise_host_failure
from enkg_ppl.evaluation._blocks import in_blocks
from enkg_ppl.evaluation._evaluator import ensemble_forward, has_failed
from enkg_ppl.evaluation._ledger import Ledger
from enkg_ppl.evaluation._programs import compiled
from enkg_ppl.likelihood import Likelihood
from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.numpyro._observation import Observation
from enkg_ppl.numpyro._resolution import check_resolution
from enkg_ppl.numpyro._simulator import Simulator
from enkg_ppl.posterior import Posterior, WeightedSample
from enkg_ppl.priors import GaussianPrior, Prior
from enkg_ppl.priors._coordinates import decode_all, encode_all
from enkg_ppl.problem import InverseProblem
from enkg_ppl.refinement.moves._space import log_standard_normal
from enkg_ppl.types import Ensemble

MOST_WEIGHTED_BYTES = 2**28  # of the values in a weighted set, which a result keeps and is pickled with


class Result(SimpleNamespace):
    """Everything a finished run leaves; arrays lead with (ensemble, particle)."""

    samples: dict[str, jax.Array]
    extra_fields: dict[str, jax.Array]
    observations: dict[str, Observation]
    log_likelihood: dict[str, jax.Array]
    latent_names: list[str]
    diffusion_names: tuple[str, ...]
    plates: tuple[str, ...]
    num_forward_evaluations: int
    log_evidence: float | None
    log_evidence_error: float | None
    diagnostics: Diagnostics
    weighted: list[WeightedSample | None]  # one an ensemble; simulated: values by site
    seconds: float


@compiled
def _look(simulator: Simulator, likelihood, guided: bool, z: jax.Array, chunk_size: int | None):
    """Everything that a run keeps of its draws z, shape (particles, dim)."""

    def final(z):
        values, observations = simulator.replay(z)
        response = likelihood.response(observations) if guided else None
        pointwise = {name: observation.log_prob() for name, observation in observations.items()}
        return values, observations, pointwise, likelihood.log_prob(observations), response

    return ensemble_forward(final, z, chunk_size)


@eqx.filter_jit
def _look_at(likelihood: Likelihood, guided: bool, observations):
    """The same of what was simulated already: pointwise and whole log likelihood, and responses."""

    def final(observations):
        response = likelihood.response(observations) if guided else None
        pointwise = {name: observation.log_prob() for name, observation in observations.items()}
        return pointwise, likelihood.log_prob(observations), response

    return jax.vmap(final)(observations)


def _standardised(prior: Prior, posterior: Posterior, block: int) -> Ensemble:
    """The draws as N(0, I) under the prior."""
    if posterior.z is not None:
        return posterior.z
    return posterior.draws if is_standard(prior) else encode_all(prior, posterior.draws, block, exact=True)


def collect(
    model: NumPyroModel,
    problem: InverseProblem,
    posteriors: list[Posterior],
    ledgers: list[Ledger],
    block: int,
    chunk_size,
    extra_fields,
) -> Result:
    """Deterministic sites, pointwise likelihood and misfit at every draw, for which the model is run once more where
    what it said is not known from before.
    """
    likelihood, prior, guided = problem.likelihood, problem.prior, bool(model.guided)
    parts = []
    for posterior, ledger in zip(posteriors, ledgers, strict=True):
        if posterior.simulated is not None:
            outputs, values = posterior.simulated
            parts.append((values, outputs, *in_blocks(_look_at, block, (likelihood, guided), outputs)))
        else:
            ledger.book(posterior.num_particles)
            draws, finite = _without_wrecks(np.asarray(posterior.draws))
            with raise_host_failure():
                found = _look(model.simulator, likelihood, guided, jnp.asarray(draws), chunk_size)
                found = jax.block_until_ready(found)
            parts.append(found if finite.all() else jax.tree.map(lambda a, finite=finite: _only(finite, a), found))
            ledger.num_failed += int((has_failed(np.asarray(parts[-1][3])) & finite).sum())
        posterior.num_forward_evaluations = ledger.count
        posterior.stats["num_failed"] = ledger.num_failed
    # By NumPy, which compiles nothing; then as JAX arrays, as users expect them.
    parts = jax.device_get(parts)
    samples, observations, pointwise, log_likelihood, response = jax.tree.map(lambda *a: np.stack(a), *parts)
    z = np.stack([np.asarray(_standardised(prior, posterior, block)) for posterior in posteriors])
    potential = (-log_standard_normal(z.reshape(-1, z.shape[-1]))).reshape(z.shape[:2]) - log_likelihood
    chi2, num_data = _misfit(response)
    samples, observations, pointwise, fields = jax.tree.map(
        jnp.asarray, (samples, observations, pointwise, {"potential_energy": potential})
    )
    if "log_likelihood" in extra_fields:
        fields["log_likelihood"] = jnp.asarray(log_likelihood)
    checks = None
    if response is not None and posteriors[0].log_likelihood is None:  # the guided ensembles alone
        prior_draws = np.random.default_rng(0).standard_normal((NUM_PRIOR_DRAWS, model.dim))
        if not is_standard(prior):
            prior_draws = decode_all(prior, prior_draws.astype(prior.location.dtype), block)
        checks = [
            check_ensemble(
                np.asarray(posterior.draws),
                np.asarray(response.prediction[i]),
                np.asarray(response.observation[i]),
                np.asarray(response.noise[i]),
                prior_draws,
                posterior.slope,
            )
            for i, posterior in enumerate(posteriors)
        ]
    diagnostics = diagnose(posteriors, chi2, num_data, np.asarray(log_likelihood), checks)
    for name, why in model.unguided.items():
        diagnostics[f"unguided '{name}'"] = f"left to the refinement: {why}"
    rounding = check_resolution(
        model.model, model.args, model.kwargs, observations, tuple(model.guided), response, log_likelihood
    )
    diagnostics.warnings[:0] = rounding
    log_evidence, error = _evidence(posteriors)
    without = [posterior.why_no_evidence for posterior in posteriors if posterior.log_evidence is None]
    diagnostics["log_evidence"] = without[0] if log_evidence is None else log_evidence
    if error is not None:
        diagnostics["log_evidence_error"] = error
    return Result(
        samples=samples,
        extra_fields=fields,
        observations=observations,
        log_likelihood=pointwise,
        latent_names=[site.name for site in model.sites],
        diffusion_names=model.diffusion_names,
        plates=tuple(model.plates),
        num_forward_evaluations=sum(p.num_forward_evaluations for p in posteriors),
        log_evidence=log_evidence,
        log_evidence_error=error,
        diagnostics=diagnostics,
        weighted=[_values_only(posterior.weighted) for posterior in posteriors],
        seconds=0.0,
    )


def _values_only(weighted: WeightedSample | None) -> WeightedSample | None:
    """Points that have weight, and the values of sites there."""
    if weighted is None:
        return None
    rows = np.isfinite(weighted.log_weights)
    values = None if weighted.simulated is None else weighted.simulated.values
    if sum(a.nbytes for a in jax.tree.leaves(values)) > MOST_WEIGHTED_BYTES:
        values = None
    return WeightedSample(*jax.tree.map(lambda a: a[rows], (weighted.z, weighted.log_weights, values)))


def _without_wrecks(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The draws, another (or the middle of the prior) in place of those that are not finite; and which are finite."""
    finite = np.asarray(np.isfinite(draws).all(axis=1))
    stand_in = draws[finite][:1] if finite.any() else np.zeros_like(draws[:1])
    return np.where(finite[:, None], draws, stand_in), finite


def _only(finite: np.ndarray, a: jax.Array) -> jax.Array:
    """NaN instead of what the stand-ins gave, where there is NaN."""
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return a
    return jnp.where(finite.reshape(-1, *[1] * (a.ndim - 1)), a, jnp.nan)


def is_standard(prior: Prior) -> bool:
    """Whether z and the latent vector are the same."""
    return isinstance(prior, GaussianPrior) and prior.is_standard


def _evidence(posteriors: list[Posterior]) -> tuple[float | None, float | None]:
    """Log of the mean evidence of the ensembles, and its standard error.

    The error is the larger of what the weights say and what the scatter of the ensembles says.
    """
    values = [p.log_evidence for p in posteriors if p.log_evidence is not None]
    errors = [p.log_evidence_error for p in posteriors if p.log_evidence_error is not None]
    if len(values) < len(posteriors):
        return None, None
    log_evidence = float(np.logaddexp.reduce(values) - np.log(len(values)))
    if len(errors) < len(posteriors):
        return log_evidence, None
    by_weights = float(np.sqrt(np.sum(np.square(errors)))) / len(errors)
    by_scatter = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return log_evidence, float(np.max([by_weights, by_scatter]))  # NaN where either is


def _misfit(response) -> tuple[np.ndarray | None, int]:
    """Chi-square per datum over the draws of every ensemble, and the number of data."""
    if response is None:
        return None, 0
    residual2 = (response.observation - response.prediction) ** 2 / response.noise
    return np.asarray(residual2.mean(axis=(1, 2)), float), residual2.shape[-1]
