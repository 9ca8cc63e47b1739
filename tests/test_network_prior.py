"""Networks as priors: exact ones for Gaussian data give the Gaussian prior back, however they are parametrised.

The networks below are the exact conditional means of what each kind of training predicts, written from the definition
of that prediction and not from the preconditioning's formulas.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl import (
    GaussianPrior,
    InverseProblem,
    KalmanCorrection,
    Karras,
    PublishedCorrection,
    TemperedSMC,
    guide,
    infer,
)
from enkg_ppl.guidance._gain import covariance_product
from enkg_ppl.likelihood import GaussianLikelihood
from enkg_ppl.networks import ResidualMLP
from enkg_ppl.priors import Flow, NetworkPrior, TorchNetwork, chunked_vmap
from enkg_ppl.priors.preconditioning import EDM, IDDPM, PRECONDITIONINGS, VE, VP, Direct, Discrete

MEAN, COVARIANCE = np.array([0.4, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]])
EXACT = GaussianPrior.full(MEAN, COVARIANCE)
# The network sees (x - SHIFT) / SPREAD.
SHIFT, SPREAD = np.array([0.1, -0.2]), 2.0
MEAN_SEEN, COVARIANCE_SEEN = (MEAN - SHIFT) / SPREAD, COVARIANCE / SPREAD**2
ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
OPTIONS = {"location": MEAN, "scale": float(EXACT.scale), "shift": SHIFT, "spread": SPREAD}
X = jr.normal(jr.key(0), (5, 2))


class Linear(eqx.Module):
    """``E[wanted | given]`` for the Gaussian data that the network sees, given ``a x0 + b eps``.

    `mix`: from the noise coordinate to (a, b, c, d), where the network predicts ``c x0 + d eps``.
    """

    mean: jax.Array
    covariance: jax.Array
    mix: object = eqx.field(static=True)

    def __call__(self, given, noise):
        a, b, c, d = self.mix(noise)
        identity = jnp.eye(2)
        total = a**2 * self.covariance + b**2 * identity
        cross = a * c * self.covariance + b * d * identity
        return c * self.mean + cross @ jnp.linalg.solve(total, given - a * self.mean)


def discrete(prediction, scale=1.0, offset=0.0):
    """x_t = sqrt(a) x0 + sqrt(1 - a) eps, with a(t) linear in log sigma between the steps."""

    def mix(noise):
        step = (noise - offset) / scale
        log_sigma = jnp.interp(step, jnp.arange(1000.0), jnp.asarray(0.5 * np.log((1 - ALPHAS) / ALPHAS)))
        root_a = 1 / jnp.sqrt(1 + jnp.exp(2 * log_sigma))
        rest = jnp.sqrt(1 - root_a**2)
        wanted = {"noise": (0.0, 1.0), "v": (-rest, root_a), "x0": (1.0, 0.0)}[prediction]
        return root_a, rest, *wanted

    return mix


def vp(noise):
    """Song et al., eq. 29 and 33: log of the squared share of x0 is minus the integral of beta."""
    t = noise / 999
    a = jnp.exp(-0.5 * 19.9 * t**2 - 0.1 * t)
    return jnp.sqrt(a), jnp.sqrt(1 - a), 0.0, 1.0


def edm(noise):
    """Inputs and targets of unit variance for data of variance 1/4 (Karras et al., eq. 8 and appendix B.6)."""
    sigma = jnp.exp(4 * noise)
    width = jnp.sqrt(sigma**2 + 0.25)
    # Target (x0 - skip (x0 + sigma eps)) / out, skip = 0.25 / width^2, out = sigma / (2 width).
    return 1 / width, sigma / width, 2 * sigma / width, -0.5 / width


PARAMETRISATIONS = {
    "edm": (EDM(0.5), edm),
    "vp": (VP(), vp),
    "ve": (VE(), lambda noise: (1.0, 2 * jnp.exp(noise), 0.0, -1.0)),  # out = sigma: the network predicts -eps
    "noise": (Discrete(ALPHAS), discrete("noise")),
    "v": (Discrete(ALPHAS, "v"), discrete("v")),
    "x0": (Discrete(ALPHAS, "x0"), discrete("x0")),
    "scaled-time": (
        Discrete(ALPHAS, time_scale=1e-3, time_offset=0.5),
        discrete("noise", 1e-3, 0.5),
    ),
    "direct": (Direct(), lambda noise: (1.0, noise, 1.0, 0.0)),
}


def prior_of(name, **options) -> NetworkPrior:
    preconditioning, mix = PARAMETRISATIONS[name]
    network = Linear(jnp.asarray(MEAN_SEEN), jnp.asarray(COVARIANCE_SEEN), mix)
    return NetworkPrior(network, preconditioning, (2,), **{**OPTIONS, **options})


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_every_parametrisation_is_the_same_denoiser(name):
    prior = prior_of(name)
    for sigma in (0.06, 0.7, 5.0, 60.0):
        denoised = jax.vmap(lambda x: prior.denoise(x, sigma))(MEAN[None] + sigma * X)  # noqa: B023
        exact = jax.vmap(lambda x: EXACT.denoise(x, sigma))(MEAN[None] + sigma * X)  # noqa: B023
        np.testing.assert_allclose(denoised, exact, rtol=1e-6, atol=1e-6)


def test_improved_ddpm_grid_is_the_cosine_schedule():
    """Where the largest step is not capped, 1 + sigma_j^2 = a_M / a_j with a_j = sin^2(pi j / 2 M (1 + s))."""
    M = 50
    pre = IDDPM(M)
    j = np.arange(M - 1, 0, -1)  # step 0 has the least noise
    a = np.sin(0.5 * np.pi * np.append(j, M) / M / 1.008) ** 2
    np.testing.assert_allclose(pre.sigmas()[:-1], np.sqrt(a[-1] / a[:-1] - 1), rtol=1e-9)
    np.testing.assert_allclose(pre.sigmas()[-1], np.sqrt((pre.sigmas()[-2] ** 2 + 1) / 0.001 - 1), rtol=1e-12)
    assert pre.sigma_max == pre.sigmas()[-1]
    # The nearest step's number, and the same at the steps where it is interpolated.
    between = np.sqrt(pre.sigmas()[3] * pre.sigmas()[4])
    assert float(pre.coefficients(jnp.asarray(between)).noise) in (3.0, 4.0)
    smooth = IDDPM(M, nearest=False)
    np.testing.assert_allclose(smooth.coefficients(jnp.asarray(between)).noise, 3.5, rtol=1e-9)
    for step in (0, 7, M - 1):
        assert float(pre.coefficients(jnp.asarray(pre.sigmas()[step])).noise) == step


def test_nearest_step_of_a_discrete_schedule():
    pre = Discrete(ALPHAS, nearest=True, time_scale=1e-3)
    sigma = jnp.asarray(pre.sigmas()[41] * 1.0001)
    np.testing.assert_allclose(pre.coefficients(sigma).noise, 0.041, rtol=1e-12)


def test_known_values_of_continuous_time():
    """sigma at t = 1 and at t = 1e-5 of the usual constants, from sigma^2 = exp(19.9 t^2 / 2 + 0.1 t) - 1."""
    np.testing.assert_allclose(VP().sigma_max, np.sqrt(np.exp(10.05) - 1), rtol=1e-12)
    np.testing.assert_allclose(VP().sigma_min, np.sqrt(np.expm1(9.95e-10 + 1e-6)), rtol=1e-9)
    np.testing.assert_allclose(VP().time(jnp.asarray(VP().sigma_min)), 1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    "pre", [EDM(0.7), VP(), VE(), IDDPM(20), Discrete(ALPHAS, "v")], ids=lambda p: type(p).__name__
)
def test_loss_weight_and_config(pre):
    sigma = jnp.asarray(0.9)
    np.testing.assert_allclose(pre.loss_weight(sigma) * pre.coefficients(sigma).out ** 2, 1.0, rtol=1e-12)
    again = PRECONDITIONINGS[type(pre).__name__](**pre.config())
    assert again == pre
    assert hash(jax.tree.structure(again)) == hash(jax.tree.structure(pre))
    if isinstance(pre, EDM):  # Karras et al., table 1: lambda = (sigma^2 + s^2) / (sigma s)^2
        np.testing.assert_allclose(pre.loss_weight(sigma), (0.81 + 0.49) / (0.9 * 0.7) ** 2, rtol=1e-12)


def test_log_prob_and_conditional_draws_are_the_gaussians():
    prior = prior_of("edm")
    x = MEAN[None] + X
    np.testing.assert_allclose(jax.jit(jax.vmap(Flow(prior).log_prob))(x), jax.vmap(EXACT.log_prob)(x), atol=1e-3)
    draw = lambda p: jax.vmap(lambda k: p.conditional_sample(k, x[0], jnp.asarray(0.8)))(keys)  # noqa: E731
    keys = jr.split(jr.key(2), 4000)
    ours, exact = np.asarray(draw(prior)), np.asarray(draw(EXACT))
    # Four standard errors of the mean; 4,000 draws know the covariance to 2.2 %, each time.
    np.testing.assert_allclose(ours.mean(0), exact.mean(0), atol=4 * 2**0.5 * exact.std() / 4000**0.5)
    np.testing.assert_allclose(np.cov(ours.T), np.cov(exact.T), atol=0.12 * np.cov(exact.T).max())


A, Y, SD = jnp.array([[1.0, 0.6]]), jnp.array([1.1]), 0.4
J = 256


def test_the_posterior_through_a_network_is_the_gaussians():
    """Guidance and tempering. Over 20 seeds the errors are at most 2.2 (mean) and 2.6 (sd) standard errors."""
    problem = InverseProblem(prior_of("noise"), lambda x: A @ x, GaussianLikelihood(Y, SD))
    precision = np.linalg.inv(COVARIANCE) + A.T @ A / SD**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (np.linalg.inv(COVARIANCE) @ MEAN + A.T @ Y / SD**2)
    draws = np.asarray(infer(jr.key(3), problem, num_particles=J, refine=TemperedSMC()).draws)
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(draws.mean(0) - mean) < 4 * sd / J**0.5)
    assert np.all(np.abs(draws.std(0) / sd - 1) < 4 / (2 * J) ** 0.5)


# ---- outside the noise levels of the training


def test_continuation_is_continuous_and_right_for_gaussians():
    """The network itself is replaced by nonsense outside its noise levels: it must not be asked there."""
    low, high = 0.05, 20.0

    def denoise(x, sigma):
        return jnp.where((sigma >= low * 0.999) & (sigma <= high * 1.001), EXACT.denoise(x, sigma), jnp.nan)

    prior = NetworkPrior.from_denoiser(
        denoise, 2, location=MEAN, scale=float(EXACT.scale), sigma_min=low, sigma_max=high
    )
    for edge in (low, high):
        x = MEAN + edge * X[0]
        below, above = (prior.denoise(x, jnp.asarray(edge * f)) for f in (1 - 1e-9, 1 + 1e-9))
        np.testing.assert_allclose(below, above, atol=1e-7)
    for sigma in (0.001, 0.02):  # the score changes by (low / sd)^2 at most, which is 2 % here
        x = MEAN + X[0]
        ours, exact = prior.denoise(x, jnp.asarray(sigma)) - x, EXACT.denoise(x, sigma) - x
        np.testing.assert_allclose(ours, exact, rtol=0.03)
    for sigma in (50.0, 2000.0):  # the pull towards the mean is wrong by (scale / high)^2 at most, 0.2 %
        x = MEAN + sigma * X[0]
        ours, exact = prior.denoise(x, jnp.asarray(sigma)) - MEAN, EXACT.denoise(x, sigma) - MEAN
        np.testing.assert_allclose(ours, exact, rtol=3e-3)


def test_noise_levels_of_the_training_are_the_preconditionings():
    assert prior_of("vp").sigma_max == pytest.approx(SPREAD * VP().sigma_max)
    assert prior_of("edm").sigma_max is None
    assert prior_of("vp", sigma_max=3.0).sigma_max == 3.0


# ---- precision


def test_bfloat16_is_the_networks_own_affair():
    network = ResidualMLP(2, width=16, depth=1, embedding_size=8, key=jr.key(0))
    network = eqx.tree_at(lambda n: n.output.weight, network, 0.1 * jr.normal(jr.key(1), (2, 16)))
    seen = []

    class Spy(eqx.Module):
        inner: ResidualMLP

        def __call__(self, x, noise):
            seen.append((x.dtype, noise.dtype, self.inner.output.weight.dtype))
            return self.inner(x, noise)

    full, half = (NetworkPrior(Spy(network), EDM(), 2, location=0.0, scale=1.0, dtype=d) for d in (None, "bfloat16"))
    out = half.denoise(X[0], 0.3)
    assert seen[-1] == (jnp.bfloat16, jnp.float64, jnp.bfloat16)
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, full.denoise(X[0], 0.3), atol=0.02)
    assert seen[-1][0] == jnp.float64


# ---- chunks


def watched(sizes):
    """The exact denoiser, which notes for how many particles at once it is compiled."""

    @jax.custom_batching.custom_vmap
    def watch(x):
        return x

    @watch.def_vmap
    def _(axis_size, in_batched, x):
        sizes.append(int(np.prod(x.shape[:-1])))
        return watch(x), in_batched[0]

    watch_with_derivative = jax.custom_jvp(watch)
    watch_with_derivative.defjvps(lambda dx, *_: dx)
    return lambda x, sigma: EXACT.denoise(watch_with_derivative(x), sigma)


@pytest.mark.parametrize(
    "correction",
    [
        pytest.param(KalmanCorrection(), marks=pytest.mark.slow, id="kalman"),
        pytest.param(PublishedCorrection(0.5), id="published"),
    ],
)
def test_chunks_bound_the_network_and_change_nothing(correction):
    draws, seen = [], []
    for chunk_size in (None, 5):
        sizes: list[int] = []
        prior = NetworkPrior.from_denoiser(
            watched(sizes), 2, location=MEAN, scale=float(EXACT.scale), chunk_size=chunk_size
        )
        problem = InverseProblem(prior, lambda x: A @ x, GaussianLikelihood(Y, SD))
        draws.append(
            guide(jr.key(0), problem, num_particles=12, correction=correction, schedule=Karras(2, 0.5, 2.0)).draws
        )
        seen.append(max(sizes))
    # PublishedCorrection amplifies rounding; two levels of it do not.
    np.testing.assert_allclose(*draws, rtol=1e-7)
    assert seen[0] == 12
    assert 1 < seen[1] <= 5


@pytest.mark.parametrize(("n", "chunk_size"), [(7, None), (7, 1), (7, 3), (7, 6), (7, 7), (6, 2), (1, 4)])
def test_over_particles_is_vmap(n, chunk_size):
    prior = prior_of("direct", chunk_size=chunk_size)
    x, keys = jnp.arange(2.0 * n).reshape(n, 2), jr.split(jr.key(0), n)
    fn = lambda x, k: {"a": x**2, "b": jr.normal(k)}  # noqa: E731
    ours, plain = chunked_vmap(prior, fn, x, keys), jax.vmap(fn)(x, keys)
    jax.tree.map(np.testing.assert_array_equal, ours, plain)


def test_chunks_can_be_differentiated_in_both_modes():
    prior = prior_of("edm", chunk_size=2)
    f = lambda x: chunked_vmap(prior, lambda x: prior.denoise(x, 0.5), x)  # noqa: E731
    forward, backward = jax.jacfwd(f)(X), jax.jacrev(f)(X)
    np.testing.assert_allclose(forward, backward, atol=1e-12)
    one = jax.jacfwd(lambda x: EXACT.denoise(x, 0.5))(X[3])
    np.testing.assert_allclose(forward[3, :, 3], one, atol=1e-9)


# ---- compilation


def test_another_prior_of_the_same_kind_compiles_nothing():
    count = 0

    @eqx.filter_jit
    def denoise(prior, x):
        nonlocal count
        count += 1
        return prior.denoise(x, jnp.asarray(0.3))

    make = lambda seed: NetworkPrior(  # noqa: E731
        ResidualMLP(2, width=4, depth=1, embedding_size=4, key=jr.key(seed)),
        Discrete(ALPHAS),
        2,
        location=float(seed),
        scale=1.0 + seed,
    )
    denoise(make(0), X[0]), denoise(make(1), X[0])
    assert count == 1


# ---- a module of PyTorch


@pytest.fixture(scope="module")
def module():
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = (torch.nn.Linear(n, m, dtype=torch.float64) for n, m in ((4, 5), (5, 4)))
            self.batches = []

        def forward(self, x, noise):
            self.batches.append(len(x))
            return self.second(torch.tanh(self.first(x.reshape(-1, 4)) + noise[:, None])).reshape(x.shape)

    return Module()


@pytest.fixture(scope="module")
def twin(module):
    """The same network in JAX."""
    weights = {n: np.array(p.detach().tolist()) for n, p in module.named_parameters()}

    def network(x, noise):
        h = jnp.tanh(weights["first.weight"] @ x.reshape(-1) + weights["first.bias"] + noise)
        return (weights["second.weight"] @ h + weights["second.bias"]).reshape(x.shape)

    return network


SERIES = jr.normal(jr.key(5), (3, 2, 2))


def test_torch_value_and_derivatives(module, twin):
    ours = TorchNetwork(module)
    noise = jnp.asarray(0.4)

    def everything(network):
        one = lambda x: network(x, noise)  # noqa: E731
        value = jax.vmap(one)(SERIES)
        by_x, by_noise = jax.jacfwd(network, (0, 1))(SERIES[0], noise)
        products = jax.vmap(lambda x: jax.vmap(jax.linearize(one, x)[1])(jnp.eye(4).reshape(4, 2, 2)))(SERIES)
        reverse = jax.grad(lambda X, n: jnp.sum(jax.vmap(lambda x: network(x, n))(X) ** 2), (0, 1))(SERIES, noise)
        return value, by_x, by_noise, products, jax.jacrev(network)(SERIES[0], noise), *reverse

    for got, want in zip(jax.jit(lambda: everything(ours))(), everything(twin), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_torch_is_called_once_for_an_ensemble(module):
    network = TorchNetwork(module)
    module.batches.clear()
    jax.block_until_ready(jax.jit(jax.vmap(network, (0, None)))(SERIES, jnp.asarray(0.1)))
    assert module.batches == [3]


@pytest.mark.slow
def test_torch_prior_guides_and_has_a_density(module, twin):
    """KalmanCorrection takes directional derivatives of it, log_prob traces of its Jacobian."""
    both = [NetworkPrior(n, EDM(), (2, 2), location=0.0, scale=1.0, chunk_size=8) for n in (TorchNetwork(module), twin)]
    A = jr.normal(jr.key(6), (4, 3))
    x = SERIES.reshape(3, 4)
    density, draws, products = [], [], []
    for prior in both:
        density.append(jax.jit(jax.vmap(Flow(prior, num_steps=4).log_prob))(x))
        problem = InverseProblem(prior, lambda x: x[:2], GaussianLikelihood(jnp.ones(2), 0.5))
        schedule = Karras(2, 0.3, 2.0)
        correction = PublishedCorrection(0.1, num_updates=1)
        draws.append(guide(jr.key(1), problem, num_particles=12, correction=correction, schedule=schedule).draws)
        products.append(jax.jit(jax.vmap(lambda x, p=prior: covariance_product(p, x, 0.7, A)))(x))
    np.testing.assert_allclose(*density, rtol=1e-8)
    np.testing.assert_allclose(*products, rtol=1e-8)
    np.testing.assert_allclose(*draws, rtol=1e-4)
    np.testing.assert_allclose(
        *(jax.grad(lambda z, p=p: Flow(p, num_steps=4).forward(z)[0])(x[0]) for p in both), rtol=1e-8
    )


def test_torch_messages(module):
    prior = NetworkPrior(TorchNetwork(module), EDM(), (2, 2), location=0.0, scale=1.0)
    with pytest.raises(TypeError, match="no second derivatives here"):
        jax.grad(Flow(prior, num_steps=2).log_prob)(jnp.zeros(4))
    with pytest.raises(TypeError, match=r"needs a torch.nn.Module; got 3"):
        TorchNetwork(3)


# ---- messages


def network(x, noise):
    return x


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: EDM(0.0), ValueError, "EDM needs sigma_data > 0; got sigma_data=0"),
        (lambda: VP(beta_d=-1.0), ValueError, "VP needs beta_d > 0"),
        (lambda: VP(time_min=2.0), ValueError, "0 < time_min < 1"),
        (lambda: VE(2.0, 1.0), ValueError, "0 < sigma_min < sigma_max; got sigma_min=2.0, sigma_max=1.0"),
        (lambda: IDDPM(1), ValueError, "num_steps > 1; got num_steps=1"),
        (lambda: Discrete([0.9]), ValueError, r"vector of two numbers at least, one a step; got shape \(1,\)"),
        (lambda: Discrete([0.1, 0.9]), ValueError, "between 0 and 1 and decreasing"),
        (lambda: Discrete([0.9, 0.1], "eps"), ValueError, "'noise', 'v' or 'x0'; got prediction='eps'"),
        (lambda: NetworkPrior(3, EDM(), 2, **OPTIONS), TypeError, r"called as network\(x, noise\); got 3"),
        (lambda: NetworkPrior(network, "edm", 2, **OPTIONS), TypeError, r"preconditioning such as EDM\(\); got 'edm'"),
        (lambda: NetworkPrior(network, EDM(), (), **OPTIONS), ValueError, "event_shape as a tuple of whole numbers"),
        (lambda: NetworkPrior(lambda x, n: x[:1], EDM(), 2, **OPTIONS), ValueError, r"shape \(2,\); got \(1,\)"),
        (lambda: prior_of("edm", scale=0.0), ValueError, "NetworkPrior needs scale > 0; got scale=0.0"),
        (lambda: prior_of("edm", spread=[1.0, 2.0]), ValueError, "spread as one number; .*divide the data by their"),
        (lambda: prior_of("edm", location=np.zeros(3)), ValueError, r"location to broadcast to .*\(2,\); got \(3,\)"),
        (lambda: prior_of("edm", shift=np.zeros((1, 2))), ValueError, "shift to broadcast"),
        (lambda: prior_of("edm", sigma_min=2.0, sigma_max=1.0), ValueError, "0 < sigma_min < sigma_max; got"),
        (lambda: prior_of("edm", sigma_min=-1.0), ValueError, "0 < sigma_min < sigma_max; got sigma_min=-1.0"),
        (
            lambda: prior_of("edm", chunk_size=0),
            ValueError,
            "chunk_size as a whole number >= 1, or None for all; got 0",
        ),
        (lambda: prior_of("edm", dtype="int8"), ValueError, "dtype as one of bfloat16"),
        (lambda: prior_of("edm", record={"a": {1, 2}}), TypeError, r"record\['a'\] holds set, which has no place"),
    ],
)
def test_messages(make, error, words):
    with pytest.raises(error, match=words):
        make()
