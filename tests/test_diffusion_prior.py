"""`DiffusionPrior` as a NumPyro distribution, and `EnKG` on models that hold some.

A Gaussian mixture that shows its denoiser alone stands for a trained network, so that all answers are known.
"""

import copy
import pickle

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from bare import Bare, Correlated
from numpyro import handlers
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from enkg_ppl import DiffusionWaltz, EllipticalSlice, EnKG, GaussianPrior, MixturePrior, TemperedSMC
from enkg_ppl._infer import choose
from enkg_ppl.numpyro import DiffusionPrior, DiffusionReparam, ModelError, UnsupportedPriorError
from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.priors import Prior

MIXTURE = MixturePrior([0.6, 0.4], [[-2.0, 0.0], [1.5, 1.0]], [[0.3, 1.0], [0.5, 0.2]])
J = 512


PRIOR = DiffusionPrior(Bare(MIXTURE), num_steps=24)
CLOSED = DiffusionPrior(MIXTURE)
VALUES = jnp.array([[0.3, 0.4], [-2.0, 1.0], [1.0, 1.2]])


def as_numpyro(mixture: MixturePrior) -> dist.Distribution:
    components = dist.Normal(mixture.means, jnp.sqrt(mixture.variances)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(jnp.exp(mixture.log_weights)), components)


def posterior(mixture: MixturePrior, A, y, sd):
    """Mean, sd and log evidence of x in ``y ~ N(A x, sd^2)``: components updated one by one, in NumPy."""
    A, y = np.asarray(A), np.asarray(y)
    log_weights, means, variances = [], [], []
    for log_w, m, v in zip(mixture.log_weights, np.asarray(mixture.means), np.asarray(mixture.variances), strict=True):
        S = A @ np.diag(v) @ A.T + sd**2 * np.eye(len(y))
        gain, r = np.diag(v) @ A.T @ np.linalg.inv(S), y - A @ m
        log_weights.append(float(log_w) - 0.5 * (r @ np.linalg.solve(S, r) + np.linalg.slogdet(2 * np.pi * S)[1]))
        means.append(m + gain @ r)
        variances.append(np.diag((np.eye(len(v)) - gain @ A) @ np.diag(v)))
    log_evidence = np.logaddexp.reduce(log_weights)
    weights, means = np.exp(log_weights - log_evidence), np.array(means)
    mean = weights @ means
    return mean, np.sqrt(weights @ (np.array(variances) + (means - mean) ** 2)), log_evidence


def within(draws, mean, sd, share=1.0):
    """Means and sds within five standard errors, `share` of the draws counting as independent."""
    n = share * len(draws)
    np.testing.assert_array_less(np.abs(np.asarray(draws).mean(0) - mean), 5 * sd / n**0.5)
    np.testing.assert_array_less(np.abs(np.asarray(draws).std(0) / sd - 1), 5 / (2 * n) ** 0.5)


# -- the distribution ---------------------------------------------------------------------------------------------


WRAPPED = {
    "plain": lambda d: d,
    "expand": lambda d: d.expand([3]),
    "expand twice": lambda d: d.expand([3]).expand([2, 3]),
    "interstitial": lambda d: d.expand([1, 3]).expand([2, 3]),
    "to_event": lambda d: d.expand([4, 3]).to_event(1),
    "to_event all": lambda d: d.expand([4, 3]).to_event(2),
    "expand_by": lambda d: d.expand_by([2]),
    "mask": lambda d: d.expand([3]).mask(jnp.array([True, False, True])),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 1)])
def test_shapes_are_those_of_a_multivariate_normal(name, sample_shape):
    ours, theirs = WRAPPED[name](CLOSED), WRAPPED[name](dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    assert ours.event_dim == theirs.event_dim
    assert ours.support.event_dim == theirs.support.event_dim
    with jax.numpy_rank_promotion("allow"):
        draw = jax.eval_shape(lambda key: ours.sample(key, sample_shape), jr.key(0))
        assert draw.shape == jax.eval_shape(lambda key: theirs.sample(key, sample_shape), jr.key(0)).shape
        expected = jax.eval_shape(theirs.log_prob, draw)
        assert jax.eval_shape(ours.log_prob, draw).shape == expected.shape


def test_log_prob_broadcasts_as_a_multivariate_normals():
    for shape in ((2,), (3, 2), (5, 3, 2)):
        assert jax.eval_shape(CLOSED.log_prob, jnp.zeros(shape)).shape == shape[:-1]
    assert jax.eval_shape(CLOSED.expand([3]).log_prob, jnp.zeros((5, 1, 2))).shape == (5, 3)


def test_masked_entries_count_nothing():
    masked = jax.jit(CLOSED.expand([2]).mask(jnp.array([True, False])).log_prob)(VALUES[:2])
    np.testing.assert_allclose(masked, [MIXTURE.log_prob(VALUES[0]), 0.0])


def test_events_of_any_shape():
    image = DiffusionPrior(MixturePrior([1.0], [[1.0, 2.0, 3.0, 4.0]], [1e-4]), (2, 2))
    draws = jax.jit(lambda d, key: d.sample(key, (3,)))(image, jr.key(0))
    np.testing.assert_allclose(draws, np.broadcast_to([[1.0, 2.0], [3.0, 4.0]], (3, 2, 2)), atol=0.06)
    assert jax.eval_shape(image.log_prob, draws).shape == (3,)
    assert image.support.event_dim == 2
    assert DiffusionPrior(MIXTURE, 2).event_shape == (2,)


@jax.jit
def log_prob_and_gradient(d, x):
    return jax.vmap(jax.value_and_grad(d.log_prob))(x)


def test_log_prob_and_its_gradient_are_the_mixtures():
    log_prob, score = log_prob_and_gradient(PRIOR, VALUES)
    np.testing.assert_allclose(log_prob, jax.vmap(MIXTURE.log_prob)(VALUES), atol=2e-3)
    np.testing.assert_allclose(score, jax.vmap(jax.grad(MIXTURE.log_prob))(VALUES), atol=2e-2)


def test_closed_forms_are_used():
    np.testing.assert_allclose(CLOSED.log_prob(VALUES), jax.vmap(MIXTURE.log_prob)(VALUES), rtol=1e-12)
    np.testing.assert_allclose(CLOSED.sample(jr.key(0)), MIXTURE.sample(jr.key(0)))


def test_hutchinson_is_deterministic_and_near():
    """Signs are an orthogonal design in few dimensions only; the error of 64 probes is about a tenth of one's."""
    settings, options = (Bare(MIXTURE),), {"divergence": "hutchinson", "num_probes": 64, "num_steps": 24}
    estimate = DiffusionPrior(*settings, **options)
    log_prob = jax.jit(lambda d: d.log_prob(VALUES))
    one = log_prob(estimate)
    np.testing.assert_array_equal(one, log_prob(DiffusionPrior(*settings, **options)))
    exact = jax.vmap(MIXTURE.log_prob)(VALUES)
    assert 1e-5 < np.abs(one - exact).max() < 0.5


def test_large_events_take_hutchinson():
    """Exact would be d products; the default of 130 dimensions is the estimate, exact on request."""
    large = Bare(MixturePrior([1.0], [np.zeros(130)], [1.0]))
    jaxpr = lambda d: str(jax.make_jaxpr(d.log_prob)(jnp.zeros(130)))  # noqa: E731
    assert "130,130" in jaxpr(DiffusionPrior(large, divergence="exact", num_steps=2))
    assert "130,130" not in jaxpr(DiffusionPrior(large, num_steps=2))


@pytest.mark.parametrize("dim", [48, 128])
def test_correlated_priors_of_middling_size_are_exact(dim):
    prior = Correlated(dim)
    x, exact = prior.values(2)
    d = DiffusionPrior(prior)
    got, error = jax.jit(lambda x: (d.log_prob(x), d.log_prob_error(x)))(x)
    np.testing.assert_allclose(got, exact, atol=2e-3)
    np.testing.assert_array_equal(error, 0.0)


def test_the_gradient_along_a_path_is_that_of_a_correlated_prior():
    """``-S^-1 x``: reverse mode through the path and the exact divergence at its noise levels."""
    prior = Correlated(40)
    x, _ = prior.values(1)
    d = DiffusionPrior(prior, num_steps=32)
    exact = -prior.directions @ (prior.directions.T @ x[0] / prior.variances)
    np.testing.assert_allclose(jax.jit(jax.grad(d.log_prob))(x[0]), exact, atol=2e-2)


def test_the_error_of_a_large_correlated_prior_is_told():
    """At 512 dimensions the standard error of the default is below 1 nat, and holds."""
    prior = Correlated(512)
    x, exact = prior.values(1)
    d = DiffusionPrior(prior, num_steps=24)
    got, error = jax.jit(lambda x: (d.log_prob(x), d.log_prob_error(x)))(x)
    assert 0.2 < float(error[0]) < 1.0
    assert abs(float(got[0] - exact[0])) < 4 * float(error[0])
    assert CLOSED.log_prob_error(VALUES).shape == (3,)
    np.testing.assert_array_equal(CLOSED.log_prob_error(VALUES), 0.0)


def test_draws_are_the_mixtures():
    draws = jax.jit(lambda d, key: d.sample(key, (4096,)))(PRIOR, jr.key(1))
    weights, means, variances = np.exp(MIXTURE.log_weights), np.asarray(MIXTURE.means), np.asarray(MIXTURE.variances)
    mean = weights @ means
    within(draws, mean, np.sqrt(weights @ (variances + (means - mean) ** 2)))


def test_draws_have_gradients():
    """Of a prior that is shifted, draws shift alike."""

    def mean(shift, sample):
        shifted = MixturePrior.__new__(MixturePrior)
        for name in ("log_weights", "variances", "bases"):
            object.__setattr__(shifted, name, getattr(MIXTURE, name))
        object.__setattr__(shifted, "means", MIXTURE.means + shift)
        return jnp.mean(sample(DiffusionPrior(Bare(shifted)))(jr.key(0), (4,)))

    assert PRIOR.has_rsample
    for sample in (lambda d: d.sample, lambda d: d.rsample):
        np.testing.assert_allclose(jax.jit(jax.grad(mean), static_argnums=1)(0.0, sample), 1.0, rtol=1e-3)


def test_one_program_for_all_priors_of_a_structure():
    traces = 0

    @jax.jit
    def density(d, x):
        nonlocal traces
        traces += 1
        return d.log_prob(x)

    first = density(CLOSED.expand([3]), VALUES)
    other = MixturePrior([0.5, 0.5], MIXTURE.means + 1.0, MIXTURE.variances)
    second = density(DiffusionPrior(other).expand([3]), VALUES)
    assert traces == 1
    np.testing.assert_allclose(first, jax.vmap(MIXTURE.log_prob)(VALUES))
    np.testing.assert_allclose(second, jax.vmap(other.log_prob)(VALUES))
    density(DiffusionPrior(MIXTURE, divergence="exact").expand([3]), VALUES)
    assert traces == 2, "settings are part of the program"


def test_pytree_copies_and_pickles():
    leaves, treedef = jax.tree.flatten(CLOSED)
    assert all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
    assert hash(treedef) == hash(jax.tree.structure(DiffusionPrior(MIXTURE)))
    for again in (jax.tree.unflatten(treedef, leaves), copy.copy(CLOSED), copy.deepcopy(CLOSED)):
        np.testing.assert_allclose(again.log_prob(VALUES), CLOSED.log_prob(VALUES))
    np.testing.assert_allclose(pickle.loads(pickle.dumps(CLOSED)).log_prob(VALUES), CLOSED.log_prob(VALUES))


def test_a_batch_of_priors():
    """`jax.vmap` makes a batch of them, to which NumPyro gives its batch shape."""
    shifts = jnp.array([0.0, 1.0, 5.0])
    make = lambda s: DiffusionPrior(_Shifted(MIXTURE, s))  # noqa: E731
    batch = promote_batch_shape(jax.vmap(make)(shifts))
    assert batch.batch_shape == (3,)
    expected = jax.vmap(MIXTURE.log_prob)(VALUES - shifts[:, None])
    np.testing.assert_allclose(jax.jit(batch.log_prob)(VALUES), expected, rtol=1e-9)
    assert jax.eval_shape(batch.log_prob, VALUES[0]).shape == (3,)
    draws = jax.jit(lambda key: batch.sample(key, (400,)))(jr.key(0))
    assert draws.shape == (400, 3, 2)
    np.testing.assert_allclose(np.diff(np.asarray(draws).mean((0, 2))), [1.0, 4.0], atol=1.0)


class _Shifted(Prior):
    inner: MixturePrior
    shift: jax.Array

    dim = property(lambda self: 2)
    location = property(lambda self: self.inner.location + self.shift)
    scale = property(lambda self: self.inner.scale)

    def denoise(self, x, sigma):
        return self.shift + self.inner.denoise(x - self.shift, sigma)

    def sample(self, key):
        return self.shift + self.inner.sample(key)

    def log_prob(self, x):
        return self.inner.log_prob(x - self.shift)


def test_any_function_is_a_denoiser():
    """That of N(1, 4), which sees the event's own shape."""

    def denoise(x, sigma):
        assert x.shape == (2, 1)
        return 1.0 + 4.0 / (4.0 + sigma**2) * (x - 1.0)

    d = DiffusionPrior(denoise, (2, 1), location=1.0, scale=2.0, num_steps=24)
    value = jnp.array([[0.5], [3.0]])
    np.testing.assert_allclose(jax.jit(d.log_prob)(value), dist.Normal(1.0, 2.0).log_prob(value).sum(), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DiffusionPrior(3), TypeError, "a prior, or a function"),
        (lambda: DiffusionPrior(lambda x, s: x), ValueError, "event_shape, location and scale for a function"),
        (lambda: DiffusionPrior(MIXTURE, scale=1.0), ValueError, "knows its own"),
        (lambda: DiffusionPrior(MIXTURE, (3, 1)), ValueError, "as many entries as its prior has dimensions, 2"),
        (lambda: DiffusionPrior(MIXTURE, divergence="trace"), ValueError, "'exact', 'hutchinson' or None; got 'trace'"),
        (lambda: DiffusionPrior(MIXTURE, num_steps=0), ValueError, "num_steps as a whole number >= 1; got 0"),
        (lambda: DiffusionPrior(MIXTURE, num_probes=1.5), ValueError, "num_probes as a whole number >= 1; got 1.5"),
        (lambda: CLOSED.log_prob(jnp.zeros(3)), ValueError, r"end in shape \(2,\); got a value of shape \(3,\)"),
        (lambda: CLOSED.mean, NotImplementedError, "average draws"),
        (lambda: CLOSED.variance, NotImplementedError, "from draws"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()


# -- NumPyro around it --------------------------------------------------------------------------------------------


def small_model(d, y=None):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    x = numpyro.sample("x", d)
    numpyro.sample("y", dist.Normal(tau * (x[0] + 0.5 * x[1]), 0.3), obs=y)


def test_handlers():
    seeded = handlers.seed(small_model, jr.key(0))
    trace = handlers.trace(seeded).get_trace(CLOSED)
    assert trace["x"]["value"].shape == (2,)
    fixed = handlers.trace(handlers.substitute(seeded, {"x": VALUES[0]})).get_trace(CLOSED)
    np.testing.assert_array_equal(fixed["x"]["value"], VALUES[0])
    assert handlers.trace(handlers.condition(seeded, {"x": VALUES[0]})).get_trace(CLOSED)["x"]["is_observed"]
    assert "x" not in handlers.trace(handlers.block(seeded, hide=["x"])).get_trace(CLOSED)
    scaled = handlers.trace(handlers.scale(seeded, scale=2.0)).get_trace(CLOSED)
    assert scaled["x"]["scale"] == 2.0
    values = {"tau": 1.0, "x": VALUES[0], "y": 0.3}

    def log_joint(model):
        return numpyro.infer.util.log_density(model, (CLOSED,), {}, values)[0]

    rest = dist.HalfNormal(1.0).log_prob(1.0) + dist.Normal(0.5, 0.3).log_prob(0.3)
    np.testing.assert_allclose(log_joint(small_model), MIXTURE.log_prob(VALUES[0]) + rest)
    np.testing.assert_allclose(log_joint(handlers.mask(small_model, mask=False)), 0.0)
    np.testing.assert_allclose(
        log_joint(handlers.scale(small_model, scale=2.0)), 2 * (MIXTURE.log_prob(VALUES[0]) + rest)
    )


def test_predictive():
    drawn = Predictive(small_model, num_samples=7)(jr.key(0), CLOSED)
    assert {name: a.shape for name, a in drawn.items()} == {"tau": (7,), "x": (7, 2), "y": (7,)}


def test_scan_over_draws():
    from numpyro.contrib.control_flow import scan

    def model():
        scan(lambda carry, _: (carry, numpyro.sample("x", CLOSED)), 0.0, jnp.arange(3))

    trace = handlers.trace(handlers.seed(model, jr.key(0))).get_trace()
    assert trace["x"]["value"].shape == (3, 2)
    log_density, _ = numpyro.infer.util.log_density(model, (), {}, {"x": VALUES})
    np.testing.assert_allclose(log_density, jax.vmap(MIXTURE.log_prob)(VALUES).sum(), rtol=1e-9)


A = jnp.array([[1.0, 0.5]])
Y = jnp.array([0.4])
EXACT = posterior(MIXTURE, A, Y, 0.5)


def linear_model(d, y=None):
    x = numpyro.sample("x", d)
    numpyro.sample("y", dist.Normal(A @ x, 0.5).to_event(1), obs=y)


def nuts(model, *args, num=1000, **kwargs):
    mcmc = MCMC(NUTS(model, **kwargs), num_warmup=300, num_samples=num, progress_bar=False)
    mcmc.run(jr.key(0), *args)
    return mcmc.get_samples()


@pytest.mark.slow
def test_nuts_through_the_density():
    """One Gaussian, so that NUTS needs no luck to pass between modes; 1,000 draws count as 300."""
    gaussian = MixturePrior([1.0], MIXTURE.means[1:], MIXTURE.variances[1:])
    draws = nuts(linear_model, DiffusionPrior(Bare(gaussian), num_steps=12), Y)["x"]
    mean, sd, _ = posterior(gaussian, A, Y, 0.5)
    within(draws, mean, sd, share=0.3)


@pytest.mark.slow
def test_nuts_through_the_latent_space():
    """Both modes are one in z, or nearly: the posterior of the mixture itself; a plate of two, one without data."""

    def model(d, y):
        with numpyro.plate("sites", 2):
            x = numpyro.sample("x", d)
        numpyro.sample("y", dist.Normal(A @ x[0], 0.5).to_event(1), obs=y)

    draws = nuts(handlers.reparam(model, config={"x": DiffusionReparam()}), PRIOR, Y, num=2000)
    assert draws["x_z"].shape == (2000, 2, 2)
    mean, sd, _ = EXACT
    within(draws["x"][:, 0], mean, sd, share=0.1)


def test_reparam_works_under_wrappers_and_refuses_others():
    reparam = DiffusionReparam()

    def value(d, obs=None):
        model = handlers.reparam(lambda: numpyro.sample("x", d, obs=obs), config={"x": reparam})
        return handlers.trace(handlers.seed(model, jr.key(0))).get_trace()

    wrapped = dist.TransformedDistribution(CLOSED.expand([3]).to_event(1), dist.transforms.ExpTransform())
    trace = value(wrapped)
    assert trace["x"]["value"].shape == (3, 2)
    assert bool((trace["x"]["value"] > 0).all())
    assert trace["x_z"]["fn"].event_shape == (3, 2)
    with pytest.raises(ValueError, match="is for a DiffusionPrior; got Normal at site 'x'"):
        value(dist.Normal())
    with pytest.raises(ValueError, match="site 'x' is observed"):
        value(CLOSED, VALUES[0])


@pytest.mark.slow
@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal])
def test_svi(guide):
    """The posterior of a Gaussian is Gaussian: AutoMultivariateNormal finds it, AutoNormal its mean."""
    gaussian = MixturePrior([1.0], MIXTURE.means[1:], MIXTURE.variances[1:])
    d = DiffusionPrior(Bare(gaussian), num_steps=12)
    auto = guide(linear_model)
    svi = SVI(linear_model, auto, numpyro.optim.Adam(0.03), Trace_ELBO(num_particles=4))
    result = svi.run(jr.key(0), 1000, d, Y, progress_bar=False)
    with jax.numpy_rank_promotion("allow"):  # NumPyro's own algebra
        draws = auto.sample_posterior(jr.key(1), result.params, sample_shape=(4000,))["x"]
    mean, sd, _ = posterior(gaussian, A, Y, 0.5)
    assert np.all(np.abs(np.asarray(draws).mean(0) - mean) < 0.25 * sd)
    if guide is AutoMultivariateNormal:
        assert np.all(np.abs(np.asarray(draws).std(0) / sd - 1) < 0.2)


# -- EnKG ---------------------------------------------------------------------------------------------------------


def run(model, *args, key=0, num_particles=J, **kwargs):
    enkg = EnKG(model, num_particles=num_particles, progress_bar=False)
    enkg.run(jr.key(key), *args, **kwargs)
    return enkg


def test_enkg_is_the_closed_form_and_compiles_once(caplog):
    def compiled():
        names = [r.getMessage().split("jit(")[1] for r in caplog.records if "Finished XLA comp" in r.getMessage()]
        caplog.clear()
        return names

    with jax.log_compiles():
        enkg = run(linear_model, PRIOR, y=Y)
    assert len(compiled()) > 5
    mean, sd, log_evidence = EXACT
    within(enkg.get_samples()["x"], mean, sd, share=0.5)
    assert abs(enkg.log_evidence - log_evidence) < 4 * enkg.log_evidence_error + 0.02
    assert enkg.diagnostics().warnings == []
    assert enkg.diagnostics()["method"] == "AdaptiveImportanceSampling"
    prior = enkg.to_arviz(prior=True, log_likelihood=True)["prior"]["x"].values.reshape(-1, 2)
    within(prior, *posterior(MIXTURE, A, Y, 1e6)[:2])

    # Potential energy is that of z, which the flow takes to x: minus log of (N(z; 0, I) L). The run moved in z, so it
    # never had to ask which z belongs to x.
    z = jax.vmap(lambda x: PRIOR.prior.encode(x, 4))(enkg.get_samples()["x"])
    log_prior = dist.Normal().log_prob(z).sum(-1)
    potential = -(log_prior + dist.Normal(enkg.get_samples()["x"] @ A.T, 0.5).log_prob(Y[None]).sum(-1))
    np.testing.assert_allclose(enkg.get_extra_fields()["potential_energy"], potential, atol=1e-4, rtol=0)

    # Another prior of the same structure, other data: nothing new to compile.
    other = MixturePrior([0.5, 0.5], MIXTURE.means + 0.5, MIXTURE.variances)
    d, y = DiffusionPrior(Bare(other), num_steps=24), Y + 0.1
    compiled()
    with jax.log_compiles():
        again = run(linear_model, d, y=y)
    assert compiled() == []
    mean, sd, _ = posterior(other, A, Y + 0.1, 0.5)
    within(again.get_samples()["x"], mean, sd, share=0.5)


@pytest.mark.slow
def test_hierarchy_is_that_of_nuts():
    """NUTS has the same prior as NumPyro's own mixture."""

    def model(d, y=None):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        x = numpyro.sample("x", d)
        numpyro.sample("y", dist.Normal(tau * (B @ x), 0.3).to_event(1), obs=y)

    B = jnp.array([[1.0, 0.5], [0.0, 1.0]])
    y = jnp.array([1.2, 0.6])
    ours = run(model, PRIOR, y=y).get_samples()
    theirs = nuts(model, as_numpyro(MIXTURE), y, num=4000)
    for name in ("tau", "x"):
        ess = np.min(numpyro.diagnostics.effective_sample_size(np.asarray(theirs[name])[None]))
        a, b = np.asarray(ours[name]), np.asarray(theirs[name])
        error = np.sqrt(2 / J + 1 / ess)  # every second particle counts
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 5 * error * b.std(0))
        assert np.all(np.abs(a.std(0) / b.std(0) - 1) < 5 * error)


def test_several_sites_plates_and_transforms():
    """Data of their own for each site, so that each posterior has its closed form; 3 copies in a plate."""
    other = MixturePrior([0.7, 0.3], [[20.0], [60.0]], [[4.0], [25.0]])
    sites = jnp.array([0.5, -1.5, 1.0])
    scores = jnp.array([24.0])

    def model(d, level, y=None, s=None):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        with numpyro.plate("sites", 3):
            x = numpyro.sample("x", d)
            numpyro.sample("y", dist.Normal((x @ A.T)[:, 0], 0.5), obs=y)
        scaled = dist.TransformedDistribution(level, dist.transforms.AffineTransform(1.0, 0.1))
        g = numpyro.sample("g", scaled)
        numpyro.sample("s", dist.Normal(g * 10, 30.0).to_event(1), obs=s)
        numpyro.sample("t", dist.Normal(shift, 1.0), obs=1.0)

    enkg = run(model, PRIOR, DiffusionPrior(Bare(other)), y=sites, s=scores, num_particles=1024)
    draws = enkg.get_samples()
    assert {name: a.shape for name, a in draws.items()} == {"shift": (1024,), "x": (1024, 3, 2), "g": (1024, 1)}
    for i, y in enumerate(sites):
        within(draws["x"][:, i], *posterior(MIXTURE, A, y[None], 0.5)[:2], share=0.3)
    mean, sd, _ = posterior(other, np.eye(1), scores - 10, 30.0)
    within(10 * (draws["g"] - 1), mean, sd, share=0.3)
    within(draws["shift"][:, None], 0.5, 0.5**0.5, share=0.3)
    assert enkg.diagnostics()["num_particles"] == 1024


def test_the_problem_has_a_block_for_every_kind():
    def model(d, y=None):
        a = numpyro.sample("a", dist.Normal().expand([2]).to_event(1))
        b = numpyro.sample("b", dist.Gamma(2.0, 1.0))
        with numpyro.plate("sites", 3):
            x = numpyro.sample("x", d)
        c = numpyro.sample("c", dist.Normal())
        numpyro.sample("y", dist.Normal(a.sum() + b + x.sum() + c, 1.0), obs=y)

    found = NumPyroModel(model, (PRIOR,), {"y": 1.0})
    prior = found.problem().prior
    assert [(type(block).__name__, n) for block, n in zip(prior.blocks, prior.copies, strict=True)] == [
        ("GaussianPrior", 1),
        ("Bare", 3),
        ("GaussianPrior", 1),
    ]
    assert (prior.dim, found.dim, found.diffusion_names) == (10, 10, ("x",))
    values = {"a": jnp.array([0.1, 0.2]), "b": 1.5, "x": VALUES, "c": -1.0}
    z = found.unconstrain(values)
    np.testing.assert_allclose(z[3:9].reshape(3, 2), (VALUES - MIXTURE.location[None]) / MIXTURE.scale, rtol=1e-9)
    back = found.problem().constrain(z)
    for name, value in values.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("num_particles", "prior", "kind"),
    [
        (64, Bare(MIXTURE), TemperedSMC),
        (24, Bare(MIXTURE), DiffusionWaltz),
        (24, GaussianPrior.standard(2), EllipticalSlice),
    ],
)
def test_what_is_chosen(num_particles, prior, kind):
    """Few particles for many unknowns: the latent space is taken where the way there is a closed form."""

    def model(d):
        x = numpyro.sample("x", d)
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=0.0)

    problem = NumPyroModel(model, (DiffusionPrior(prior).expand([2]).to_event(1),), {}).problem()
    assert type(choose(problem, num_particles)[0]) is kind


def test_a_prior_made_inside_the_model():
    """Its arrays are only known when the model runs; they become the block's all the same."""

    def model(simulate):
        a = numpyro.sample("a", dist.Normal())
        d = DiffusionPrior(Bare(_Shifted(MIXTURE, jnp.ones(()) * 2.0)))
        x = numpyro.sample("x", d)
        numpyro.sample("y", dist.Normal(simulate(a) * x[0], 1.0), obs=0.0)

    def simulate(a):
        return jax.pure_callback(lambda a: pytest.fail("simulated"), a, a)

    prior = NumPyroModel(model, (simulate,), {}).problem().prior
    np.testing.assert_allclose(prior.blocks[1].location, MIXTURE.location + 2.0)


def test_a_prior_that_depends_on_other_sites_is_refused():
    def model():
        a = numpyro.sample("a", dist.Normal())
        x = numpyro.sample("x", DiffusionPrior(Bare(_Shifted(MIXTURE, a))))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=0.0)

    with pytest.raises(ModelError, match="DiffusionPrior of latent site 'x' depends on other latent sites"):
        NumPyroModel(model, (), {})


def test_a_scale_that_depends_on_other_sites_is_refused():
    def model():
        s = numpyro.sample("s", dist.HalfNormal())
        x = numpyro.sample("x", DiffusionPrior(lambda x, sigma: x / (1 + sigma**2), (2,), location=0.0, scale=s))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=0.0)

    with pytest.raises(UnsupportedPriorError, match="DiffusionPrior needs scale .* scale or shift the value"):
        NumPyroModel(model, (), {})


def test_a_masked_prior_is_refused():
    def model():
        x = numpyro.sample("x", CLOSED.mask(jnp.asarray(False)))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=0.0)

    with pytest.raises(ModelError, match="latent site 'x': MaskedDistribution is not a prior"):
        NumPyroModel(model, (), {})


def test_large_events_get_a_line(capsys):
    """The guided ensemble alone, of a Gaussian field of 81 entries of which 3 are seen; and its figures."""
    field = DiffusionPrior(Bare(GaussianPrior(jnp.full(81, 5.0), jnp.linspace(0.5, 2.0, 81))), (9, 9))

    def model(d, y=None):
        x = numpyro.sample("x", d)
        shift = numpyro.sample("shift", dist.Normal(0.0, 0.1))
        numpyro.sample("y", dist.Normal(x[0, :3] + shift, 0.2).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=256, refine=None, progress_bar=False)
    enkg.run(jr.key(0), field, y=jnp.array([5.5, 5.0, 4.5]))
    draws = np.asarray(enkg.get_samples()["x"]).reshape(-1, 81)
    assert np.all(np.abs(draws.mean(0)[:3] - [5.5, 5.0, 4.5]) < 0.25)
    within(draws[:, 3:], 5.0, np.linspace(0.5, 2.0, 81)[3:] ** 0.5, share=0.5)
    assert enkg.diagnostics().warnings == []
    assert 0.5 < enkg.diagnostics()["latent_spread"] < 2.0
    enkg.print_summary()
    text = capsys.readouterr().out
    assert "x: 81 entries (9 x 9); means 4" in text
    assert "x[" not in text
    assert "shift" in text
