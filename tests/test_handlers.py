"""Effect handlers, control flow and plates: the extracted problem against NumPyro's own joint density."""

# pyright: reportArgumentType=false
# NumPyro types its handlers for arrays alone.
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.reparam import CircularReparam, LocScaleReparam, TransformReparam
from numpyro.infer.util import log_density

from enkg_ppl import DiffusionPrior, EnKG, MixturePrior, ModelError
from enkg_ppl.numpyro._model import NumPyroModel

J = 256
Y = jnp.array([0.3, 0.9, -0.2])
SEEN = jnp.array([True, False, True])


def normal(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.5, 2.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.3))
    with numpyro.plate("data", 3):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def groups(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("groups", 3):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def shifted(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    shift = dist.transforms.AffineTransform(mu, 2.0)
    theta = numpyro.sample("theta", dist.TransformedDistribution(dist.Normal(0.0, 1.0), shift))
    numpyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def slope(y):
    p = numpyro.param("p", 1.5)
    q = numpyro.param("q", lambda key: jr.uniform(key))
    a = numpyro.sample("a", dist.Normal(p, 1.0))
    numpyro.sample("y", dist.Normal(a * p, 0.5 + q), obs=y)


def only_param(y):
    p = numpyro.param("p", 1.5)
    numpyro.sample("y", dist.Normal(p, 0.5), obs=y)


def inside(handler):
    """A handler around one site within the model."""

    def model(y):
        with handler(data={"mu": 1.5}):
            mu = numpyro.sample("mu", dist.Normal(0.5, 2.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + b, 0.5), obs=y)

    return model


def weighted(y):
    mu = numpyro.sample("mu", dist.Normal(0.5, 2.0))
    with handlers.scale(scale=jnp.array([1.0, 2.0, 3.0])), numpyro.plate("data", 3):
        numpyro.sample("y", dist.Normal(mu, 0.5), obs=y)


def nested(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("columns", 3, dim=-1):
        b = numpyro.sample("b", dist.Normal(mu, 1.0))
        with numpyro.plate("rows", 2, dim=-2):
            c = numpyro.sample("c", dist.LogNormal(b, 0.3))
            numpyro.sample("y", dist.Normal(c, 0.5), obs=jnp.stack([y, y]))


def walk(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(0.8 * x, 0.5))
        numpyro.deterministic("twice", 2 * x)
        numpyro.sample("y", dist.Normal(x, 0.3), obs=y_t)
        return x, x

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def walk_of_others(y):
    """Sites whose distributions NumPyro stacks over steps in its different ways."""
    tau = numpyro.sample("tau", dist.LogNormal(0.0, 0.3))

    def step(x, y_t):
        w = numpyro.sample("w", dist.Gamma(2.0, jnp.exp(x[0])).expand([2]).to_event(1))
        v = numpyro.sample("v", dist.LogNormal(x[1], tau))
        with numpyro.plate("pair", 2):
            u = numpyro.sample("u", dist.Normal(v, tau))
        x = numpyro.sample("x", dist.MultivariateNormal(0.8 * x, jnp.array([[1.0, 0.3], [0.3, 0.5]])))
        numpyro.sample("y", dist.Normal(x[0] * w + u, 0.3).to_event(1), obs=jnp.stack([y_t, y_t]))
        return x, x

    scan(step, jnp.zeros(2), y)


def branches(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))

    def up(a):
        return numpyro.sample("b", dist.Normal(a, 0.5))

    def down(a):
        return numpyro.sample("b", dist.Normal(-a, 1.0))

    numpyro.sample("y", dist.Normal(cond(a > 0, up, down, a), 0.5), obs=y)


def branches_of_steps(y):
    """A `cond` in the body of a `scan`: even and odd steps have priors of their own."""

    def even(x):
        return numpyro.sample("x", dist.Normal(0.8 * x, 0.5))

    def odd(x):
        return numpyro.sample("x", dist.Normal(-x, 1.0))

    def step(carry, y_t):
        x, i = carry
        x = cond(i % 2 == 0, even, odd, x)
        numpyro.sample("y", dist.Normal(x, 0.3), obs=y_t)
        return (x, i + 1), None

    scan(step, (1.0, 0), y)


def scan_of_scans(y):
    def inner(v, _):
        return numpyro.sample("v", dist.Normal(v, 1.0)), None

    def outer(v, y_t):
        v, _ = scan(inner, v, jnp.arange(2))
        numpyro.sample("y", dist.Normal(v, 0.3), obs=y_t)
        return v, None

    scan(outer, 0.0, y)


def penalty(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.factor("penalty", -jnp.sum((y - a) ** 4))


CASES = {
    "condition-latent": (handlers.condition(normal, {"mu": 1.0}), (Y,), ["sigma"], ["mu", "y"]),
    "condition-data": (handlers.condition(normal, {"y": Y}), (), ["mu", "sigma"], ["y"]),
    "condition-inside": (inside(handlers.condition), (Y,), ["b"], ["mu", "y"]),
    # As under NUTS, whose values replace those of an inner substitute.
    "substitute": (handlers.substitute(normal, {"mu": 1.0}), (Y,), ["mu", "sigma"], ["y"]),
    "substitute-inside": (inside(handlers.substitute), (Y,), ["mu", "b"], ["y"]),
    "do": (handlers.do(groups, {"mu": 1.0}), (Y,), ["mu", "tau", "theta"], ["y"]),
    "mask-true": (handlers.mask(normal, mask=True), (Y,), ["mu", "sigma"], ["y"]),
    "scale": (weighted, (Y,), ["mu"], ["y"]),
    "scope": (handlers.scope(normal, prefix="s"), (Y,), ["s/mu", "s/sigma"], ["s/y"]),
    "seed": (handlers.seed(normal, 3), (Y,), ["mu", "sigma"], ["y"]),
    "lift": (handlers.lift(only_param, prior={"p": dist.Normal(0.0, 1.0)}), (Y,), ["p"], ["y"]),
    "param": (slope, (Y,), ["a"], ["y"]),
    "infer-config": (handlers.infer_config(normal, lambda site: {"tag": 1}), (Y,), ["mu", "sigma"], ["y"]),
    "loc-scale": (
        handlers.reparam(groups, {"theta": LocScaleReparam(0)}),
        (Y,),
        ["mu", "tau", "theta_decentered"],
        ["y"],
    ),
    "loc-scale-learned": (
        handlers.reparam(groups, {"theta": LocScaleReparam()}),
        (Y,),
        ["mu", "tau", "theta_decentered"],
        ["y"],
    ),
    "transform": (handlers.reparam(shifted, {"theta": TransformReparam()}), (Y,), ["mu", "theta_base"], ["y"]),
    "nested-plates": (nested, (Y,), ["mu", "b", "c"], ["y"]),
    "scan": (walk, (Y,), ["x0", "x"], ["y"]),
    "scan-of-others": (walk_of_others, (Y,), ["tau", "w", "v", "u", "x"], ["y"]),
    "scan-conditioned": (handlers.condition(walk, {"x": Y}), (Y,), ["x0"], ["x", "y"]),
    "cond": (branches, (Y,), ["a", "b"], ["y"]),
    "cond-in-scan": (branches_of_steps, (Y,), ["x"], ["y"]),
    "factor": (penalty, (Y,), ["a"], ["penalty"]),
}


@pytest.mark.parametrize(("model", "args", "latent", "observed"), CASES.values(), ids=CASES)
def test_joint_density_is_numpyros(model, args, latent, observed):
    """N(z; 0, I) times the likelihood is NumPyro's joint density of the latent values times |d values / dz|."""
    extracted = NumPyroModel(model, args, {})
    problem = extracted.problem()
    assert ([site.name for site in extracted.sites], extracted.observed) == (latent, observed)

    def flat(z):
        values = problem.constrain(z)
        return jnp.concatenate([values[name].ravel() for name in latent])

    @jax.jit
    def both(z):
        mine = problem.log_likelihood(z) + jnp.sum(jax.scipy.stats.norm.logpdf(z))
        values = problem.constrain(z)
        seeded = handlers.seed(model, jr.key(0))
        with jax.numpy_rank_promotion("allow"):
            joint, _ = log_density(seeded, args, {}, {name: values[name] for name in latent})
        return mine, joint + jnp.linalg.slogdet(jax.jacfwd(flat)(z))[1], problem.unconstrain(values)

    for z in jr.normal(jr.key(1), (3, extracted.dim)):
        mine, numpyros, back = both(z)
        np.testing.assert_allclose(mine, numpyros, rtol=1e-10)
        np.testing.assert_allclose(back, z, rtol=1e-8, atol=1e-10)


# -- missing data -----------------------------------------------------------------------------------------------------


def with_missing(distribution):
    def model(y):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        with numpyro.plate("data", 3):
            numpyro.sample("y", distribution(rate), obs=y, obs_mask=SEEN)

    return model


@pytest.mark.parametrize("distribution", [lambda rate: dist.Normal(rate, 0.5), dist.Poisson], ids=["normal", "poisson"])
def test_missing_data_are_no_unknowns(distribution):
    """`obs_mask`: the likelihood is that of what was observed, whether the rest could be an unknown or not."""
    y = jnp.array([1, 7, 2])
    extracted = NumPyroModel(with_missing(distribution), (y,), {})
    assert ([site.name for site in extracted.sites], extracted.imputed) == (["rate"], ["y_unobserved"])
    z = jnp.array([0.3])
    rate = extracted.problem().constrain(z)["rate"]
    expected = distribution(rate).log_prob(y[SEEN]).sum()
    np.testing.assert_allclose(extracted.problem().log_likelihood(z), expected, rtol=1e-10)


def test_missing_steps_of_a_scan():
    def model(y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(0.8 * x, 0.5))
            numpyro.sample("y", dist.Normal(x, 0.3), obs=y_t, obs_mask=~jnp.isnan(y_t))
            return x, x

        scan(step, 0.0, y)

    extracted = NumPyroModel(model, (Y.at[1].set(jnp.nan),), {})
    assert ([site.name for site in extracted.sites], extracted.imputed) == (["x"], ["y_unobserved"])
    x = extracted.problem().constrain(jnp.array([0.3, -0.5, 1.0]))["x"]
    expected = dist.Normal(x, 0.3).log_prob(Y)[SEEN].sum()
    np.testing.assert_allclose(extracted.problem().log_likelihood(jnp.array([0.3, -0.5, 1.0])), expected, rtol=1e-10)


def test_missing_steps_in_the_branches_of_a_scan():
    """In a `cond` within a `scan` too, each missing datum is a draw of its own, from its own step's branch."""

    def model(y):
        def branch(sd):
            return lambda y_t: numpyro.sample("y", dist.Normal(0.0, sd), obs=y_t, obs_mask=y_t > 9)

        def step(i, y_t):
            cond(i < 2, branch(1.0), branch(9.0), y_t)
            return i + 1, None

        numpyro.sample("z", dist.Normal(numpyro.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=0.0)
        scan(step, 0, y)

    extracted = NumPyroModel(model, (Y,), {})
    assert ([site.name for site in extracted.sites], extracted.imputed) == (["x"], ["y_unobserved"])
    draws = jax.vmap(lambda z: extracted.simulator.replay(z)[0]["y_unobserved"])(jr.normal(jr.key(0), (1000, 1)))
    # 1,000 draws: an sd has an error of 2.2 %, a correlation one of 0.03; 5 of them.
    np.testing.assert_allclose(np.std(draws, axis=0), [1.0, 1.0, 9.0], rtol=0.11)
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.16


def test_a_reversed_scan():
    """Values are in the order of the data, as NumPyro's traces have them; its `log_density` takes them in that of the
    steps, so the density is written out here.
    """

    def model(y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.LogNormal(0.8 * x, 0.5))
            numpyro.sample("y", dist.Normal(x, 0.3), obs=y_t)
            return x, None

        scan(step, 0.2, y, reverse=True)

    problem = NumPyroModel(model, (Y,), {}).problem()
    z = jnp.array([0.3, -0.5, 1.0])
    x = np.asarray(problem.constrain(z)["x"])
    before = np.append(x[1:], 0.2)
    np.testing.assert_allclose(np.log(x), 0.8 * before + 0.5 * np.asarray(z)[::-1], rtol=1e-10)
    np.testing.assert_allclose(problem.log_likelihood(z), st.norm(x, 0.3).logpdf(Y).sum(), rtol=1e-10)


def test_posterior_with_missing_data():
    """Conjugate, from the observed data alone; the missing ones are draws from the posterior predictive (5 errors)."""

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.5, 2.0))
        with numpyro.plate("data", 3):
            numpyro.sample("y", dist.Normal(mu, 0.5), obs=y, obs_mask=SEEN)

    enkg = EnKG(model, num_particles=J, progress_bar=False)
    enkg.run(jr.key(0), Y.at[1].set(jnp.nan))
    samples = enkg.get_samples()
    variance = 1 / (1 / 4 + 2 / 0.25)
    mean = variance * (0.5 / 4 + (0.3 - 0.2) / 0.25)
    check_moments(samples["mu"], st.norm(mean, variance**0.5))
    assert set(samples) == {"mu", "y", "y_unobserved"}
    check_moments(samples["y"][:, 1], st.norm(mean, (variance + 0.25) ** 0.5))
    check_moments(samples["y"][:, 1] - samples["mu"], st.norm(0.0, 0.5))
    np.testing.assert_array_equal(samples["y"][:, 0], np.full(J, 0.3))


def check_moments(draws, exact):
    draws = np.asarray(draws)
    assert abs(draws.mean() - exact.mean()) < 5 * exact.std() / J**0.5
    assert abs(draws.std() / exact.std() - 1) < 5 / (2 * J) ** 0.5


def missing_covariate(x, y):
    x = numpyro.sample("x", dist.Normal(1.0, 2.0).expand([3]), obs=x, obs_mask=SEEN)
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a + x, 0.5), obs=y)


def test_missing_covariates_are_unknowns():
    """What the data depend on is inferred, with its prior: a and x[1] are Gaussian given y (5 standard errors)."""
    x = jnp.array([0.5, jnp.nan, -0.5])
    enkg = EnKG(missing_covariate, num_particles=J, progress_bar=False)
    enkg.run(jr.key(1), x, Y)
    # Unknowns (a, x1): prior precision, then y = H u + noise.
    H = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    covariance = np.linalg.inv(np.diag([1.0, 0.25]) + H.T @ H / 0.25)
    mean = covariance @ (np.array([0.0, 0.25]) + H.T @ (np.asarray(Y) - np.array([0.5, 0.0, -0.5])) / 0.25)
    samples = enkg.get_samples()
    for draws, i in ((samples["a"], 0), (samples["x"][:, 1], 1)):
        check_moments(draws, st.norm(mean[i], covariance[i, i] ** 0.5))


# -- control flow, end to end -----------------------------------------------------------------------------------------


def test_posterior_of_a_scan():
    """A linear-Gaussian state space: the smoother's mean and variance, from the joint Gaussian (5 standard errors)."""
    enkg = EnKG(walk, num_particles=J, progress_bar=False)
    enkg.run(jr.key(2), Y)
    # x = M e with e ~ N(0, diag(1, .25, .25, .25)) for (x0, x1, x2, x3).
    M = np.array([[0.8 ** (i - j) if i >= j else 0.0 for j in range(4)] for i in range(4)])
    prior = M @ np.diag([1.0, 0.25, 0.25, 0.25]) @ M.T
    gain = prior[:, 1:] @ np.linalg.inv(prior[1:, 1:] + 0.09 * np.eye(3))
    mean, covariance = gain @ np.asarray(Y), prior - gain @ prior[1:]
    samples = enkg.get_samples()
    assert {name: a.shape for name, a in samples.items()} == {"x0": (J,), "x": (J, 3), "twice": (J, 3)}
    check_moments(samples["x0"], st.norm(mean[0], covariance[0, 0] ** 0.5))
    for t in range(3):
        check_moments(samples["x"][:, t], st.norm(mean[t + 1], covariance[t + 1, t + 1] ** 0.5))
    np.testing.assert_allclose(samples["twice"], 2 * samples["x"])


def test_plate_and_scan_of_diffusion_priors():
    """Each row of a plate, and each step of a scan, is its own block of the latent vector, in standard units."""
    prior = DiffusionPrior(MixturePrior(jnp.ones(1), jnp.array([[1.0, -1.0]]), jnp.full(1, 0.5)))

    def model(y):
        tau = numpyro.sample("tau", dist.LogNormal(0.0, 0.5))
        with numpyro.plate("rows", 2):
            x = numpyro.sample("x", prior)
        _, w = scan(lambda carry, _: (carry, numpyro.sample("w", prior)), 0.0, jnp.arange(2))
        numpyro.sample("y", dist.Normal(tau * x + w, 0.5).to_event(2), obs=y)

    y = jnp.array([[0.5, -0.2], [0.1, 0.3]])
    extracted = NumPyroModel(model, (y,), {})
    assert [(site.name, site.shape) for site in extracted.sites] == [("tau", ()), ("x", (2, 2)), ("w", (2, 2))]
    z = jr.normal(jr.key(3), (9,))
    problem = extracted.problem()
    values = problem.constrain(z)
    expected = dist.Normal(values["tau"] * values["x"] + values["w"], 0.5).log_prob(y).sum()
    np.testing.assert_allclose(problem.log_likelihood(z), expected, rtol=1e-10)
    np.testing.assert_allclose(problem.unconstrain(values), z, rtol=1e-9)


# -- refusals ---------------------------------------------------------------------------------------------------------


def direction(y):
    angle = numpyro.sample("angle", dist.VonMises(0.3, 2.0))
    numpyro.sample("y", dist.VonMises(angle, 3.0), obs=y)


def hidden(y):
    with handlers.block():
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a + b, 0.5), obs=y)


def masked_latent(y):
    with handlers.mask(mask=SEEN):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([3]))
    numpyro.sample("y", dist.Normal(a, 0.5), obs=y)


def missing_count(k, y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    k = numpyro.sample("k", dist.Poisson(rate).expand([3]), obs=k, obs_mask=SEEN)
    numpyro.sample("y", dist.Normal(k, 0.5), obs=y)


def enumerated(y):
    k = numpyro.sample("k", dist.Categorical(jnp.array([0.3, 0.7])), infer={"enumerate": "parallel"})
    numpyro.sample("y", dist.Normal(jnp.array([0.0, 1.0])[k], 0.5), obs=y)


def collapsed(y):
    with handlers.collapse():
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        numpyro.sample("y", dist.Binomial(10, p), obs=y)


def subsampled(y):
    with numpyro.plate("data", 3, subsample_size=2) as rows:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a, 0.5), obs=y[rows])


REFUSED = {
    "block": (hidden, (Y,), "latent site 'b' is hidden by handlers.block, .*: take it out of the block"),
    "block-outside": (handlers.block(normal, hide=["mu"]), (Y,), "latent site 'mu' is hidden by handlers.block"),
    "circular": (
        handlers.reparam(direction, {"angle": CircularReparam()}),
        (Y,),
        r"latent site 'angle_unwrapped' .* CircularReparam .*: drop that reparam",
    ),
    "mask": (masked_latent, (Y,), "latent site 'a': MaskedDistribution is not a prior: .*mask the likelihood"),
    "missing-count": (missing_count, (jnp.arange(3), Y), "latent site 'k_unobserved': Poisson is discrete"),
    "enumerated": (enumerated, (Y,), "latent site 'k': CategoricalProbs is discrete.*marginalise"),
    "collapse": (collapsed, (3,), "handlers.collapse .*: write what is collapsed as one distribution"),
    "subsample": (subsampled, (Y,), "plate 'data' subsamples 2 of 3: .*drop subsample_size"),
    "scope-of-scan": (
        handlers.scope(walk, prefix="s"),
        (Y,),
        "latent site 'x' has another name outside the scan .*: apply handlers.scope to the function that is scanned",
    ),
    "scan-of-scans": (
        scan_of_scans,
        (Y,),
        "latent site 'v' is in a scan within a scan, .*: write the inner one as a loop, with sites 'v_0', 'v_1'",
    ),
    "scale": (
        handlers.scale(normal, scale=2.0),
        (Y,),
        "latent site 'mu' is under handlers.scale.*take the scale off latent sites",
    ),
    "substituted-data": (
        handlers.substitute(normal, {"y": Y}),
        (),
        "no observed site: give one obs=, or handlers.cond",
    ),
    "all-conditioned": (handlers.condition(normal, {"mu": 1.0, "sigma": 1.0}), (Y,), "the model has no latent site"),
}


@pytest.mark.parametrize(("model", "args", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(model, args, words):
    with pytest.raises(ModelError, match=words) as caught:
        NumPyroModel(model, args, {})
    assert str(caught.value).count(". ") == 0, "one sentence"
