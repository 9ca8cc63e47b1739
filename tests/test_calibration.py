"""`calibration`: bands against enumeration and simulation, studies of posteriors known to be right or wrong, scores."""

import importlib
import itertools
import math
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

from enkg_ppl import EnKG, ModelError, TemperedSMC, blackbox, calibration
from enkg_ppl._arviz import ONE
from enkg_ppl.calibration._ecdf import bands, below, cuts, p_value

KEY = jr.key(0)
NOISE = 0.7


def gaussian(y=None):
    m = numpyro.sample("m", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("data", 2):
        numpyro.sample("y", dist.Normal(m, NOISE), obs=y)


class Conjugate:
    """The posterior of `gaussian` in closed form, its sd times `width` and its mean off by `shift` sd."""

    def __init__(self, width=1.0, shift=0.0, num_samples=200):
        self.width, self.shift, self.num_samples = width, shift, num_samples
        self.seen = []

    def run(self, rng_key, y):
        rng = np.random.default_rng(np.asarray(jr.key_data(rng_key)))
        variance = 1 / (1 + NOISE**-2)
        noise = rng.normal(size=(self.num_samples, 2))
        self.samples = {"m": variance * y / NOISE**2 + math.sqrt(variance) * (self.shift + self.width * noise)}
        self.seen.append(y)

    def get_samples(self):
        return self.samples


class Prior(Conjugate):
    """Ignores the data."""

    def run(self, rng_key, y):
        rng = np.random.default_rng(np.asarray(jr.key_data(rng_key)))
        self.samples = {"m": rng.normal(size=(self.num_samples, 2))}


def study(inference, model=gaussian, **options):
    return calibration.sbc(model, inference, **{"rng_key": KEY, "progress_bar": False} | options)


# -- bands ---------------------------------------------------------------------------------------------------------


def test_p_values_are_those_of_full_enumeration():
    """All 5^4 sets of four ranks among four draws, with tail probabilities from SciPy."""
    n, num_draws = 4, 4
    z = np.arange(1, 5) / 5
    all_ranks = np.array(list(itertools.product(range(num_draws + 1), repeat=n)))
    counts = np.stack([(all_ranks < k).sum(axis=1) for k in range(1, 5)], axis=1)
    statistic = 2 * np.minimum(st.binom.cdf(counts, n, z), st.binom.sf(counts - 1, n, z)).min(axis=1)
    for ranks, own in zip(all_ranks[::13], statistic[::13], strict=True):
        assert p_value(ranks, num_draws) == pytest.approx(np.mean(statistic <= own * (1 + 1e-12)), abs=1e-12)


@pytest.mark.parametrize(("n", "num_draws", "level"), [(300, 99, 0.95), (50, 20, 0.8), (40, 1000, 0.95)])
def test_a_band_holds_uniform_ranks_as_often_as_it_says(n, num_draws, level):
    """4,000 simulations: the share inside is within 4 standard errors of the stated probability."""
    band = bands(n, num_draws, level)
    ranks = np.random.default_rng(1).integers(0, num_draws + 1, size=(4000, n))
    counts = (ranks[:, :, None] < cuts(num_draws)).sum(axis=1)
    inside = np.all((counts >= np.round(band.lower * n)) & (counts <= np.round(band.upper * n)), axis=1).mean()
    assert level <= band.level < level + 0.02
    assert abs(inside - band.level) < 4 * math.sqrt(level * (1 - level) / 4000)
    np.testing.assert_array_equal(counts[0], below(ranks[0], num_draws))


def test_the_band_is_arvizs():
    """Within one count of ArviZ's, which differ from each other by as much."""
    n, z = 100, np.arange(1, 50) / 50
    if ONE:
        utils = importlib.import_module("arviz_stats.ecdf_utils")
        rng = np.random.default_rng(0)
        pointwise = utils.simulate_confidence_bands(n, 1, z, 0.95, 4000, rng)
        lower, upper = utils.get_pointwise_confidence_band(pointwise, n, z)
    else:
        utils = importlib.import_module("arviz.stats.ecdf_utils")
        lower, upper = utils.ecdf_confidence_band(n, z, z, prob=0.95)
    ours = bands(n, 49, 0.95)
    np.testing.assert_allclose(ours.points, z)
    assert np.abs(ours.lower - lower).max() <= 1.01 / n
    assert np.abs(ours.upper - upper).max() <= 1.01 / n


def test_p_value_and_band_agree():
    ranks = np.random.default_rng(2).integers(0, 100, size=(200, 60))
    band = bands(60, 99, 0.95)
    for row in ranks:
        counts = below(row, 99)
        inside = np.all((counts >= np.round(band.lower * 60)) & (counts <= np.round(band.upper * 60)))
        assert inside == (p_value(row, 99) > 1 - band.level + 1e-9)


# -- studies of posteriors that are known to be right or wrong -----------------------------------------------------


@pytest.fixture(scope="module")
def right():
    return study(Conjugate())


def test_an_exact_posterior_is_inside(right):
    """All p-values above 0.01: fails for 3 % of seeds, and not for this one."""
    assert right.names == ["m[0]", "m[1]", "log_likelihood"]
    assert right.ranks.shape == (300, 3)
    assert right.finished.all()
    assert right.calibrated()
    assert right.calibrated(jointly=False)
    assert min(right.p_values().values()) > 0.01
    assert calibration.coverage(right).inside
    assert "all 3 scalars are inside their 95% simultaneous bands" in str(right)
    assert right.num_forward_evaluations is None


@pytest.mark.parametrize(
    ("inference", "words"),
    [(Conjugate(width=0.7), "too narrow"), (Conjugate(width=1.5), "too wide"), (Conjugate(shift=0.4), "too high")],
    ids=["overconfident", "underconfident", "shifted"],
)
def test_a_wrong_posterior_is_outside_and_told_how(inference, words):
    result = study(inference)
    inside = result.inside()
    assert not inside["m[0]"]
    assert not inside["m[1]"]
    assert not result.calibrated()
    table = str(result).splitlines()
    assert table[1].startswith("m[0]")
    assert table[1].endswith(words)
    assert "OUTSIDE" in table[1]
    assert "bands for all 3 together exclude" in str(result)


def test_the_log_likelihood_catches_a_posterior_that_ignores_the_data():
    result = study(Prior(), rng_key=jr.key(1))
    inside = result.inside()
    assert inside["m[0]"]
    assert inside["m[1]"]
    assert not inside["log_likelihood"]


def test_ranks_count_the_draws_below_the_truth(right):
    np.testing.assert_array_equal(right.ranks[:, :2], (right.draws < right.truths[:, None]).sum(axis=1))


def test_ties_are_broken_evenly():
    """A discrete parameter among two values: p-values of its ranks are not small."""

    def coin(y=None):
        side = numpyro.sample("side", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(0.0 * side, 1.0), obs=y)

    class Flip(Conjugate):
        def run(self, rng_key, y):
            self.samples = {"side": np.random.default_rng(np.asarray(jr.key_data(rng_key))).integers(0, 2, 200)}

    result = study(Flip(), coin, log_likelihood=False)
    assert result.names == ["side"]
    assert min(result.p_values().values()) > 0.01
    assert len(np.unique(result.ranks)) > 60


class PriorItself:
    """Draws of the prior, the posterior where the data say nothing, with a sampler of its own for the extremes."""

    def __init__(self, prior, stop):
        self.prior, self.stop = prior, stop

    def run(self, rng_key, y):
        self.samples = {"x": self.stop(np.asarray(self.prior.sample(rng_key, (200,))))}

    def get_samples(self):
        return self.samples


TINY = np.finfo(np.float32).tiny


@pytest.mark.parametrize(
    ("prior", "stop"),
    [
        (dist.Gamma(0.02, 0.02), lambda x: np.maximum(x, TINY)),
        (dist.Gamma(0.001, 0.001), lambda x: np.maximum(x, TINY)),
        (dist.InverseGamma(0.02, 0.02), lambda x: np.minimum(x, np.finfo(np.float32).max)),
        (dist.Beta(0.02, 0.02), lambda x: np.where(x > 1 - 2e-7, np.float32(1 - 6e-8), x)),
        (dist.LogNormal(0.0, 80.0), lambda x: np.clip(x, TINY, np.finfo(np.float32).max)),
        (dist.Uniform(-3.0, 2.0), lambda x: x),
    ],
    ids=["zero", "mostly zero", "infinite", "zero and one", "zero and infinite", "ordinary"],
)
def test_truths_at_the_end_of_the_floats_are_ties(prior, stop):
    """Exact in distribution, but where floats end truths and draws stop at other values; by count, p is below 1e-9."""

    def model(y=None):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(0.0 * jnp.minimum(x, 1.0), 1.0), obs=y)

    with jax.enable_x64(False):
        result = study(PriorItself(prior, stop), model, num_datasets=200, log_likelihood=False)
    assert result.finished.all(), result.failures
    assert result.p_values()["x"] > 0.01  # fails for 1 % of seeds, and not for this one
    naive = (result.draws < result.truths[:, None]).sum(axis=1)[:, 0]
    assert (p_value(naive, 99) < 1e-9) != isinstance(prior, dist.Uniform)


def test_log_likelihoods_that_differ_by_rounding_are_ties():
    """A flat likelihood, whose thousand terms in single precision are summed by NumPy for draws and JAX for truths."""

    class Kept(PriorItself):
        def get_log_likelihood(self):
            return {"y": np.full((200, 1000), -0.1, np.float32)}

    def model(y=None):
        numpyro.sample("x", dist.Normal())
        numpyro.sample("y", dist.Uniform(0.0, np.exp(0.1)).expand([1000]).to_event(1), obs=y)

    with jax.enable_x64(False):
        result = study(Kept(dist.Normal(), lambda x: x), model, num_datasets=60)
    assert min(result.p_values().values()) > 0.01


def test_effective_sizes_that_are_negative_or_not_a_number():
    """Antithetic draws are worth more than independent ones; constant draws one, constants of the model all."""

    class Chain(Conjugate):
        def __init__(self, make):
            super().__init__()
            self.make = make

        def get_samples(self, group_by_chain=False):
            rng = np.random.default_rng(len(self.seen))
            draws = self.make(rng)
            return {"m": draws[None] if group_by_chain else draws}

    def antithetic(rng):
        return (-1.0) ** np.arange(200)[:, None] * (1 + 0.1 * rng.normal(size=(200, 2)))

    assert effective_sample_size(antithetic(np.random.default_rng(1))[None]).max() < 0
    assert study(Chain(antithetic), num_datasets=2, log_likelihood=False).warnings == {}
    stuck = study(Chain(lambda rng: np.full((200, 2), 0.3)), num_datasets=2, log_likelihood=False)
    assert "the smallest effective sample size is 1, below num_draws = 99" in stuck.warnings[0][0]

    def model(y=None):
        factor = numpyro.sample("factor", dist.LKJCholesky(2, 1.0))  # its first row is (1, 0) always
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(2), scale_tril=factor), obs=y)

    class Factors(Conjugate):
        def run(self, rng_key, y):
            self.samples = np.asarray(dist.LKJCholesky(2, 1.0).sample(rng_key, (200,)))

        def get_samples(self, group_by_chain=False):
            return {"factor": self.samples[None] if group_by_chain else self.samples}

    assert study(Factors(), model, num_datasets=2, log_likelihood=False).warnings == {}


def test_the_log_likelihood_is_the_models(right):
    """Recomputed with SciPy from the data that the inference saw and the draws that were kept."""
    inference = Conjugate()
    result = study(inference, num_datasets=20)
    for y, truth, draws, rank in zip(inference.seen, result.truths, result.draws, result.ranks[:, 2], strict=True):
        of_truth = st.norm.logpdf(y, truth, NOISE).sum()
        assert rank == (st.norm.logpdf(y, draws, NOISE).sum(axis=1) < of_truth).sum()


def test_joint_bands_are_wider(right):
    own, shared = right.ecdf_bands(0.95), right.ecdf_bands(1 - 0.05 / 3)
    assert np.all(shared.lower <= own.lower)
    assert np.any(shared.lower < own.lower)
    assert right.ecdf().shape == (3, 99)


# -- which sites are data ------------------------------------------------------------------------------------------


def named_otherwise(x, measured=None):
    m = numpyro.sample("m", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.deterministic("twice", 2 * m)
    numpyro.sample("y", dist.Normal(m * x, NOISE).to_event(1), obs=measured)


class Recorder(Conjugate):
    """Any draws will do; keeps what it was called with."""

    def __init__(self, model=None):
        super().__init__()
        self.model, self.calls = model, []

    def run(self, rng_key, *args, **kwargs):
        super().run(rng_key, np.zeros(2))
        self.samples["twice"] = 2 * self.samples["m"]
        self.calls.append((args, kwargs))


def test_data_by_the_name_of_the_argument():
    recorder = Recorder()
    result = study(recorder, named_otherwise, args=(3.0,), data={"y": "measured"}, num_datasets=2)
    assert result.names[:2] == ["m[0]", "m[1]"]
    assert recorder.calls[0][0] == (3.0,)
    assert set(recorder.calls[0][1]) == {"measured"}
    assert recorder.calls[0][1]["measured"].shape == (2,)


def test_a_site_that_is_no_argument_is_conditioned_on():
    def closed():
        named_otherwise(1.0)

    made = []
    result = study(lambda model: made.append(Recorder(model)) or made[-1], closed, data="y", num_datasets=2)
    assert result.finished.all()
    (recorder,) = made
    assert [set(kwargs) for _, kwargs in recorder.calls] == [{"y"}, {"y"}]
    trace = numpyro.handlers.trace(numpyro.handlers.seed(recorder.model, KEY)).get_trace(y=jnp.ones(2))
    assert trace["y"]["is_observed"]
    with pytest.raises(TypeError, match="pass a function that makes the inference"):
        study(Recorder(), closed, data="y")


def test_ranked_sites_may_be_chosen():
    options = {"args": (3.0,), "data": {"y": "measured"}, "num_datasets": 2}
    result = study(Recorder(), named_otherwise, sites=["twice"], log_likelihood=False, **options)
    assert result.names == ["twice[0]", "twice[1]"]
    with pytest.raises(ValueError, match="sites may hold m, twice; got 'thrice'"):
        study(Recorder(), named_otherwise, sites=["thrice"], **options)


def test_models_that_cannot_be_simulated():
    def fixed(y=None):
        numpyro.sample("m", dist.Normal())
        numpyro.sample("seen", dist.Normal(), obs=0.0)
        numpyro.sample("y", dist.Normal(), obs=y)

    with pytest.raises(ModelError, match="site 'seen' is observed while data are to be simulated"):
        study(Conjugate(), fixed)
    with pytest.raises(ModelError, match=r"free arguments: measured; sites: m, y\): pass data="):
        study(Conjugate(), named_otherwise, args=(1.0,))
    with pytest.raises(ModelError, match="data names 'z', which is no sample site of the model \\(m, y\\)"):
        study(Conjugate(), data="z")
    with pytest.raises(TypeError, match="does not take these args and kwargs"):
        study(Conjugate(), kwargs={"x": 1.0})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_datasets": 0}, ValueError, "num_datasets as a whole number >= 1; got 0"),
        ({"num_draws": 1.5}, ValueError, "num_draws as a whole number >= 1; got 1.5"),
        ({"rng_key": 0}, TypeError, "rng_key as jax.random.key\\(0\\) gives it; got 0"),
        ({"inference": 3}, TypeError, "or a function that makes one; got 3"),
        ({"inference": lambda model: model}, TypeError, "has no run"),
    ],
)
def test_mistakes_are_named(options, error, message):
    with pytest.raises(error, match=message):
        study(**{"inference": Conjugate()} | options)


# -- failures, warnings, interruptions -----------------------------------------------------------------------------


class Moody(Conjugate):
    """Fails on some runs, warns on others."""

    def run(self, rng_key, y):
        super().run(rng_key, y)
        n = len(self.seen)
        if n % 4 == 0:
            raise FloatingPointError(f"no luck on run {n}")
        if n % 5 == 0:
            self.samples["m"][3] = np.nan
        if n % 3 == 0:
            warnings.warn("something is odd", UserWarning, stacklevel=1)


def test_failures_and_warnings_are_recorded():
    result = study(Moody(), num_datasets=12)
    assert set(result.failures) == {3, 4, 7, 9, 11}
    assert result.failures[3] == "FloatingPointError: no luck on run 4"
    assert "NaN" in result.failures[4]
    assert result.warnings == {2: ["something is odd"], 5: ["something is odd"], 8: ["something is odd"]}
    assert (result.ranks[[3, 4, 7, 9, 11]] == -1).all()
    assert result.finished.sum() == 7
    assert "5 of 12 data sets failed and are left out" in str(result)
    assert result.ecdf_bands() == bands(7, 99, 0.95)


def test_a_study_that_only_fails_ends_at_once(tmp_path):
    inference = Conjugate(num_samples=50)
    with pytest.raises(RuntimeError, match="each of the first 3 data sets failed.*gives 50 draws: lower num_draws"):
        study(inference, file=tmp_path / "study.npz")
    assert len(inference.seen) == 3
    assert not list(tmp_path.iterdir())


class Interrupted(Conjugate):
    """Stopped by hand in its fifth run."""

    def run(self, rng_key, y):
        if len(self.seen) == 4:
            raise KeyboardInterrupt
        super().run(rng_key, y)


def test_a_broken_study_goes_on_where_it_stopped(tmp_path):
    file = tmp_path / "new folder" / "study.npz"
    whole = study(Conjugate(), num_datasets=12)
    with pytest.raises(KeyboardInterrupt):
        study(Interrupted(), num_datasets=8, file=file)
    resumed = Conjugate()
    resumed.__class__ = Interrupted  # the same method by name, with four more runs to go
    resumed.seen = [None] * 5
    result = study(resumed, num_datasets=12, file=file)
    assert len(resumed.seen) == 5 + 8
    np.testing.assert_array_equal(result.ranks, whole.ranks)
    np.testing.assert_array_equal(result.draws, whole.draws)
    assert [path.name for path in file.parent.iterdir()] == ["study.npz"]
    fewer = study(resumed, num_datasets=3, file=file)
    assert len(resumed.seen) == 13
    np.testing.assert_array_equal(fewer.ranks, whole.ranks[:3])
    assert len(study(resumed, num_datasets=12, file=file).ranks) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rng_key": jr.key(1)}, "rng_key = \\[0, 0\\] where \\[0, 1\\]"),
        ({"num_draws": 50}, "num_draws = 99 where 50"),
        ({"inference": Prior()}, "another study, with inference"),
        ({"log_likelihood": False}, "another study, with scalars"),
        ({"keep_draws": False}, "another study, with keep_draws"),
    ],
)
def test_the_file_of_another_study_is_refused(tmp_path, change, message):
    file = tmp_path / "study.npz"
    study(Conjugate(), num_datasets=2, file=file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=message):
        study(**{"inference": Conjugate(), "num_datasets": 2, "file": file} | change)
    assert file.read_bytes() == before


def test_another_refinement_is_another_study(tmp_path):
    file = tmp_path / "study.npz"
    inference = Conjugate()
    inference.refine = "auto"
    study(inference, num_datasets=1, file=file)
    inference.refine = TemperedSMC()
    with pytest.raises(ValueError, match="another study, with inference = .*'refine': .*auto.* where .*"):
        study(inference, num_datasets=1, file=file)


def test_other_arguments_are_another_study(tmp_path):
    options = {"data": {"y": "measured"}, "num_datasets": 1, "file": tmp_path / "study.npz"}
    study(Recorder(), named_otherwise, args=(np.array([1.0, 2.0]),), **options)
    study(Recorder(), named_otherwise, args=(np.array([1.0, 2.0]),), **options)
    with pytest.raises(ValueError, match="another study, with arguments"):
        study(Recorder(), named_otherwise, args=(np.array([1.0, 3.0]),), **options)


def with_noise(noise, prior=dist.Normal, draw=lambda m: m):
    """A model of the same name, sites and shapes whatever is asked for."""

    def model(y=None):
        m = numpyro.sample("m", prior(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(draw(m), noise).to_event(1), obs=y)

    return model


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (with_noise(0.71), r"another model: .* data set 0 has data 'y' = \[.*\] of shape \(2,\) where the file has"),
        (with_noise(NOISE, dist.Laplace), "another model: .* data set 0 has 'm' = "),
        (with_noise(NOISE, draw=lambda m: 2 * m), "another model: .* has data 'y'"),
        (with_noise(jnp.array([NOISE, jnp.inf])), "another model: .* has data 'y'"),
    ],
    ids=["noise", "prior", "simulator", "not finite"],
)
def test_a_study_of_another_model_by_the_same_name_is_refused(tmp_path, other, message):
    """Names, shapes and settings agree; a stored data set simulated again does not."""
    file = tmp_path / "study.npz"
    options = {"num_datasets": 3, "file": file}
    first = study(Conjugate(), with_noise(NOISE), **options)
    again = study(Conjugate(), with_noise(NOISE), **options)
    np.testing.assert_array_equal(again.ranks, first.ranks)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=f"{file} holds a study of {message}.*give another file, or delete this one"):
        study(Conjugate(), other, **options)
    assert file.read_bytes() == before


def test_an_inference_of_another_model_or_setting_is_another_study(tmp_path):
    """The data are the same, so that only the inference's own model, or the arguments of its constructor, can tell."""

    class Own(Conjugate):
        def __init__(self, model, **rest):
            super().__init__(**rest)
            self.model = model

    model, options = with_noise(NOISE), {"num_datasets": 1, "file": tmp_path / "study.npz"}
    study(Own(model), model, **options)
    study(Own(with_noise(NOISE)), model, **options)  # another function that simulates the same
    with pytest.raises(ValueError, match="a study of another model of the inference: .* has data 'y'"):
        study(Own(with_noise(0.2)), model, **options)
    with pytest.raises(ValueError, match="another study, with inference = .*'shift': 0.0.* where .*'shift': 0.5"):
        study(Own(model, shift=0.5), model, **options)
    chains = {"num_datasets": 1, "file": tmp_path / "chains.npz", "num_draws": 5}
    nuts = [
        MCMC(NUTS(model, target_accept_prob=p), num_warmup=9, num_samples=20, progress_bar=False) for p in (0.8, 0.9)
    ]
    study(nuts[0], model, **chains)
    with pytest.raises(ValueError, match="'kernel target_accept_prob': 0.8.* where .*'kernel target_accept_prob': 0.9"):
        study(nuts[1], model, **chains)


def test_a_simulator_with_random_numbers_of_its_own_may_go_on(tmp_path):
    rng = np.random.default_rng(0)
    simulate = blackbox(lambda m: m + rng.normal(size=m.shape), (2,))
    options = {"num_datasets": 2, "file": tmp_path / "study.npz", "num_draws": 9}
    study(Conjugate(), with_noise(NOISE, draw=simulate), **options)
    assert study(Conjugate(), with_noise(NOISE, draw=simulate), **options | {"num_datasets": 3}).finished.all()
    with pytest.raises(ValueError, match="another model: .* has 'm'"):
        study(Conjugate(), with_noise(NOISE, dist.Laplace, simulate), **options)


def test_a_file_that_is_no_study_is_left_alone(tmp_path):
    file = tmp_path / "notes.npz"
    file.write_text("my notes")
    with pytest.raises(ValueError, match="is no file of a calibration study"):
        study(Conjugate(), file=file)
    assert file.read_text() == "my notes"


def test_failures_survive_the_file(tmp_path):
    file = tmp_path / "study.npz"
    first = study(Moody(), num_datasets=6, file=file)
    again = study(Moody(), num_datasets=6, file=file)
    assert (again.failures, again.warnings) == (first.failures, first.warnings)


# -- inference by ensembles and by chains --------------------------------------------------------------------------


def test_enkg_on_a_black_box():
    """Counts, ranks of the kept draws, and the log likelihood that the run kept against SciPy's."""
    simulate = blackbox(lambda m: m**3 + m, (2,))

    def model(y=None):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(simulate(m), 0.5).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=256)  # its progress bar would be seen on stderr
    result = study(enkg, model, num_datasets=3)
    assert result.finished.all(), result.failures
    assert enkg.progress_bar
    assert result.num_forward_evaluations == simulate.num_calls - 3  # one a data set to simulate it
    np.testing.assert_array_equal(result.ranks[:, :2], (result.draws < result.truths[:, None]).sum(axis=1))
    y = np.asarray(enkg._kwargs["y"])
    log_likelihood = st.norm.logpdf(y, result.draws[2] ** 3 + result.draws[2], 0.5).sum(axis=1)
    truth = st.norm.logpdf(y, result.truths[2] ** 3 + result.truths[2], 0.5).sum()
    assert result.ranks[2, 2] == (log_likelihood < truth).sum()
    assert set(map(tuple, result.draws[2])) <= set(map(tuple, np.asarray(enkg.get_samples()["m"])))


@pytest.fixture(scope="module")
def chain():
    return MCMC(NUTS(gaussian), num_warmup=200, num_samples=600, progress_bar=False)


def test_nuts_is_compiled_once_and_left_as_it_was(chain):
    result = study(chain, num_datasets=30)
    assert result.finished.all(), result.failures
    assert not result.warnings
    assert np.median(result.seconds[5:]) < 0.2 * result.seconds[0]
    assert chain._states is None
    # Against the closed form on the same data sets: means of 99 draws agree within 5 standard errors.
    exact = study(Conjugate(), num_datasets=30)
    np.testing.assert_array_equal(result.truths, exact.truths)
    sd = math.sqrt(1 / (1 + NOISE**-2))
    assert np.abs(result.draws.mean(axis=1) - exact.draws.mean(axis=1)).max() < 5 * sd * math.sqrt(2 / 99)


@pytest.mark.slow
def test_nuts_is_calibrated(chain):
    result = study(chain)
    assert result.calibrated()
    assert calibration.coverage(result).max_error < 0.05


def test_dependent_draws_are_told(chain):
    class Sticky(Conjugate):
        """Every draw repeated twenty times."""

        def get_samples(self, group_by_chain=False):
            repeated = np.repeat(self.samples["m"], 20, axis=0)
            return {"m": repeated[None] if group_by_chain else repeated}

    result = study(Sticky(num_samples=40), num_datasets=2)
    assert "below num_draws = 99: ranks among dependent draws are not uniform" in result.warnings[0][0]


# -- expected coverage ---------------------------------------------------------------------------------------------


def pairs(width=1.0, n=400, num_draws=99, seed=0):
    rng = np.random.default_rng(seed)
    truths = rng.normal(size=(n, 2))
    y = truths + 0.5 * rng.normal(size=(n, 2))  # so truth | y ~ N(0.8 y, 0.2)
    return 0.8 * y[:, None] + math.sqrt(0.2) * width * rng.normal(size=(n, num_draws, 2)), truths


def test_coverage_is_the_tarp_packages():
    tarp = pytest.importorskip("tarp")
    draws, truths = pairs(width=0.7)
    scale = np.subtract(*np.quantile(truths, [0.75, 0.25], axis=0))
    draws, truths = draws / scale, truths / scale
    references = np.random.default_rng(1).uniform(-2, 2, size=truths.shape)
    expected, alpha = tarp.get_tarp_coverage(
        draws.transpose(1, 0, 2), truths, references=references, norm=False, bootstrap=False, num_alpha_bins=37
    )
    ours = calibration.coverage(draws, truths, references=references)
    # Theirs is the share of data sets with fewer than alpha * 99 draws nearer than the truth.
    k = np.ceil(alpha * 99 - 1e-9).astype(int)
    inner = (k >= 1) & (np.abs(alpha * 99 - np.round(alpha * 99)) > 1e-6)
    assert inner.sum() > 20
    np.testing.assert_allclose(ours.expected[k[inner] - 1], expected[inner], atol=1e-12)


def test_coverage_tells_right_from_wrong():
    right = calibration.coverage(*pairs())
    assert right.inside
    assert right.mean_error <= right.max_error < right.noise < 0.06
    assert "with 400 data sets a right posterior stays below" in str(right)
    narrow = calibration.coverage(*pairs(width=0.5))
    assert not narrow.inside
    assert narrow.max_error > 0.1
    # Overconfident: too often the truth is nearer to the reference than most draws, or farther than most.
    assert narrow.expected[9] > narrow.credibility[9]
    assert narrow.expected[89] < narrow.credibility[89]


def test_coverages_noise_is_that_of_repeated_studies():
    """Of 40 right studies, those above their own 95 % noise are at most 6 (binomial tail 0.003)."""
    results = [calibration.coverage(*pairs(n=100, seed=seed), num_bootstrap=200) for seed in range(40)]
    assert sum(not result.inside for result in results) <= 6


def test_coverage_of_a_study_leaves_out_what_failed():
    result = study(Moody(), num_datasets=24)
    assert calibration.coverage(result).num_datasets == result.finished.sum() < 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truths": None}, "needs truths where draws are given"),
        ({"truths": np.zeros((3, 2))}, "got \\(400, 99, 2\\) and \\(3, 2\\)"),
        ({"draws": np.zeros((4, 9, 2)), "truths": np.zeros((4, 2))}, "at least 10 data sets; got 4"),
        ({"draws": np.full((400, 9, 2), np.nan)}, "finite draws"),
        ({"level": 1.0}, "0 < level < 1; got level=1.0"),
        ({"num_references": 0}, "num_references as a whole number >= 1; got 0"),
        ({"references": np.zeros((5, 2))}, "references of shape \\(400, 2\\)"),
    ],
)
def test_what_coverage_refuses(change, message):
    draws, truths = pairs()
    with pytest.raises(ValueError, match=message):
        calibration.coverage(**{"draws": draws, "truths": truths} | change)


def test_coverage_needs_kept_draws():
    result = study(Conjugate(), num_datasets=2, keep_draws=False)
    assert result.draws is None
    with pytest.raises(ValueError, match="keep_draws=True"):
        calibration.coverage(result)


# -- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fair", [True, False])
def test_scores_are_those_of_scoringrules(fair):
    rules = pytest.importorskip("scoringrules")
    rng = np.random.default_rng(0)
    draws, truth = rng.normal(size=(300, 3, 2)), rng.normal(size=(3, 2))
    estimator = "fair" if fair else "nrg"
    np.testing.assert_allclose(
        calibration.crps(draws, truth, fair=fair), rules.crps_ensemble(truth, draws, m_axis=0, estimator=estimator)
    )
    flat = rules.es_ensemble(truth.ravel(), draws.reshape(300, -1), m_axis=0, v_axis=-1, estimator=estimator)
    assert calibration.energy_score(draws, truth, fair=fair) == pytest.approx(flat)


def test_crps_of_a_normal_in_closed_form():
    """CRPS(N(0, 1), t) = t (2 Phi(t) - 1) + 2 phi(t) - 1/sqrt(pi); 20,000 draws, within 5 standard errors."""
    t = np.array([0.0, 0.7, -2.0])
    closed = t * (2 * st.norm.cdf(t) - 1) + 2 * st.norm.pdf(t) - 1 / math.sqrt(math.pi)
    draws = np.random.default_rng(3).normal(size=(20_000, 1)) * np.ones(3)
    np.testing.assert_allclose(calibration.crps(draws, t), closed, atol=5 / math.sqrt(20_000))
    assert calibration.energy_score(draws[:2000, 1], 0.7) == pytest.approx(
        float(calibration.crps(draws[:2000, 1], 0.7))
    )


def test_a_fair_score_has_no_bias():
    """Mean over 4,000 pairs of draws against E|x - 0| - 1/sqrt(pi) for N(0, 1), within 5 standard errors."""
    draws = np.random.default_rng(4).normal(size=(2, 4000))
    closed = math.sqrt(2 / math.pi) - 1 / math.sqrt(math.pi)
    scores = calibration.crps(draws, np.zeros(4000))
    assert abs(scores.mean() - closed) < 5 * scores.std() / math.sqrt(4000)
    assert calibration.crps(draws, np.zeros(4000), fair=False).mean() > closed + 0.2


def test_spread_skill_ratio():
    """By hand on three draws, and 1 within 5 % on 2,000 cases of 5 draws from the law of the truth."""
    draws = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 6.0]])
    assert calibration.spread_skill_ratio(draws, [2.0, 5.0]) == pytest.approx(math.sqrt(4 / 3 * (4 + 12) / 9))
    rng = np.random.default_rng(5)
    assert abs(calibration.spread_skill_ratio(rng.normal(size=(5, 2000)), rng.normal(size=2000)) - 1) < 0.05
    assert calibration.spread_skill_ratio(np.arange(3.0), 1.0) == math.inf


@pytest.mark.parametrize("score", [calibration.crps, calibration.energy_score, calibration.spread_skill_ratio])
def test_scores_name_what_does_not_fit(score):
    with pytest.raises(ValueError, match=r"got draws \(5, 3\) and truth \(2,\)"):
        score(np.zeros((5, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="needs at least 2 draws"):
        score(np.zeros((1, 2)), np.zeros(2))


# -- pictures and ArviZ --------------------------------------------------------------------------------------------


def test_arviz_reads_the_ranks(right):
    group = right.to_arviz()["prior_sbc"]
    assert group["m"].shape == (1, 300, 2)
    assert group["m"].dims[:2] == ("chain", "draw")
    assert group["log_likelihood"].shape == (1, 300)
    scaled = group["m"].values[0]
    assert ((scaled > 0) & (scaled < 1)).all()
    np.testing.assert_array_equal(np.floor(scaled * 100).astype(int), right.ranks[:, :2])


@pytest.mark.skipif(not ONE, reason="plot_ecdf_pit came with ArviZ 1.0")
def test_plot_ecdf_pit_draws_the_ranks(right):
    az = importlib.import_module("arviz")
    collection = az.plot_ecdf_pit(right.to_arviz(), backend="none")
    assert set(collection.viz["ecdf_lines"].data_vars) == {"m", "log_likelihood"}


def test_the_picture(right, tmp_path):
    file = tmp_path / "pictures" / "ranks.png"
    figure = right.plot(file)
    assert file.read_bytes()[:4] == b"\x89PNG"
    assert [axis.get_title() for axis in figure.axes] == ["m[0]", "m[1]", "log_likelihood"]
    assert [axis.get_title() for axis in right.plot(names=["m[1]"]).axes] == ["m[1]"]
    line = figure.axes[0].get_lines()[-1]
    np.testing.assert_allclose(line.get_ydata()[1:-1], right.ecdf()[0] - right.ecdf_bands().points)
    with pytest.raises(ValueError, match="got 'q'"):
        right.plot(names=["q"])


def test_a_shape_that_changes_is_a_failure_not_a_crash():
    class Wrong(Conjugate):
        def get_samples(self):
            return {"m": self.samples["m"][:, :1]}

    with pytest.raises(RuntimeError, match=r"draws of site 'm' have shape \(1,\) where the model has \(2,\)"):
        study(Wrong())


def test_legacy_keys_and_single_precision():
    with jax.enable_x64(False):
        old = study(Conjugate(), rng_key=jr.PRNGKey(0), num_datasets=5)
        new = study(Conjugate(), rng_key=KEY, num_datasets=5)
    np.testing.assert_array_equal(old.ranks, new.ranks)
