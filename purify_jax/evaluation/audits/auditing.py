"""An audit: what somebody's defense is, what a suite leaves of it, and whether the attacks had converged."""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from purify_jax.attacks import norms, suites
from purify_jax.bridges import defense_of
from purify_jax.checks import InputError, check_at_least
from purify_jax.data import Dataset
from purify_jax.defense import Attackable, Defense, Whole, attackable
from purify_jax.devices.execution import Execution
from purify_jax.evaluation import protocol
from purify_jax.evaluation.attacked import Evaluation
from purify_jax.evaluation.audits import planning
from purify_jax.evaluation.audits.planning import Plan
from purify_jax.evaluation.probes import red_flags
from purify_jax.evaluation.probes.examination import examine
from purify_jax.evaluation.probes.findings import Examination
from purify_jax.evaluation.probes.health import gradient_health
from purify_jax.evaluation.statistics import Difference, Interval, paired_difference
from purify_jax.evaluation.suite_runs import SuiteResult, SuiteRun, evaluate_suite
from purify_jax.keys import stream_key

#: The change of the average by the last check that counts as "still falls".
FALLS = 0.02
#: Images on which the defense is examined before the attacks.
LOOKED_AT = 16


class Audit(NamedTuple):
    """What :func:`audit` found.

    suite: records, red flags and probes.
    examination: what the defense is and does, with ``findings`` in words.
    plan: what was run, and its predicted duration.
    gradient: what attacks follow, "exact", "of the margin", "BPDA" or "smoothed", and why.
    change: of the average on some of the images, by an attack with twice the steps; None if it was left out.
    seconds: that all took.
    """

    suite: SuiteResult
    examination: Examination
    plan: Plan
    gradient: tuple[str, str]
    change: Difference | None
    seconds: float

    @property
    def average(self) -> Interval:
        """The share of images that one answer has right under the strongest attack: the figure to quote."""
        return self.suite.summary().average

    def worst_of(self, draws: int) -> Interval:
        """The share of images that ``draws`` answers all have right; InputError for more than were made."""
        found = self.suite.summary().worst_of
        if draws not in found:
            raise InputError(f"draws: got {draws}, expected 1 to {max(found)}")
        return found[draws]

    @property
    def red_flags(self) -> list[red_flags.RedFlag]:
        """Signs that the attacks were too weak."""
        return self.suite.red_flags

    @property
    def converged(self) -> bool:
        """Whether twice the steps left the average where it was, but for 2 points."""
        return self.change is None or self.change.value > -FALLS

    @property
    def only_bounds(self) -> tuple[str, ...]:
        """Why the average is no more than an upper bound of the robust accuracy; empty if nothing says so."""
        reasons = []
        if not self.converged:
            reasons.append(f"with twice the attack steps it still falls by more than {FALLS:.0%}")
        if self.gradient[0] in ("exact", "of the margin") and self.examination.gradient not in (
            "derivative", "unknown",
        ):  # fmt: skip
            wrong = self.examination.wrong
            reasons.append(
                f"the gradient that PyTorch or JAX returns is not the derivative on {wrong:.0%} of the images"
            )
        if self.gradient[0] in ("BPDA", "smoothed"):
            reasons.append(
                f"the gradient that attacks follow is an approximation, {self.gradient[0]}"
            )
        return tuple(reasons)


def audit(
    defense: object,
    dataset: Dataset,
    *,
    norm: str = "linf",
    epsilon: float,
    suite: str = "honest",
    steps: int | None = None,
    draws: int = 10,
    minutes: float | None = None,
    seed: int = 0,
    execution: Execution = Execution(),
) -> Audit:
    """Attacks somebody's defense and says what the number is worth.

    The defense is examined first (:func:`~purify_jax.evaluation.examine`). Where its gradient is zero or
    missing, attacks follow BPDA's if the purifier stands apart, else one estimated from values
    (:class:`~purify_jax.attacks.SPSA`). After the suite some of the images are attacked again with twice the
    steps. If the average still falls, it is an upper bound.

    Args:
      defense: a module of PyTorch, a pair (purifier, classifier), a function or a ``Defense``, see
        :func:`~purify_jax.bridges.defense_of`.
      dataset: labelled images.
      norm, epsilon: the ball, in units of a pixel's range [0, 1].
      suite, steps: which attacks, see :mod:`purify_jax.attacks.suites`, and in place of their number of steps.
      draws: scoring draws of a random defense.
      minutes: for all of it. Steps, then images are given up to fit; by default nothing is. The plan is kept
        in the work directory, so that a run that was killed continues as it was planned.
      seed: of all randomness.
      execution: how it is executed; records are kept in its work directory.

    Raises InputError as :func:`~purify_jax.evaluation.evaluate`, and if the time is too short.
    """
    started = time.monotonic()
    if minutes is not None:
        check_at_least("minutes", minutes, 0.01)
    few = dataset.batch(np.arange(min(LOOKED_AT, len(dataset))))
    seen = examine(defense_of(defense, few[0], dataset.num_classes), *few, seed=seed)
    model = attackable(seen.defense, dataset.image_shape)
    if isinstance(model, Whole) and seen.draws == "none":
        model = model.replace(is_deterministic=True)
    options = suites.Options(norm=norm, epsilon=epsilon, steps=steps)
    key = jax.random.key(seed)
    options = suites.with_classes(options, model, dataset.image_shape)
    options, gradient = _gradient(seen, model, dataset, options, execution)
    run = SuiteRun(suite, draws)
    scored = run.draws_of(model)
    batch = min(execution.batch_size or 32, len(dataset))

    def left() -> float | None:
        return None if minutes is None else 60 * minutes - (time.monotonic() - started)

    def make() -> Plan:
        rates = planning.measured(model, dataset, options, batch)
        return planning.plan(suite, model, dataset, options, scored, rates, left())

    plan = planning.kept(execution.workdir, minutes, make)
    options = dataclasses.replace(options, steps=plan.steps)
    batch = min(batch, plan.images)
    execution = dataclasses.replace(execution, batch_size=batch, block=execution.block or batch)
    if (time_left := left()) is not None:
        # The attacks on the images may take what the plan has for them, and what it has left free.
        share = (plan.attacking + plan.scoring) / plan.seconds
        run = dataclasses.replace(run, seconds=share * time_left, probe_images=plan.probes)
    # Where images fall early, time is left for more of them than the plan has.
    found = evaluate_suite(model, dataset, options, run, seed=seed, execution=execution)
    change = _doubled(key, model, dataset.take(plan.doubled), options, found, suite, execution)
    return Audit(found, seen, plan, gradient, change, time.monotonic() - started)


def _gradient(
    seen: Examination,
    defense: Attackable,
    dataset: Dataset,
    options: suites.Options,
    execution: Execution,
) -> tuple[suites.Options, tuple[str, str]]:
    """The options with the gradient that attacks shall follow, and (its name, the reason)."""
    if seen.gradient not in ("missing", "zero", "not finite"):
        if seen.saturated <= 0.5:
            return options, ("exact", f"it is there ({seen.gradient})")
        reason = (
            f"the softmax is saturated on {seen.saturated:.0%} of the images that were looked at"
        )
        return dataclasses.replace(options, margin=True), ("of the margin", reason)
    reason = f"the exact one is {seen.gradient}"
    if isinstance(defense, Defense):  # BPDA needs that of the classifier
        few = dataset.take(min(LOOKED_AT, len(dataset)))
        inside = Execution(execution.batch_size, execution.mesh, execution.shard_parameters)
        if gradient_health(jax.random.key(0), defense, few, inside)["classifier_zero"] <= 0.5:
            return dataclasses.replace(options, bpda=True), ("BPDA", reason)
    delta = smoothing(options, dataset.image_shape)
    return dataclasses.replace(options, smoothing=delta), ("smoothed", reason)


def smoothing(options: suites.Options, image_shape: Sequence[int]) -> float:
    """δ of SPSA for a ball: its probes ±δ in every pixel are half as far as the attack may go."""
    pixels = float(np.prod(image_shape))
    reach = {"linf": 1.0, "l2": pixels**0.5, "l1": pixels}[norms.get(options.norm).name]
    return 0.5 * options.epsilon / reach


def _doubled(
    key: jax.Array,
    defense: Attackable,
    dataset: Dataset,
    options: suites.Options,
    found: SuiteResult,
    suite: str,
    execution: Execution,
) -> Difference | None:
    """What the attack that was strongest most often changes with twice the steps, on the images of ``dataset``."""
    kept = protocol.strongest(found.records[found.label])
    count = min(len(dataset), len(kept))
    names = [record["attack"] for record in kept if record["attack"] != "clean"]
    steps = options.steps or suites.SUITES[suite].steps
    attacks = suites.build(suite, defense, dataclasses.replace(options, steps=2 * steps))
    if count < 2 or not attacks or execution.shard != (0, 1):
        return None
    name = max(names or attacks, key=names.count)
    draws = kept[0]["draws"]
    again = Evaluation(
        stream_key(key, "doubled"),
        defense,
        {f"{name}, twice the steps": attacks[name]},
        dataset.take(count),
        draws,
        name="records_doubled",
    ).records(execution)
    before = [r for r in found.records[found.label] if r["index"] < count]
    right = lambda records: [r["correct_draws"] / draws for r in protocol.strongest(records)]
    return paired_difference(right([*before, *again]), right(before))
