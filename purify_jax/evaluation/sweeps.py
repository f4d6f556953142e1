"""Accuracy under exact PGD+EOT as one setting varies: ε, EOT samples, or attack steps."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from purify_jax.attacks import eot, exact, pgd
from purify_jax.attacks.suites import Options
from purify_jax.checks import check_choice
from purify_jax.data import Dataset
from purify_jax.defense import Defense
from purify_jax.devices.batches import map_images
from purify_jax.evaluation.predictions import check_classes, fresh_draws, predicted_class
from purify_jax.evaluation.statistics import Interval, wilson
from purify_jax.keys import stream, stream_key
from purify_jax.pytrees import pytree
from purify_jax.types import Array, GradientFn, Keys

#: What can be varied, and the points: factors of the options' ε, numbers of samples, of steps.
SWEEPS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "epsilon": (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0),
        "eot": (1, 2, 5, 10, 20),
        "steps": (5, 10, 20, 50, 100),
    }
)


class Curve(NamedTuple):
    """name: what was varied; points: its values; accuracies: mean-of-draws, with intervals."""

    name: str
    points: list[float]
    accuracies: list[Interval]


@pytree
class AttackedAndScored:
    """(keys, images, labels) → the class by the mean probability over fresh draws, under attack."""

    attack: Any
    scorer: Any

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        adversarial = self.attack(keys, images, labels)
        log_probs = self.scorer(stream(keys, "predict"), adversarial)
        return predicted_class(jax.nn.logsumexp(log_probs, axis=0))


def attacked_accuracy(
    key: Array,
    defense: Defense,
    dataset: Dataset,
    options: Options,
    draws: int = 4,
    gradient: GradientFn | None = None,
    epsilons: tuple[float, ...] | None = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> list[Interval]:
    """Accuracy (of the mean probability over fresh draws) under PGD at each ε of ``epsilons``.

    The gradient is the exact one unless another is given. ε is a leaf of the attack, so that a
    whole curve over it compiles once. ``options.steps`` and ``options.eot`` default to 20 and 4.
    """
    images, labels = dataset.batch(np.arange(len(dataset)))
    samples = 4 if options.eot is None else options.eot
    samples = 1 if defense.is_deterministic else samples
    steps = 20 if options.steps is None else options.steps
    chosen = eot(gradient or exact(defense), samples, options.samples_at_once)
    scorer = fresh_draws(defense, 1 if defense.is_deterministic else draws)

    def correct(epsilon: float) -> int:
        attack = pgd(
            chosen,
            norm=options.norm,
            epsilon=epsilon,
            num_steps=steps,
        )
        run = AttackedAndScored(attack=attack, scorer=scorer)
        predicted = map_images(
            run, stream_key(key, "sweep"), images, labels, batch_size=batch_size, mesh=mesh
        )
        check_classes(predicted, f"PGD at epsilon {epsilon:g}")
        return int((predicted == labels).sum())

    return [wilson(correct(float(e)), len(dataset)) for e in epsilons or (options.epsilon,)]


def _changed(options: Options, name: str, value: int) -> Options:
    return options._replace(eot=value) if name == "eot" else options._replace(steps=value)


def sweep(
    name: str,
    key: Array,
    defense: Defense,
    dataset: Dataset,
    options: Options,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> Curve:
    """The curve over one setting; InputError for an unknown one."""
    check_choice("sweep", name, sorted(SWEEPS))
    points = SWEEPS[name]
    where: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh}
    if name == "epsilon":
        epsilons = tuple(options.epsilon * factor for factor in points)
        found = attacked_accuracy(key, defense, dataset, options, epsilons=epsilons, **where)
        return Curve(name, list(epsilons), found)
    changed = [_changed(options, name, int(point)) for point in points]
    found = [attacked_accuracy(key, defense, dataset, o, **where)[0] for o in changed]
    return Curve(name, list(points), found)
