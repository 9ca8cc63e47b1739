"""Known starting points: what they are worth, and what is no starting point."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import EllipticalSlice, EnKG, GaussianPrior, InverseProblem, ModelError, TemperedSMC, blackbox, infer
from enkg_ppl.likelihood import GaussianLikelihood
from enkg_ppl.numpyro._init import starting_points
from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.posterior import Posterior

Y = jnp.array([0.0, 0.0])


def needle(a, b):
    """Flat but near (2, -2), where the data are: no search from elsewhere sees that."""
    near = np.exp(-0.5 * ((a - 2) ** 2 + (b + 2) ** 2) / 0.1**2)
    return np.stack([10 * (1 - near), a - 2 + 10 * (1 - near)], axis=-1)


def model(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(jnp.stack([a, b]), 0.5).to_event(1), obs=y)


def test_a_starting_point_finds_what_no_draw_of_the_prior_is_near():
    """A hole of radius 0.1 at a distance of 2.8 from the middle of the prior: 2e-5 of its mass."""
    problem = InverseProblem(
        GaussianPrior.standard(2),
        lambda z: jnp.where(jnp.sum((z - jnp.array([2.0, -2.0])) ** 2) < 0.01, 0.0, 10.0) + 0.01 * z,
        GaussianLikelihood(jnp.zeros(2), 0.5),
    )
    told = infer(jax.random.key(0), problem, num_particles=128, init=jnp.array([[2.02, -1.97]]))
    assert np.abs(np.asarray(told.draws) - [2, -2]).max() < 0.11


def test_a_budget_too_small_to_search_from_there_says_so():
    problem = InverseProblem(GaussianPrior.standard(2), lambda z: z, GaussianLikelihood(jnp.ones(2), 0.5))
    for budget, is_told in ((128 * 5, True), (128 * 60, False)):
        posterior = infer(
            jax.random.key(0),
            problem,
            num_particles=128,
            refine=TemperedSMC(),
            init=jnp.ones((1, 2)),
            max_forward_evaluations=budget,
        )
        assert posterior.num_forward_evaluations <= budget
        assert any("left none to search from init" in sentence for sentence in posterior.messages) == is_told


def test_values_become_latent_vectors():
    simulate = blackbox(needle, (2,), vectorized=True)

    def with_black_box(y=None):
        a = numpyro.sample("a", dist.Normal(1.0, 2.0))
        b = numpyro.sample("b", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.Normal(simulate(a, b), 0.5).to_event(1), obs=y)

    z = starting_points(
        NumPyroModel(with_black_box, (), {"y": Y}), [{"a": 2.0, "b": 1.0}, {"a": 1.0, "b": np.exp(1.0)}]
    )
    np.testing.assert_allclose(z, [[0.5, 0.0], [0.0, 2.0]], atol=1e-12)
    assert simulate.num_calls == 0


def test_other_refinements_begin_there(monkeypatch):
    problem = InverseProblem(GaussianPrior.standard(2), lambda z: z, GaussianLikelihood(jnp.ones(2), 0.5))
    seen = []

    def record(self, key, problem, *, guided, **options):
        seen.append(np.asarray(guided))
        return Posterior(guided, 0, "recorded")

    monkeypatch.setattr(EllipticalSlice, "run", record)
    infer(jax.random.key(0), problem, num_particles=16, refine=EllipticalSlice(), init=jnp.array([[3.0, 3.0]]))
    assert (seen[0] == 3.0).all(axis=1).sum() == 1


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ({"a": 1.0}, "init has no value of latent site 'b': give one of a, b each"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "init names 'c', and the latent sites are a, b"),
        ({"a": 1.0, "b": -1.0}, "init has -1.0 for latent site 'b', where its prior is zero: give a value inside"),
        ({"a": [1.0, 2.0], "b": 1.0}, r"init has a value of shape \(2,\) for latent site 'a', whose shape is \(\)"),
        (7, "init must be a dictionary with a value of each latent site, or a list of such; got 7"),
        ([], r"or a list of such; got \[\]"),
    ],
)
def test_what_is_no_starting_point(init, words):
    with pytest.raises(ModelError, match=words):
        EnKG(model, num_particles=64, progress_bar=False, init=init).run(jax.random.key(0), y=Y)


def test_it_needs_a_refinement():
    with pytest.raises(ValueError, match="init needs a refinement, which searches from there"):
        EnKG(model, refine=None, init={"a": 1.0, "b": 1.0})
