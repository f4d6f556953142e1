"""APGD-T: Auto-PGD towards each of the likeliest wrong classes."""

from collections.abc import Callable
from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp

from purify_jax import losses
from purify_jax.attacks.auto_pgd import APGD, pick
from purify_jax.attacks.averages import AT_ONCE, EOT, MeanPrediction, check_samples
from purify_jax.attacks.gradients import ExactGradient
from purify_jax.attacks.norms import get
from purify_jax.checks import check_count, check_epsilon
from purify_jax.keys import stream
from purify_jax.pytrees import Pytree, static
from purify_jax.types import Array, Keys, LossFn, PredictFn


class TargetedAPGD(Pytree):
    """APGD-T: Auto-PGD towards each of the ``num_targets`` runner-up classes.

    The targeted DLR loss (Croce & Hein 2020, equation 7) on the classes that follow the label in the clean
    prediction. Of the targets' results the one with the largest margin is kept.

    defense: (keys, images) → log-probabilities.
    epsilon: radius of the ball ≥ 0.
    norm: "linf", "l2" or "l1".
    num_steps: gradient steps towards each target ≥ 1.
    num_targets: ≥ 1; lowered to the number of other classes.
    num_samples: draws ≥ 1 over which gradients and margins are averaged.
    samples_at_once, targets_at_once: draws and targets side by side.
    loss_fn: labels → a loss that takes the targets in place of labels.
    deterministic: the defense draws nothing, so that one misclassified iterate is a success.

    Raises InputError for an unknown norm, ε < 0, zero steps, targets or samples.
    """

    defense: PredictFn
    _: KW_ONLY
    epsilon: float
    norm: str = static(default="linf")
    num_steps: int = static(default=100)
    num_targets: int = static(default=9)
    num_samples: int = static(default=1)
    samples_at_once: int | None = static(default=None)
    targets_at_once: int | None = static(default=None)
    loss_fn: Callable[[Array], LossFn] = static(default=losses.targeted_dlr)
    deterministic: bool = static(default=True)

    most_at_once = AT_ONCE

    def __post_init__(self) -> None:
        self.fill(norm=get(self.norm).name)
        check_epsilon(self.epsilon, self.norm)
        check_count("num_steps", self.num_steps)
        check_count("num_targets", self.num_targets)
        check_samples(self.num_samples, self.samples_at_once)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        samples, at_once = self.num_samples, self.samples_at_once
        # The choice of targets and of the best result needs draws of its own.
        mean = MeanPrediction(self.defense, num_samples=samples, samples_at_once=at_once)
        choose_keys = stream(keys, "choice")
        log_probs = mean(choose_keys, images)
        is_label = jax.nn.one_hot(labels, log_probs.shape[-1], dtype=bool)
        order = jnp.argsort(-jnp.where(is_label, -jnp.inf, log_probs), axis=-1)
        count = min(self.num_targets, log_probs.shape[-1] - 1)

        def towards(target: Array) -> tuple[Array, Array]:
            fooled = lambda k, x: _relabel(self.defense(k, x), labels, target)
            gradient = ExactGradient(self.defense, self.loss_fn(labels))
            attack = APGD(
                EOT(gradient, num_samples=samples, samples_at_once=at_once),
                norm=self.norm,
                epsilon=self.epsilon,
                num_steps=self.num_steps,
                predict=fooled if self.deterministic else None,
            )
            adversarial = attack(keys, images, target)
            return adversarial, losses.margin(mean(choose_keys, adversarial), labels)

        results, margins = jax.lax.map(towards, order.T[:count], batch_size=self.targets_at_once)
        return pick(results, margins)


def _relabel(log_probs: Array, labels: Array, target: Array) -> Array:
    # ``APGD`` calls an image fooled when its prediction is not the label it was given (here the
    # target). What counts is whether it is not the true label.
    right = jnp.argmax(log_probs, axis=-1) == labels
    shown = jnp.where(right, target, (target + 1) % log_probs.shape[-1])
    return jax.nn.one_hot(shown, log_probs.shape[-1])
