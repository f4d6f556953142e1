"""Numbers are numbers, counts are counts: in functions, settings and training alike."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import purify_jax as pj
from purify_jax import checks, noise, purifiers
from purify_jax.attacks import norms
from purify_jax.attacks.suites import Options, build
from purify_jax.checks import InputError
from purify_jax.corruptions import corrupt
from purify_jax.diffusions.denoisers import LinearSchedule
from purify_jax.evaluation import certification, corruption, detection, statistics
from purify_jax.evaluation.suite_runs import SuiteRun
from purify_jax.purifiers import step_rules
from purify_jax.training import DenoiserSettings, ScoreSettings, Settings

NO_NUMBERS = [None, "abc", "3", True, math.nan, math.inf, -math.inf, [1], 1j, {}, np.bool_(True)]
NO_COUNTS = [*NO_NUMBERS, 1.5, 2.0, 0, -3, np.float32(2)]
SCORE = lambda x: -x


@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
def test_what_is_no_number(value):
    with pytest.raises(InputError, match="^x: got .*, expected a (finite )?number"):
        checks.check_number("x", value)
    with pytest.raises(InputError, match="^x: got "):
        checks.check_at_least("x", value, 0)


@pytest.mark.parametrize("value", NO_COUNTS, ids=str)
def test_what_is_no_count(value):
    with pytest.raises(InputError, match="^x: got .*, expected a whole number >= 1$"):
        checks.check_count("x", value)


@pytest.mark.ci
@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans(), st.binary()))
def test_checks_pass_or_say_one_line(value):
    def passes(check, *more):
        try:
            check("x", value, *more)
        except InputError as error:
            return len(str(error).splitlines()) != 1
        return True

    number = type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)
    assert passes(checks.check_number, 0, 1) == (number and 0 <= value <= 1)
    assert passes(checks.check_count, 0, 5) == (type(value) is int and 0 <= value <= 5)


def test_bounds_are_open_or_closed_as_said():
    checks.check_number("x", 1.0, 0.0, 1.0)
    for value, more in ((0.0, {"open_low": True}), (1.0, {"open_high": True}), (2.0, {})):
        with pytest.raises(InputError, match="x: got"):
            checks.check_number("x", value, 0.0, 1.0, **more)
    for fine in (3, np.int64(3), np.float32(0.5), jnp.asarray(0.5), jnp.bfloat16(0.5)):
        checks.check_number("x", fine)
    jax.jit(lambda x: checks.check_number("x", x) or x)(math.nan)  # traced: cannot be looked at
    with pytest.raises(InputError, match="x: got a number of .* bits|x: got 1000"):
        checks.check_count("x", 10**6000, 1, 5)


@pytest.mark.parametrize("value", [0, 1.5, "3", True, None, math.nan])
def test_a_severity_on_disk_is_a_count(value):
    with pytest.raises(InputError, match=r"got .*expected a whole number"):
        corruption.load_folder("x", "fog", value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: step_rules.Adaptive(min_step=0.2, max_step=0.1), "max_step: got 0.1, .* >= 0.2"),
        (lambda: noise.geometric(0.1, 1.0, 3), "sigmas: got 0.1 to 1.0, expected largest >= smallest"),
        (
            lambda: purifiers.LikelihoodMaximisation(None, sigma_range=(0.3, 0.2)),
            "sigma_range: got 0.2, .* >= 0.3",
        ),
        (lambda: purifiers.GradualNoise(SCORE, [(0.2, 0.0)]), "sigmas: got .*0.0.*, .* positive levels"),
        (lambda: purifiers.Annealed(SCORE, [0.3, "x"]), "sigmas: got 'x'"),
        (lambda: LinearSchedule(beta_min=2.0, beta_max=1.0), "beta_max: got 1.0, .* >= 2"),
        (lambda: certification.ClassCounts(SCORE, math.nan, num_samples=1, samples_at_once=1), "sigma: got nan"),
        (lambda: Settings(num_steps=1, ema_decay=2), "ema_decay: got 2, .* >= 0 and < 1"),
        (lambda: Settings(num_steps=1, schedule="foo"), "schedule: got 'foo', expected one of"),
        (lambda: Settings(num_steps=1, flip="no"), "flip: got 'no'"),
        (lambda: SuiteRun(suite="nope"), "suite: got 'nope'"),
        (lambda: SuiteRun(sweep="nope"), "sweep: got 'nope'"),
        (lambda: build("rand", pj.undefended(SCORE), Options(norm="l3")), "norm: got 'l3'"),
        (
            lambda: corruption.evaluate_corrupted(None, {}, None, names=["fog", "fog"]),
            r"names: got \['fog', 'fog'\], expected some, each of them once",
        ),
        (lambda: corruption.evaluate_corrupted(None, {}, None, names=[]), r"names: got \[\]"),
        (lambda: corrupt(np.zeros((1, 8, 8, 1), np.float32), "fog", 2.5), "severity: got 2.5"),
        (lambda: corrupt(np.zeros((1, 8, 8, 1), np.float32), "fog", 1, seed=-1), "seed: got -1"),
        (lambda: pj.data.load_split("digits", "test").take(2.5), "images: got 2.5"),
        (lambda: statistics.wilson(1, 2, 1.0), "confidence: got 1.0"),
        (lambda: statistics.wilson(2.5, 3), "successes: got 2.5"),
        (lambda: statistics.wilson(3, 2), "successes: got 3, expected a whole number from 0 to 2"),
        (lambda: statistics.wilson(0, -1), "total: got -1"),
        (lambda: detection.fit_threshold([1.0], "0.5"), "false_positive_rate: got '0.5'"),
        (lambda: norms.get([]), r"norm: got \[\], expected one of"),
    ],
)  # fmt: skip
def test_pairs_and_choices(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_seed_that_jax_would_cut_is_refused():
    """JAX reads 32 bits: the runs of seed 1 and of 2³² + 1 would be one run."""
    same = [jax.random.key_data(jax.random.key(seed)).tolist() for seed in (1, 2**32 + 1)]
    assert same[0] == same[1]
    checks.check_seed(checks.MOST_SEED)
    for seed in (2**32 + 1, 2**70, -1, 1.0):
        with pytest.raises(InputError, match="seed: got .*, expected a whole number"):
            checks.check_seed(seed)


@pytest.mark.parametrize(
    ("purification", "message"),
    [
        ({"method": "magic"}, "purification.method: got 'magic'"),
        ({"num_steps": 0}, "purification.num_steps: got 0"),
        ({"noise_scale": -3}, "purification.noise_scale: got -3"),
        ({"stepz": 1}, r"purification: got \['stepz'\]"),
    ],
)
def test_a_purifier_that_could_not_be_made_is_refused_before_training(purification, message):
    """Neither a network nor data are looked at before the settings are."""
    for settings in (ScoreSettings(1, sigmas=[0.1], scale="per_variance"), DenoiserSettings(1)):
        with pytest.raises(InputError, match=message):
            pj.train_score_model(None, None, settings, purification=purification)
