"""What a run that raised had done until then."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from enkg_ppl.evaluation._host_call import calls_host
from enkg_ppl.evaluation._ledger import Ledger
from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.posterior import Posterior
from enkg_ppl.priors._coordinates import decode_all
from enkg_ppl.problem import InverseProblem
from enkg_ppl.types import Ensemble, Vector


class UnderWay(NamedTuple):
    """An ensemble that was not finished.

    Attributes:
        ensemble: its number.
        stage: the last stage that it completed.
        draws: its latent vectors after that stage, shape (particles, dim), or None before the first stage. They are
            between prior and posterior, and draws of neither.
    """

    ensemble: int
    stage: str
    draws: Ensemble | None


class PartialResult:
    """The work of a run that raised, up to the error. It is a posterior only where `is_complete`.

    Args:
        values: function from one latent vector to the latent sites, by name.
        posteriors: of the finished ensembles, by number. Each is the posterior according to one ensemble; R-hat and the
            other diagnostics were not computed.
        under_way: the other ensembles, whose particles are not draws of the posterior (see `UnderWay`).
        count: forward evaluations made, or begun in the call that failed; kept as `num_forward_evaluations`.
    """

    def __init__(
        self,
        values: Callable[[Vector], dict[str, jax.Array]],
        posteriors: dict[int, Posterior],
        under_way: list[UnderWay],
        count: int,
    ):
        """Keep the finished and the unfinished ensembles; arguments as for the class."""
        self._values = values
        self.posteriors = posteriors
        self.under_way = under_way
        self.num_forward_evaluations = count

    @property
    def is_complete(self) -> bool:
        """Whether all ensembles were finished, and only the final simulation of their draws failed."""
        return not self.under_way

    def __repr__(self) -> str:
        total = len(self.posteriors) + len(self.under_way)
        counted = f"{self.num_forward_evaluations:,} forward evaluations"
        if self.is_complete:
            return f"PartialResult(all {total} ensembles finished, not yet looked over; {counted})"
        stages = ", ".join(f"ensemble {one.ensemble + 1} {one.stage}" for one in self.under_way)
        return (
            f"PartialResult(not a posterior: {len(self.posteriors)} of {total} ensembles finished, {stages}; {counted})"
        )

    def get_samples(self, group_by_chain: bool = False) -> dict[str, jax.Array]:
        """Draws of every latent site from the finished ensembles; nothing is simulated.

        Args:
            group_by_chain: keep the ensembles apart.

        Returns:
            Arrays shaped as in `EnKG.get_samples`; empty where no ensemble was finished.
        """
        parts = [self.sites(posterior.draws) for _, posterior in sorted(self.posteriors.items())]
        if not parts:
            return {}
        return jax.tree.map(lambda *a: jnp.stack(a) if group_by_chain else jnp.concatenate(a), *parts)

    def sites(self, draws: Ensemble) -> dict[str, jax.Array]:
        """The latent sites, by name, of latent vectors; nothing is simulated.

        Args:
            draws: latent vectors, shape (particles, dim), such as those in `under_way`.

        Raises:
            RuntimeError: where a site's prior depends on a black box.
        """
        draws = jnp.asarray(draws)
        program = jax.make_jaxpr(self._values)(draws[0]).jaxpr
        needed, _ = dce_jaxpr(program, [True] * len(program.outvars))
        if calls_host(needed):
            raise RuntimeError(
                "a latent site's prior depends on a black box, which partial results do not call: use the latent "
                "vectors in partial.posteriors[i].draws or partial.under_way[i].draws"
            )
        return jax.jit(jax.vmap(self._values))(draws)


@contextlib.contextmanager
def kept_on_failure(
    enkg: Any,
    model: NumPyroModel,
    problem: InverseProblem,
    ledgers: list[Ledger],
    posteriors: dict[int, Posterior],
    block: int,
) -> Iterator[None]:
    """Inside, what was done before an error (Ctrl-C too) is put in ``enkg.partial``, and the error says so."""
    try:
        yield
    except BaseException as error:
        count = sum(ledger.count for ledger in ledgers)
        if count:
            unfinished = [i for i in range(len(ledgers)) if i not in posteriors]
            under_way = [_under_way(i, problem, ledgers[i], block) for i in unfinished]
            enkg.partial = PartialResult(_Values(model), dict(posteriors), under_way, count)
            error.add_note(f"What was done before this error is kept in enkg.partial: {enkg.partial!r}")
        raise


@dataclasses.dataclass(frozen=True)
class _Values:
    """The latent sites, by name, of one latent vector; it can be pickled where the model can."""

    model: NumPyroModel

    def __call__(self, z: Vector) -> dict[str, jax.Array]:
        found = self.model.simulator.replay(z)[0]
        return {site.name: found[site.name] for site in self.model.sites}


def _under_way(i: int, problem: InverseProblem, ledger: Ledger, block: int) -> UnderWay:
    if ledger.reached is None:
        return UnderWay(i, "not begun" if ledger.count == 0 else "in its first stage", None)
    where, draws, words = ledger.reached
    if draws is not None and where.prior is not problem.prior:  # in z
        draws = decode_all(problem.prior, draws, block)
    return UnderWay(i, words, None if draws is None else np.asarray(draws))
