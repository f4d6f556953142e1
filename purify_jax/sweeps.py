"""Accuracy under exact PGD+EOT as one setting varies: ε, EOT samples, or attack steps."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax import plots
from purify_jax.attacks import eot, exact, pgd
from purify_jax.attacks.suite import Options, is_deterministic
from purify_jax.data import Dataset
from purify_jax.defense import Defense
from purify_jax.evaluation import score, stream_key
from purify_jax.records import Interval, wilson
from purify_jax.types import Array, InputError, image_keys

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


def attacked_accuracy(
    key: Array,
    defense: Defense,
    dataset: Dataset,
    options: Options,
    draws: int = 4,
    gradient=None,
    epsilons: tuple[float, ...] | None = None,
) -> list[Interval]:
    """Accuracy (of the mean probability over fresh draws) under PGD at each ε of ``epsilons``.

    The gradient is the exact one unless another is given. ε is traced, so that a whole curve
    over it compiles once. ``options.steps`` and ``options.eot`` default to 20 and 4.
    """
    images, labels = map(jnp.asarray, dataset.batch(np.arange(len(dataset))))
    keys = image_keys(stream_key(key, "sweep"), np.arange(len(dataset)))
    score_keys = image_keys(stream_key(key, "scoring"), np.arange(len(dataset)))
    samples = 1 if is_deterministic(defense) else options.eot or 4
    steps = options.steps or 20
    chosen = eot(gradient or exact(defense), samples, options.samples_at_once)
    scorer = score(defense, 1 if is_deterministic(defense) else draws)

    def correct(epsilon: Array) -> Array:
        attack = pgd(
            chosen,
            norm=options.norm,
            epsilon=epsilon,  # type: ignore[arg-type]
            step_size=2.5 * epsilon / min(steps, 40),  # type: ignore[arg-type]
            num_steps=steps,
        )
        log_probs = scorer(score_keys, attack(keys, images, labels))
        prediction = jax.nn.logsumexp(log_probs, axis=0).argmax(-1)
        return jnp.sum(prediction == labels)

    run = jax.jit(correct)
    return [wilson(int(run(e)), len(dataset)) for e in epsilons or (options.epsilon,)]


def run(name: str, key: Array, defense: Defense, dataset: Dataset, options: Options) -> Curve:
    """The curve over one setting; InputError for an unknown one."""
    if name not in SWEEPS:
        raise InputError(f"sweep: got {name!r}, expected one of {sorted(SWEEPS)}")
    points = SWEEPS[name]
    if name == "epsilon":
        epsilons = tuple(options.epsilon * factor for factor in points)
        found = attacked_accuracy(key, defense, dataset, options, epsilons=epsilons)
        return Curve(name, list(epsilons), found)
    field = lambda o, p: o._replace(eot=int(p)) if name == "eot" else o._replace(steps=int(p))
    changed = [field(options, point) for point in points]
    found = [attacked_accuracy(key, defense, dataset, o)[0] for o in changed]
    return Curve(name, list(points), found)


def draw(curve: Curve) -> bytes:
    """The curve as a figure (PNG)."""
    bands = {"exact PGD+EOT": [(a.low, a.high) for a in curve.accuracies]}
    lines = {"exact PGD+EOT": [a.value for a in curve.accuracies]}
    return plots.curves(curve.points, lines, curve.name, "accuracy", bands, unit_interval=True)
