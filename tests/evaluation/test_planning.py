"""A plan adds up, fits its time, and is kept; time that is left is spent."""

import dataclasses

import jax.numpy as jnp
import pytest
from test_auditing import SHAPE, _data, _whole

import purify_jax as pj
from purify_jax.attacks import suites
from purify_jax.attacks.suites import Options
from purify_jax.checks import InputError
from purify_jax.costs import Passes
from purify_jax.defense import attackable
from purify_jax.evaluation import suite_runs
from purify_jax.evaluation.audits import planning

RATES = planning.Rates(Passes(0, 0, 0.001, 0.002), gradient=0.003, compiling=1.0)


def _plan(seconds=None, draws=10, images=100):
    model, options = attackable(_whole, SHAPE), Options(epsilon=0.1)
    return planning.plan("rand", model, _data(images), options, draws, RATES, seconds)


def test_a_plan_adds_up():
    """Two attacks of 100 steps with EOT 20: 2000 gradients each beside what APGD starts and ends with."""
    whole = _plan()
    assert (whole.images, whole.steps, whole.draws, whole.probes) == (100, 100, 10, 48)
    assert whole.given_up == ()
    # Clean and two attacks, 20 draws of the attacker's own and 10 that score.
    assert whole.scoring == pytest.approx(100 * 3 * 30 * 0.001)
    image = jnp.zeros((1, *SHAPE))
    counted = suites.passes("rand", attackable(_whole, SHAPE), Options(epsilon=0.1), image)
    one = sum(RATES.seconds(passes) for passes in counted.values())
    assert whole.attacking == pytest.approx(100 * one + 1.5 * 2 * 1.0, rel=1e-3)
    assert whole.seconds > whole.attacking + whole.scoring


def test_a_plan_fits_its_time():
    whole, before = _plan(), None
    for share in (1.5, 0.5, 0.2, 0.05):
        found = _plan(share * whole.seconds)
        assert found.seconds <= planning.FILLED * share * whole.seconds
        assert found.draws == 10  # scoring is not given up
        if before is not None:
            assert found.steps * found.images < before.steps * before.images
        before = found
    assert before is not None
    assert "attack steps" in str(before)
    with pytest.raises(
        InputError, match=r"minutes: got 0.001, expected at least \d+\.\d: 8 images"
    ):
        _plan(0.06)


def test_no_block_is_begun_that_would_end_too_late():
    run = suite_runs.SuiteRun("rand", draws=2, probe_images=0, seconds=1e-6)
    execution = pj.Execution(batch_size=4, block=4)
    options = Options(epsilon=0.1, steps=1, eot=1)
    found = suite_runs.evaluate_suite(_whole, _data(), options, run, execution=execution)
    assert {record["index"] for record in found.records["defended"]} == {0, 1, 2, 3}
    longer = dataclasses.replace(run, seconds=1e6)
    found = suite_runs.evaluate_suite(_whole, _data(), options, longer, execution=execution)
    assert len({record["index"] for record in found.records["defended"]}) == 12


@pytest.mark.ci
def test_time_that_is_left_is_spent_on_more_images(monkeypatch):
    """A plan of four images for a defense whose images take far less time than was foreseen."""
    plan = planning.Plan(4, 1, 2, 0, 2, 100.0, 60.0, 20.0, ("8 of 12 images",))
    monkeypatch.setattr(planning, "kept", lambda workdir, minutes, make: plan)
    found = pj.audit(_whole, _data(), epsilon=0.1, suite="rand", minutes=10)
    assert found.average.images == 12
    assert found.change.images == 2
    assert ("images attacked", "12; 4 were planned", "") in pj.reporting.audits.rows(found)


def test_a_run_that_continues_keeps_its_plan(tmp_path):
    """Measured times differ: planned anew, the steps would be others, and the records refused."""
    first, second = _plan(), _plan()._replace(steps=7)
    assert planning.kept(tmp_path, 2.0, lambda: first) == first
    assert planning.kept(tmp_path, 2.0, lambda: second) == first
    assert planning.kept(None, 2.0, lambda: second) == second
    with pytest.raises(InputError, match=r"minutes: got 3.0, but .*plan.json was planned for 2.0"):
        planning.kept(tmp_path, 3.0, lambda: second)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="plan.json is damaged"):
        planning.kept(tmp_path, 2.0, lambda: second)
