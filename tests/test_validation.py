"""Methods, runner and report of ``python -m validation``: toys for the machinery, then the quick suite end to end."""

import csv
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import GaussianPrior, InverseProblem, blackbox
from enkg_ppl.likelihood import GaussianLikelihood
from validation import runner
from validation.__main__ import main
from validation.lines import FAIR, GOOD, POOR, grade, grade_all
from validation.methods import METHODS, Method, Result
from validation.methods._base import kept
from validation.peers import CURVE, Step, curve, curve_figure, search, summarise, table, verdict
from validation.report import ecdf_band, ecdf_difference, look, write_report
from validation.runner import NameUnknown, choose_methods, choose_targets, plan, run_all
from validation.store import Record, Settings, Store, group
from validation.target import Target, Truth

DESIGN = np.array([[1.0, 1.0], [2.0, 0.0]])
DATA = np.array([1.0, -0.6])
NOISE_SD = 0.5
COVARIANCE = np.linalg.inv(np.eye(2) + DESIGN.T @ DESIGN / NOISE_SD**2)
MEAN = COVARIANCE @ DESIGN.T @ DATA / NOISE_SD**2
LOG_EVIDENCE = float(
    dist.MultivariateNormal(jnp.zeros(2), jnp.asarray(DESIGN @ DESIGN.T + NOISE_SD**2 * np.eye(2))).log_prob(DATA)
)


def linear(y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.asarray(DESIGN) @ jnp.asarray(theta), NOISE_SD).to_event(1), obs=y)


def exact_draws(seed, num_draws):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, num_draws)


def truth():
    return Truth(exact_draws(99, 4000), "closed form", MEAN, np.sqrt(np.diag(COVARIANCE)), LOG_EVIDENCE)


OPTIONAL = ("emcee", "nautilus", "dynesty")  # peers that nothing installs


def toy(name="toy/linear", **changes):
    target = Target(name, ("toy",), truth, model=linear, kwargs={"y": jnp.asarray(DATA)}, sites=("theta",))
    return dataclasses.replace(target, **changes)


FIELD = 3.0 * np.random.default_rng(7).standard_normal(45 * 45)


class Exact:
    """A method that knows the answer; `shift` in units of the draws. Notes what it was asked for."""

    def __init__(self, shift=0.0, failing=()):
        self.shift, self.failing, self.calls = shift, list(failing), []

    def __call__(self, target, seed, num_draws, progress, *, budget=None):
        self.calls.append((target.name, seed))
        if target.name in self.failing:
            raise RuntimeError("the simulator broke off\nat line 3")
        return Result(exact_draws(seed, num_draws) + self.shift, 10 * num_draws, 0, 0.1, LOG_EVIDENCE + 0.5, ["hm"])

    def method(self, name="exact"):
        return Method(name, "knows the answer", self, sources=())


SMALL = Settings(num_draws=200)


@pytest.fixture
def no_classifier(monkeypatch):
    """C2ST takes seconds and has tests of its own: here it is 0.5."""
    monkeypatch.setattr("validation.metrics.c2st", lambda draws, reference, seed: 0.5)


# -- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OPTIONAL])
def test_methods_find_a_linear_gaussian_posterior_and_count_what_they_call(name):
    method = METHODS[name]
    simulate = blackbox(lambda theta: theta @ DESIGN.T, shape=(2,), vectorized=True)

    def in_host_code(y=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(simulate(theta), NOISE_SD).to_event(1), obs=y)

    num_draws = 400
    target = toy() if method.needs_gradient else toy(model=in_host_code)
    with jax.numpy_rank_promotion("allow"):
        result = method.run(target, 1, num_draws, False)

    assert result.draws.shape == (num_draws, 2)
    if method.needs_gradient:
        # At least one leapfrog step for each of the draws and of the 4,000 steps of adaptation.
        assert result.num_gradients == result.num_forward_evaluations > 4000 + num_draws
    else:
        assert result.num_gradients == 0
        # The black box counts on its own.
        assert result.num_forward_evaluations == simulate.num_calls
    error = np.abs(result.draws.mean(0) - MEAN) / np.sqrt(np.diag(COVARIANCE))
    ratio = result.draws.std(0, ddof=1) / np.sqrt(np.diag(COVARIANCE))
    if name == "enkg-published":
        assert max(ratio.max(), 1 / ratio.min()) > 1.5  # as its paper has it
        assert result.warnings
    else:
        # Five standard errors of 400 independent draws.
        assert error.max() < 5 / np.sqrt(num_draws)
        assert np.abs(ratio - 1).max() < 5 / np.sqrt(2 * num_draws)
    if result.log_evidence is not None:
        assert abs(result.log_evidence - LOG_EVIDENCE) < 0.3


@pytest.mark.parametrize("name", ["enkg", "enkg-kalman", "smc", "aies"])
def test_methods_take_inverse_problems_and_return_their_latent_vectors(name):
    prior = GaussianPrior(jnp.array([1.0, -2.0]), jnp.array([4.0, 0.25]))
    forward = lambda x: jnp.asarray(DESIGN) @ x  # noqa: E731
    problem = InverseProblem(prior, forward, GaussianLikelihood(jnp.asarray(DATA), NOISE_SD))
    precision = np.diag([1 / 4.0, 1 / 0.25]) + DESIGN.T @ DESIGN / NOISE_SD**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (np.array([1.0 / 4.0, -2.0 / 0.25]) + DESIGN.T @ DATA / NOISE_SD**2)
    num_draws = 400
    with jax.numpy_rank_promotion("allow"):
        result = METHODS[name].run(Target("p", (), truth, problem=lambda: problem), 3, num_draws, False)
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((result.draws.mean(0) - mean) / sd).max() < 5 / np.sqrt(num_draws)
    assert np.abs(result.draws.std(0, ddof=1) / sd - 1).max() < 5 / np.sqrt(2 * num_draws)


def test_a_budget_is_aimed_at():
    with jax.numpy_rank_promotion("allow"):
        spent = [METHODS["aies"].run(toy(), 0, 100, False, budget=b).num_forward_evaluations for b in (10_000, 20_000)]
    assert 9_000 < spent[0] < 12_000
    assert 18_000 < spent[1] < 22_000


def test_an_optional_package_that_is_absent_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "emcee", None)
    with pytest.raises(RuntimeError, match="method 'emcee' needs the package emcee: pip install emcee"):
        METHODS["emcee"].run(toy(), 0, 10, False)


def test_emcee_where_it_is_installed():
    pytest.importorskip("emcee", reason="needs the optional peer emcee")
    num_draws = 400
    result = METHODS["emcee"].run(toy(), 1, num_draws, False)
    error = np.abs(result.draws.mean(0) - MEAN) / np.sqrt(np.diag(COVARIANCE))
    assert error.max() < 5 / np.sqrt(num_draws)
    # One evaluation a walker a step, and one at the start of each.
    assert result.num_forward_evaluations == 200 * num_draws + 100


def test_methods_refuse_what_they_cannot_do():
    problem = toy(model=None, problem=lambda: None)
    assert METHODS["nuts"].refuses(toy(differentiable=False)) == "nuts needs a gradient"
    assert METHODS["nuts"].refuses(problem) == "nuts needs a NumPyro model"
    assert METHODS["nuts"].refuses(toy()) is METHODS["smc"].refuses(problem) is None
    jobs, sentences = plan([problem, toy()], [METHODS["nuts"], METHODS["smc"]], 2)
    assert [(job.method.name, job.seed) for job in jobs] == [("smc", 0), ("smc", 1), *[("nuts", i) for i in (0, 1)],
                                                             *[("smc", i) for i in (0, 1)]]  # fmt: skip
    assert sentences == ["nuts needs a NumPyro model: left out on toy/linear"]


def test_kept_draws_are_whole_steps_far_apart():
    steps = np.arange(10)
    chains = np.stack([100.0 * walker + steps for walker in range(4)])[..., None]
    rows = kept(chains, 8)[:, 0]
    assert rows.tolist() == [0, 100, 200, 300, 9, 109, 209, 309]
    assert len(kept(chains, 7)) == 7
    assert len(kept(chains, 1000)) == 40


# -- runner ------------------------------------------------------------------------------------------------------


def run(store, exact, targets=None, settings=SMALL, seeds=1):
    jobs, _ = plan([toy()] if targets is None else targets, [exact.method()], seeds)
    return run_all(jobs, settings, store, progress=False)


def test_a_second_run_does_nothing_and_a_deleted_record_alone_is_redone(tmp_path, no_classifier):
    store, exact = Store(tmp_path), Exact()
    targets = [toy("toy/a/1"), toy("toy/a/2")]
    assert len(run(store, exact, targets, seeds=2)) == 4
    assert run(store, exact, targets, seeds=2) == []
    assert len(exact.calls) == 4
    (victim,) = tmp_path.glob("runs/toy_a_2--exact--1.json")
    victim.unlink()
    assert [(r.target, r.seed) for r in run(store, exact, targets, seeds=2)] == [("toy/a/2", 1)]
    # A record that was cut short is no record.
    victim.write_text(victim.read_text()[:50])
    assert len(run(store, exact, targets, seeds=2)) == 1
    assert len(exact.calls) == 6


def test_other_settings_are_another_run(tmp_path, no_classifier):
    store, exact = Store(tmp_path), Exact()
    run(store, exact)
    (record,) = run(store, exact, settings=Settings(num_draws=300))
    assert record.num_draws == 300
    assert len(exact.calls) == 2


def test_changed_code_is_another_run_and_changed_judgement_only_judges_again(tmp_path, no_classifier, monkeypatch):
    source = tmp_path / "code.py"
    source.write_text("a = 1")
    store, exact = Store(tmp_path / "out"), Exact()
    method = dataclasses.replace(exact.method(), sources=(str(source),))
    jobs, _ = plan([toy()], [method], 1)
    (first,) = run_all(jobs, SMALL, store, progress=False)
    monkeypatch.setattr(runner, "score_key", lambda target: "another")
    (second,) = run_all(jobs, SMALL, store, progress=False)
    assert len(exact.calls) == 1
    assert second.scored == "another"
    assert second.figures["mean_worst"] == pytest.approx(first.figures["mean_worst"], abs=1e-6)
    assert second.warnings == first.warnings
    source.write_text("a = 2")
    assert len(run_all(jobs, SMALL, store, progress=False)) == 1
    assert len(exact.calls) == 2


def test_a_failure_is_recorded_the_rest_goes_on_and_it_is_tried_again(tmp_path, no_classifier):
    store, exact = Store(tmp_path), Exact(failing=["toy/bad"])
    targets = [toy("toy/bad"), toy("toy/good")]
    bad, good = run(store, exact, targets)
    assert (bad.status, good.status) == ("failed", "done")
    assert bad.message == "RuntimeError: the simulator broke off"
    assert "in __call__" in bad.trace
    assert store.draws(bad) is None
    assert "failed: RuntimeError" in runner.table([bad, good])
    exact.failing.clear()
    assert [r.status for r in run(store, exact, targets)] == ["done"]


def test_draws_that_are_not_finite_score_as_badly_as_can_be(tmp_path):
    (record,) = run(Store(tmp_path), Exact(shift=np.nan))
    assert record.figures["c2st"] == 1
    assert record.figures["mean_worst"] is None
    assert grade(record) is POOR


def test_truths_are_found_once(tmp_path):
    asked = []

    def slow():
        asked.append(1)
        return truth()

    target = toy(truth=slow)
    first, second = Store(tmp_path).truth(target), Store(tmp_path).truth(target)
    assert len(asked) == 1
    for name in ("draws", "mean", "sd"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (second.log_evidence, second.source, second.masses) == (LOG_EVIDENCE, "closed form", None)


def test_figures_of_a_run(tmp_path, no_classifier):
    sd = np.sqrt(np.diag(COVARIANCE))
    (record,) = run(Store(tmp_path), Exact(shift=0.5 * sd), [toy(modes=lambda x: (x[:, 0] > MEAN[0]).astype(int))])
    figures = record.figures
    assert figures["mean_worst"] == pytest.approx(0.5, abs=4 / 200**0.5)
    assert 0.75 < figures["sd_min"] <= figures["sd_max"] < 1.25
    assert figures["log_evidence_error"] == pytest.approx(0.5)
    # A shift of half an sd leaves a normal's half 31 % of the mass, and gives the other 69 %.
    assert figures["mode_error"] == pytest.approx(0.38, abs=0.2)
    assert record.names == ["theta[0]", "theta[1]"]
    assert record.num_forward_evaluations == 2000


def test_where_only_the_simulated_unknowns_are_known(tmp_path):
    """Draws around them with the right spread, judged by closed forms; the page and the table have the figures."""

    class Around:
        def __call__(self, target, seed, num_draws, progress, *, budget=None):
            rng = np.random.default_rng(seed)
            centre = FIELD + rng.standard_normal(FIELD.shape)
            return Result(centre + rng.standard_normal((num_draws, len(FIELD))), 10, 0, 0.1, None, [])

    field = toy(
        "toy/field/1",
        truth=lambda: Truth(FIELD[None], "what was simulated from", simulated_from=FIELD),
        misfit=lambda draws: float(np.mean((draws - FIELD) ** 2)),
    )
    store = Store(tmp_path)
    records = run_all(plan([field], [Method("enkg", "", Around(), sources=())], 2)[0], SMALL, store, progress=False)
    for record in records:
        figures = record.figures
        assert record.status == "done", record.message
        # 2,025 unknowns: sums of squares scatter by sqrt(2 / 2025), of what is here 1, 2 and their ratio.
        assert figures["ssr"] == pytest.approx(1.0, abs=4 * (0.5 / 2000) ** 0.5 + 1 / 200)
        assert figures["chi2"] == pytest.approx(2.0, rel=4 * (2 / 2000) ** 0.5)
        assert figures["l2"] == pytest.approx(len(FIELD) ** 0.5 / np.linalg.norm(FIELD), rel=0.07)
        # A normal of unit spread, off by a unit normal: 1 / sqrt(pi) on average.
        assert figures["crps"] == pytest.approx(np.pi**-0.5, rel=0.07)
        assert figures["c2st"] is figures["mean_worst"] is figures["l2_ratio"] is None
    assert grade_all(records) is POOR  # a chi-square of 2
    head, *rows = runner.table(records).splitlines()
    assert re.search(r"CRPS +SSR +chi\^2", head)
    assert all(re.search(r"0\.5\d+ +(1\.0|0\.9)\d +(2\.|1\.9)", row) for row in rows)
    page = write_report(store).read_text()
    assert "what was simulated from" in page
    assert "Fields: truth, mean, a draw" in page
    assert "&chi;&sup2; 2." in page or "&chi;&sup2; 1.9" in page


def test_runs_side_by_side_are_the_same(tmp_path, no_classifier):
    """Processes look targets up by name, hence a target of the quick suite."""
    from validation.posteriors import targets

    target = targets()["closed_form/linear_gaussian_2"]
    settings = Settings(num_draws=64)
    jobs, _ = plan([target], [METHODS["enkg-kalman"]], 1)
    here, there = Store(tmp_path / "1"), Store(tmp_path / "2")
    run_all(jobs, settings, here, progress=False)
    run_all(jobs, settings, there, progress=False, num_processes=2)
    (a,), (b,) = here.records(), there.records()
    assert (a.status, b.status) == ("done", "done")
    assert a.key == b.key
    np.testing.assert_allclose(here.draws(a), there.draws(b), rtol=1e-5)


# -- names -------------------------------------------------------------------------------------------------------

KNOWN = {
    t.name: t for t in (toy("toy/a/1", suites=("toy", "quick")), toy("toy/a/2"), toy("other/b", suites=("other",)))
}


def test_targets_are_chosen_by_suite_and_pattern():
    def names(*args):
        return [target.name for target in choose_targets(KNOWN, *args)]

    assert names() == ["toy/a/1"]
    assert names(["toy"]) == ["toy/a/1", "toy/a/2"]
    assert names(["toy"], ["*/2"]) == ["toy/a/2"]
    assert names([], ["*b", "toy/a/2"]) == ["toy/a/2", "other/b"]
    assert len(names(["all"])) == 3


def test_wrong_names_are_answered_with_the_closest():
    with pytest.raises(NameUnknown, match="no suite 'quik'; did you mean 'quick'"):
        choose_targets(KNOWN, ["quik"])
    with pytest.raises(NameUnknown, match="no target 'toy/a/3'; did you mean 'toy/a/[12]'"):
        choose_targets(KNOWN, [], ["toy/a/3"])
    with pytest.raises(NameUnknown, match="no method 'enkgg'; did you mean 'enkg'"):
        choose_methods(["enkgg"])
    assert [m.name for m in choose_methods([])] == ["enkg"]
    assert group("sbibm/slcp/3") == group("sbibm/slcp") == "sbibm/slcp"


def test_the_command_line_says_what_is_wrong_and_what_there_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("validation.posteriors.targets", lambda data=None: KNOWN)
    assert main(["run", "--suite", "sbib", "--out", str(tmp_path)]) == 2
    assert "no suite 'sbib'" in (said := capsys.readouterr().err)
    assert "--data DIR" in said
    assert main(["run", "--method", "nots"]) == 2
    assert "did you mean 'nuts'" in capsys.readouterr().err
    assert main(["runn"]) == 2
    assert "did you mean 'run'" in capsys.readouterr().err
    assert main(["run", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*KNOWN, *METHODS, "quick"))
    with pytest.raises(SystemExit):
        main(["run", "--draws", "0"])
    assert "must be a whole number of at least 1; got '0'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_keeps_what_is_finished(tmp_path, no_classifier, capsys, monkeypatch):
    exact = Exact()

    def interrupted(target, *args, **kwargs):
        if target.name == "toy/a/2":
            raise KeyboardInterrupt
        return exact(target, *args, **kwargs)

    monkeypatch.setattr("validation.posteriors.targets", lambda data=None: KNOWN)
    monkeypatch.setitem(METHODS, "enkg", Method("enkg", "stops", interrupted, sources=()))
    command = ["run", "--suite", "toy", "--draws", "200", "--out", str(tmp_path)]
    assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [r.target for r in Store(tmp_path).records()] == ["toy/a/1"]
    assert (tmp_path / "validation.csv").exists()
    monkeypatch.setitem(METHODS, "enkg", Method("enkg", "goes on", exact, sources=()))
    assert main(command) == 0
    assert [r.target for r in Store(tmp_path).records()] == ["toy/a/1", "toy/a/2"]
    assert "2 runs: 1 new, 1 as they were" in capsys.readouterr().out
    assert main(command) == 0
    assert "2 runs: 0 new, 2 as they were" in capsys.readouterr().out


# -- report ------------------------------------------------------------------------------------------------------


def record_with(num_draws=2000, **figures):
    good = {"c2st": 0.505, "mean_worst": 0.03, "mean_floor": 0.05, "sd_min": 0.98, "sd_max": 1.02}
    return Record("t", "enkg", 0, "", {}, status="done", num_draws=num_draws, dim=2, figures=good | figures)


def test_grades():
    assert grade(record_with()) is GOOD
    assert grade(record_with(c2st=0.54)) is FAIR
    assert grade(record_with(c2st=0.54, num_draws=400)) is GOOD  # chance
    assert grade(record_with(mean_worst=0.15)) is FAIR
    assert grade(record_with(mean_worst=0.15, mean_floor=0.2)) is GOOD
    assert grade(record_with(sd_min=0.5)) is grade(record_with(sd_max=1.3)) is grade(record_with(c2st=0.6)) is POOR
    assert grade(record_with(c2st=None, sliced_w2=1.2, sliced_w2_floor=1.0)) is GOOD
    assert grade(record_with(c2st=None, sliced_w2=2.5, sliced_w2_floor=1.0)) is POOR
    assert grade(record_with(sd_min=None)) is POOR


def test_a_task_is_graded_by_its_worst_run_and_a_field_by_the_means():
    assert grade_all([record_with(), record_with(c2st=0.54)]) is FAIR
    fields = [record_with(c2st=None, mean_worst=0.9, l2_ratio=1.01, ssr=ssr) for ssr in (0.85, 1.15)]
    assert grade_all(fields) is GOOD
    assert grade_all(fields[:1]) is FAIR
    assert grade_all([record_with(c2st=None, l2_ratio=1.2, ssr=1.0)]) is POOR
    # Where the exact mean is not known.
    vorticity = [record_with(c2st=None, ssr=ssr, chi2=chi2) for ssr, chi2 in ((0.6, 1.0), (1.0, 1.05), (1.05, 2.0))]
    assert grade_all(vorticity) is GOOD
    assert grade_all([record_with(c2st=None, ssr=1.0, chi2=1.2)]) is FAIR
    assert grade_all([record_with(c2st=None, ssr=0.8, chi2=1.0)]) is POOR


def test_the_ecdf_band_holds_exact_draws_as_often_as_it_says():
    num_draws, num_truth, trials = 300, 1000, 400
    grid, band = ecdf_band(num_draws, num_truth)
    rng = np.random.default_rng(5)

    def inside(shift):
        curve = ecdf_difference(rng.normal(size=num_draws) + shift, rng.normal(size=num_truth), grid)
        return bool((np.abs(curve) <= band).all())

    share = np.mean([inside(0.0) for _ in range(trials)])
    # Three standard errors of the share, and of the band's own simulation.
    assert abs(share - 0.95) < 3 * (0.95 * 0.05 * (1 / trials + 1 / 1000)) ** 0.5
    assert np.mean([inside(0.3) for _ in range(50)]) < 0.2


def test_the_page_has_everything_inside(tmp_path, no_classifier):
    store = Store(tmp_path)
    run(store, Exact(failing=["toy/bad"]), [toy("toy/a/1"), toy("toy/a/2"), toy("toy/bad")])
    # On the page, methods are those of the registry.
    for path in tmp_path.glob("runs/*.json"):
        path.write_text(path.read_text().replace('"exact"', '"enkg"'))
        for file in (path, path.with_suffix(".npz")):
            if file.exists():
                file.rename(file.with_name(file.name.replace("exact", "enkg")))
    page = write_report(store).read_text()
    assert "toy/a" in page
    assert "RuntimeError: the simulator broke off" in page
    assert page.count("data:image/png;base64,") == 3  # costs; pairs and ECDF of the worse of the two
    assert not re.search(r"(src|href)=\"(?!data:)|@import|<script", page)
    assert "closed form" in page


def test_the_page_of_an_empty_store(tmp_path):
    assert "Validation" in write_report(Store(tmp_path)).read_text()


# -- peers -------------------------------------------------------------------------------------------------------


def spending(budget: int, calls: float, failed: int = 0, method: str = "enkg") -> Step:
    return Step("toy", method, budget, calls, 0.9 - 0.00001 * calls, 0.3, 0.2, failed)


def test_a_curve_ends_where_the_method_stops_by_itself():
    """At twice what it spends; what it refuses is no end."""
    asked = []

    def run(budget: int) -> Step:
        asked.append(budget)
        return spending(budget, min(budget, 4_000), failed=int(budget < 2_000))

    steps = curve(run, 100_000)
    assert asked == [1_000, 2_000, 5_000, 10_000]
    assert [s.failed for s in steps] == [1, 0, 0, 0]
    assert [s.budget for s in curve(lambda b: spending(b, b), 20_000)] == [b for b in CURVE if b <= 20_000]


def test_the_curve_is_drawn_without_what_failed():
    steps = [
        spending(1_000, float("nan"), failed=1),
        spending(2_000, 2_000),
        spending(5_000, 4_000),
        spending(2_000, 1_900, method="smc"),
    ]
    figure = curve_figure(steps)
    panels = figure.axes
    assert len(panels) == 3
    lines = {line.get_label(): line.get_xydata() for line in panels[0].get_lines()}
    np.testing.assert_allclose(lines["enkg"], [[2_000, 0.88], [4_000, 0.86]])
    np.testing.assert_allclose(lines["smc"], [[1_900, 0.881]])


def test_methods_of_a_figure_look_different():
    """Method nine has the first one's colour and another marker; in a curve of a few, all colours differ."""
    assert len({tuple(look(i).values()) for i in range(64)}) == 64
    steps = [spending(2_000, 2_000, method=name) for name in METHODS]
    lines = curve_figure(steps).axes[0].get_lines()
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == len(METHODS)
    few = curve_figure([step for step in steps if step.method in ("enkg", "nautilus")]).axes[0].get_lines()
    assert few[0].get_color() != few[1].get_color()


@pytest.mark.parametrize(("name", "package"), [("nautilus", "nautilus-sampler"), ("dynesty", "dynesty")])
def test_nested_samplers_are_optional(monkeypatch, name, package):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(RuntimeError, match=f"method '{name}' needs the package {package}: pip install {package}"):
        METHODS[name].run(toy(), 0, 10, False)


@pytest.mark.parametrize("name", ["nautilus", "dynesty"])
def test_nested_samplers_where_they_are_installed(name):
    pytest.importorskip(name, reason=f"needs the optional peer {name}")
    result = METHODS[name].run(toy(), 1, 200, False)
    assert result.draws.shape[0] == 200
    assert result.num_forward_evaluations > 200


def step(budget, c2st, calls=None):
    return Step("task", "m", budget, budget if calls is None else calls, c2st, 0.1, 0.1, 0)


def test_the_budget_is_doubled_until_the_posterior_is_good():
    steps = search(lambda b: step(b, 0.6 if b < 40_000 else 0.54), 10_000, 10**6)
    assert [s.budget for s in steps] == [10_000, 20_000, 40_000]
    assert verdict(steps).startswith("40,000 calls")
    assert len(search(lambda b: step(b, 0.7), 10_000, 50_000)) == 3
    # It spends no more than 15,000, whatever it may spend.
    assert len(search(lambda b: step(b, 0.7, min(b, 15_000)), 10_000, 10**6)) < 5
    assert not step(1, 0.5)._replace(mean_error=0.3).holds
    assert not step(1, 0.5)._replace(sd_error=0.3).holds
    assert not step(1, float("nan")).holds
    assert "> 40,000" in table([step(40_000, 0.7)])


def test_means_over_observations():
    records = [record_with(c2st=0.5, sd_min=0.7), record_with(c2st=0.56, sd_max=1.5)]
    records[0].num_forward_evaluations, records[1].num_forward_evaluations = 100, 300
    found = summarise(records, 50)
    assert (found.calls, found.failed) == (200, 0)
    assert found.c2st == pytest.approx(0.53)
    assert found.sd_error == pytest.approx(0.4)
    assert not found.holds


# -- the quick suite ---------------------------------------------------------------------------------------------


def test_the_quick_suite_is_right(tmp_path):
    num_draws = 500
    assert main(["run", "--suite", "quick", "--draws", str(num_draws), "--out", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "validation.csv").read_text().splitlines()))
    assert len(rows) >= 4
    for row in rows:
        assert (row["method"], row["status"]) == ("enkg", "done")
        # `mean_floor` is where 19 of 20 sets of exact draws stay: 1.7 of it is left by none in a thousand.
        assert float(row["mean_worst"]) < 1.7 * float(row["mean_floor"]), row
        # Five standard errors for a Gaussian scalar; the shorter tails of the others make theirs smaller.
        assert float(row["sd_min"]) > 1 - 5 / (2 * num_draws) ** 0.5, row
        assert float(row["sd_max"]) < 1 + 5 / (2 * num_draws) ** 0.5, row
        # The accuracy of a classifier that can learn nothing: standard error 0.5 / sqrt(2 n) over n draws of each side.
        assert float(row["c2st"]) < 0.5 + 5 * 0.5 / (2 * num_draws) ** 0.5, row
        assert float(row["sliced_w2"]) < 2.5 * float(row["sliced_w2_floor"]), row
        if row["log_evidence_error"]:
            assert abs(float(row["log_evidence_error"])) < 0.5, row
        assert int(row["forward_evaluations"]) < 60 * num_draws, row
    assert len(list(tmp_path.glob("runs/*.json"))) == len(rows)
    assert (tmp_path / "validation.html").stat().st_size > 10_000
