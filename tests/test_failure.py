"""What failing simulations mean for a run, and what its user reads."""

import re
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import BlackBoxError, EnKG, GaussianPrior, InverseProblem, blackbox, infer
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.evaluation._failure import Tally, raise_host_failure, watch_black_boxes
from enkg_ppl.likelihood import GaussianLikelihood

X = np.random.default_rng(0).permutation(np.linspace(-1, 1, 256))[:, None]
EDGE = np.sort(X[:, 0])[-3]  # three are not below it
BAD = X[:, 0] >= EDGE
LIKELIHOOD = GaussianLikelihood(jnp.zeros(1), 0.5)


def raises(x):
    if np.any(x >= EDGE):
        raise ArithmeticError("no solution")
    return x


def gives_nan(x):
    return np.where(x >= EDGE, np.nan, x)


def leaves(x):
    if np.any(x >= EDGE):
        sys.exit(3)
    return x


def log_likelihood(simulate, x=X):
    return Evaluator(InverseProblem(GaussianPrior.standard(1), simulate, LIKELIHOOD), len(x)).log_likelihood(x)


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize(
    ("fn", "what"),
    [(raises, "raised ArithmeticError: no solution,"), (gives_nan, "returned NaN"), (leaves, r"called sys.exit\(3\),")],
)
def test_a_few_failures_are_put_up_with_and_named_once(fn, what, vectorized):
    """Three of 256: only their own particles have no chance, whatever call they were in."""
    simulate = blackbox(fn, (1,), vectorized=vectorized, name="solver")
    first = X[BAD][0, 0]
    words = (
        rf"^solver failed for 3 of 256 simulations, .* zero likelihood; the first {what} for x=\[{first:.6g}\d?\]: mend"
    )
    with pytest.warns(UserWarning, match=words) as told, watch_black_boxes():
        found = log_likelihood(simulate)
    assert len(told) == 1
    np.testing.assert_array_equal(np.isneginf(found), BAD)
    assert (simulate.num_calls, simulate.num_rejected) == (256, 3)
    assert (simulate.num_repeated > 0) == (vectorized and fn is not gives_nan)


def test_more_than_a_few_end_the_run_early():
    simulate = blackbox(lambda x: x if x < 0.5 else 1 / 0, (1,), name="solver")
    words = (
        r"^solver raised ZeroDivisionError: .* for x=\[.*\], the first of 8 failures in \d+ simulations, where 1% are"
    )
    with pytest.raises(BlackBoxError, match=words), watch_black_boxes():
        log_likelihood(simulate)
    assert simulate.num_calls < 60  # 8 of about 32: 256 simulations may have 7 without being above 1 %


def test_where_all_fail_nobody_is_advised_to_reject():
    """Rejecting every particle leaves nothing: the first three say so, of a simulator and of one in a call."""
    for vectorized in (False, True):
        simulate = blackbox(lambda x: np.full_like(x, np.nan), (1,), vectorized=vectorized, name="solver")
        with (
            pytest.raises(BlackBoxError, match="so far failed: mend the simulator, or the prior$"),
            watch_black_boxes(),
        ):
            log_likelihood(simulate)
        assert simulate.num_calls == (256 if vectorized else 3)


def test_the_few_are_as_many_as_chance_allows():
    """At 1 % a run is seldom ended (binomial draws, each a run of 4,096), at 3 % always."""
    rng = np.random.default_rng(0)

    def ends(share: float) -> bool:
        tally = Tally("solver")
        for _ in range(16):
            tally.num_calls += 256
            tally.num_done += 256
            tally.num_failed += rng.binomial(256, share)
            if tally.too_many:
                return True
        return False

    assert sum(ends(0.005) for _ in range(200)) == 0
    assert sum(ends(0.01) for _ in range(200)) <= 10
    assert sum(ends(0.03) for _ in range(200)) == 200
    single = Tally("solver")
    single.num_calls, single.num_done, single.num_failed = 8, 2, 1
    assert not single.too_many


def typo(x):
    return np.lnspace(x)


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("on_failure", ["tolerate", "reject"])
def test_a_typo_ends_the_run_whatever_the_policy(on_failure, vectorized):
    simulate = blackbox(typo, (1,), on_failure=on_failure, vectorized=vectorized)
    words = "AttributeError: module 'numpy' has no attribute 'lnspace', for .*: this is an error in the simulator's own"
    with pytest.raises(BlackBoxError, match=words) as caught, watch_black_boxes():
        [log_likelihood(simulate) for _ in range(2)]  # the second is not begun
    assert "reject" not in str(caught.value)
    assert isinstance(caught.value.__cause__, AttributeError)
    assert str(caught.value).startswith(
        "typo raised" if on_failure == "tolerate" else "all 256 simulations of typo failed"
    )


def test_an_error_of_the_simulators_code_at_some_parameters_can_be_rejected():
    """`None` from a root finder, for instance."""
    simulate = blackbox(lambda x: x + (None if x[0] >= EDGE else 0), (1,), on_failure="reject")
    with watch_black_boxes():
        found = log_likelihood(simulate)
    np.testing.assert_array_equal(np.isneginf(found), BAD)


def test_all_rejected_says_so_instead_of_what_comes_of_it():
    simulate = blackbox(lambda x: 1 / 0, (1,), on_failure="reject", name="solver")
    words = r"^all 256 simulations of solver failed, and the first raised ZeroDivisionError: division by zero, for x=\["

    @watch_black_boxes()
    def start():
        assert np.all(np.isneginf(log_likelihood(simulate)))
        raise ValueError("the likelihood is zero at all 256 starting particles")

    with pytest.raises(BlackBoxError, match=words):
        start()


def test_outside_of_a_run_every_failure_raises():
    with pytest.raises(Exception, match="raised ArithmeticError: no solution, for x="):
        jax.block_until_ready(jax.vmap(blackbox(raises, (1,)))(X))


def test_interrupting_is_no_failure():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watch_black_boxes():
        log_likelihood(blackbox(interrupted, (1,), on_failure="reject"))


# -- runs of EnKG -----------------------------------------------------------------------------------------------------

Y = jnp.array([0.5, 0.2])
OPTIONS = {"num_particles": 64, "progress_bar": False}


def model_of(simulate):
    def model(y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(simulate(a, b), 0.5).to_event(1), obs=y)

    return model


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_a_run_tells_of_a_few_failures_once(method):
    def solver(a, b):
        if a > 2.2:
            raise RuntimeError("no convergence")
        return np.array([a, b])

    simulate = blackbox(solver, (2,))
    enkg = EnKG(model_of(simulate), num_ensembles=2, ensemble_method=method, **OPTIONS)
    words = (
        r"^EnKG: solver failed for (\d+) of ([\d,]+) simulations, .* first raised RuntimeError: no convergence, for a="
    )
    with pytest.warns(UserWarning, match=words) as told:
        enkg.run(jax.random.key(0), y=Y)
    (message,) = [str(w.message) for w in told]
    failed, calls = re.match(words, message).groups()
    assert int(failed) == simulate.num_rejected > 0
    assert int(calls.replace(",", "")) == simulate.num_calls == enkg.num_forward_evaluations
    assert enkg.diagnostics().warnings == [message.removeprefix("EnKG: ")]
    assert np.all(enkg.get_samples()["a"] <= 2.2)


def test_what_was_said_amid_a_run_is_not_said_again():
    def sentences():
        return [str(w.message) for w in told]

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with watch_black_boxes() as run:
            run.say("solver is random")
            with raise_host_failure():
                pass
            assert sentences() == ["solver is random"]
            run.warnings.append("solver is slow")
    assert sentences() == ["solver is random", "solver is slow"]


def test_rejected_whole_numbers_are_in_no_draw():
    """One in six prior draws fails, and would fit the data best of all if it counted as the result 0."""

    def counts(a, b):
        if a > 1:
            raise RuntimeError("out of range")
        return np.full(2, round(10 * float(a)))

    simulate = blackbox(counts, (2,), dtype=int, on_failure="reject")
    enkg = EnKG(model_of(lambda a, b: simulate(a, b) / 10.0 - b / 1e3), **OPTIONS)
    with pytest.warns(UserWarning, match="simulations failed"):
        enkg.run(jax.random.key(0), y=0.0 * Y)
    assert simulate.num_rejected > 5
    assert np.all(enkg.get_samples()["a"] <= 1)
    assert np.all(np.isfinite(enkg.get_log_likelihood()["y"]))


def test_the_warning_points_at_the_users_line():
    """Not at a file of this package, however deep in it the warning was made, nor at a library between."""
    box = blackbox(lambda x: np.full(1, np.nan) if x[0] > 2.5 else x, (1,))
    problem = InverseProblem(GaussianPrior.standard(1), box, LIKELIHOOD)
    with pytest.warns(UserWarning, match="failed for") as caught:
        infer(jax.random.key(0), problem, num_particles=512, refine=None)
    assert {warning.filename for warning in caught} == {__file__}
