"""Accuracy under exact PGD+EOT as a setting varies: ε, EOT samples, attack steps, or the last two together."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from purify_jax.attacks import EOT, PGD
from purify_jax.attacks.norms import get
from purify_jax.attacks.suites import Options
from purify_jax.checks import InputError, check_choice, largest_epsilon
from purify_jax.data import Dataset
from purify_jax.defense import Attackable
from purify_jax.devices.batches import map_images
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.predictions import Draws, check_classes, predicted_class
from purify_jax.evaluation.statistics import Difference, Interval, paired_difference, wilson
from purify_jax.keys import stream, stream_key
from purify_jax.pytrees import Pytree
from purify_jax.types import Array, Attack, GradientFn, Keys

#: What can be varied, and the points: factors of the options' ε, numbers of samples, of steps.
SWEEPS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "epsilon": (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0),
        "eot": (1, 2, 5, 10, 20),
        "steps": (5, 10, 20, 50, 100),
    }
)
#: Both at once: attack steps, and EOT samples at each.
GRID = ((10, 40, 160), (1, 4, 16))
#: All that :func:`sweep` knows.
NAMES = (*SWEEPS, "steps_eot")


class Curve(NamedTuple):
    """name: what was varied; points: its values; accuracies: mean-of-draws, with intervals."""

    name: str
    points: list[float]
    accuracies: list[Interval]

    @property
    def varied(self) -> str:
        """What its points are values of."""
        return self.name

    @property
    def lines(self) -> dict[str, list[Interval]]:
        """Label → accuracies, one at each point."""
        return {"exact PGD+EOT": self.accuracies}


class Grid(NamedTuple):
    """Accuracy over attack steps × EOT samples; where it no longer falls, the attack has converged.

    accuracies: [i][j] for ``steps[i]`` and ``samples[j]``, of the mean probability over fresh draws.
    changes: "steps" and "eot" → what the last increase of each changed, the other at its largest, paired by
    image; only what was increased at all.
    """

    steps: list[int]
    samples: list[int]
    accuracies: list[list[Interval]]
    changes: dict[str, Difference]
    name: str = "steps_eot"

    @property
    def points(self) -> list[int]:
        """The attack steps: a line over them for each number of samples."""
        return self.steps

    @property
    def varied(self) -> str:
        """What its points are values of."""
        return "steps"

    @property
    def lines(self) -> dict[str, list[Interval]]:
        """Label → accuracies, one at each point."""
        return {f"EOT {n}": [row[j] for row in self.accuracies] for j, n in enumerate(self.samples)}


class AttackedAndScored(Pytree):
    """(keys, images, labels) → the class by the mean probability over fresh draws, under attack."""

    attack: Attack
    scorer: Draws

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        adversarial = self.attack(keys, images, labels)
        log_probs = self.scorer(stream(keys, "predict"), adversarial)
        return predicted_class(jax.nn.logsumexp(log_probs, axis=0))


def attacked_accuracy(
    key: Array,
    defense: Attackable,
    dataset: Dataset,
    options: Options,
    draws: int = 4,
    gradient: GradientFn | None = None,
    epsilons: tuple[float, ...] | None = None,
    execution: Execution = Execution(),
) -> list[Interval]:
    """Accuracy (of the mean probability over fresh draws) under PGD at each ε of ``epsilons``.

    The gradient is the exact one unless another is given. ε is a leaf of the attack, so that a
    whole curve over it compiles once. ``options.steps`` and ``options.eot`` default to 20 and 4.
    """
    right = functools.partial(_right, key, defense, dataset, options, execution)
    return [
        _share(right(float(epsilon), draws, gradient)) for epsilon in epsilons or (options.epsilon,)
    ]


def _right(
    key: Array,
    defense: Attackable,
    dataset: Dataset,
    options: Options,
    execution: Execution,
    epsilon: float,
    draws: int = 4,
    gradient: GradientFn | None = None,
) -> np.ndarray:
    """Which images are right under PGD, [images], bool."""
    images, labels = dataset.batch(np.arange(len(dataset)))
    samples = 4 if options.eot is None else options.eot
    samples = 1 if defense.is_deterministic else samples
    steps = 20 if options.steps is None else options.steps
    chosen = EOT(
        gradient or options.gradient(options.surrogate(defense)),
        num_samples=samples,
        samples_at_once=options.samples_at_once,
    )
    scorer = Draws(defense, draws=1 if defense.is_deterministic else draws)
    attack = PGD(chosen, norm=options.norm, epsilon=epsilon, num_steps=steps)
    run = AttackedAndScored(attack, scorer)
    predicted = map_images(run, stream_key(key, "sweep"), images, labels, execution=execution)
    check_classes(predicted, f"PGD at epsilon {epsilon:g}")
    return np.asarray(predicted == labels)


def _share(right: np.ndarray) -> Interval:
    return wilson(int(right.sum()), len(right))


def grid(
    key: Array,
    defense: Attackable,
    dataset: Dataset,
    options: Options,
    steps: Sequence[int] = GRID[0],
    samples: Sequence[int] = GRID[1],
    execution: Execution = Execution(),
) -> Grid:
    """Accuracy under exact PGD at ``options.epsilon`` for all pairs of attack steps and EOT samples.

    A defense that draws nothing has one sample, whatever is asked for: averages would change nothing.

    Args:
      steps, samples: increasing, from 1.

    Raises InputError for numbers that do not increase, and for no numbers.
    """
    samples = (1,) if defense.is_deterministic else samples
    for name, values in (("steps", steps), ("samples", samples)):
        if not values or values[0] < 1 or any(np.diff(values) <= 0):
            raise InputError(f"{name}: got {list(values)}, expected increasing numbers from 1")
    pair = lambda n, m: dataclasses.replace(options, steps=n, eot=m)
    right = [
        [_right(key, defense, dataset, pair(n, m), execution, options.epsilon) for m in samples]
        for n in steps
    ]
    changes = {}
    if len(steps) > 1 and len(dataset) > 1:
        changes["steps"] = paired_difference(right[-1][-1], right[-2][-1])
    if len(samples) > 1 and len(dataset) > 1:
        changes["eot"] = paired_difference(right[-1][-1], right[-1][-2])
    accuracies = [[_share(each) for each in row] for row in right]
    return Grid(list(steps), list(samples), accuracies, changes)


def sweep(
    name: str,
    key: Array,
    defense: Attackable,
    dataset: Dataset,
    options: Options,
    execution: Execution = Execution(),
) -> Curve | Grid:
    """The curve over one setting, or the grid over two; InputError for an unknown one.

    ε stops where the ball holds every image.
    """
    check_choice("sweep", name, sorted(NAMES))
    if name == "steps_eot":
        return grid(key, defense, dataset, options, execution=execution)
    accuracy = functools.partial(attacked_accuracy, key, defense, dataset, execution=execution)
    points = SWEEPS[name]
    if name == "epsilon":
        largest = largest_epsilon(get(options.norm).name, dataset.image_shape)
        epsilons = tuple(min(options.epsilon * factor, largest) for factor in points)
        return Curve(name, list(epsilons), accuracy(options, epsilons=epsilons))
    varied = [dataclasses.replace(options, **{name: int(point)}) for point in points]  # type: ignore[arg-type]
    found = [accuracy(each)[0] for each in varied]
    return Curve(name, list(points), found)
