"""APGD-T: Auto-PGD towards each of the likeliest wrong classes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purify_jax import losses
from purify_jax.attacks.auto_pgd import apgd, check_ball, pick
from purify_jax.attacks.averages import AT_ONCE, average_draws, eot
from purify_jax.attacks.gradients import exact
from purify_jax.checks import check_count
from purify_jax.keys import stream
from purify_jax.pytrees import pytree, static
from purify_jax.types import Array, Attack, Keys, LossFn, PredictFn


@pytree
class TargetedAPGD:
    """See :func:`apgd_targeted`."""

    defense: Any
    epsilon: float
    norm: str = static()
    num_steps: int = static()
    num_targets: int = static()
    num_samples: int = static()
    samples_at_once: int | None = static()
    targets_at_once: int | None = static()
    loss_fn: Callable[[Array], LossFn] = static()
    deterministic: bool = static()

    most_at_once = AT_ONCE

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        # The choice of targets and of the best result needs draws of its own.
        mean = average_draws(self.defense, self.num_samples, self.samples_at_once)
        choose_keys = stream(keys, "choice")
        log_probs = mean(choose_keys, images)
        is_label = jax.nn.one_hot(labels, log_probs.shape[-1], dtype=bool)
        order = jnp.argsort(-jnp.where(is_label, -jnp.inf, log_probs), axis=-1)
        count = min(self.num_targets, log_probs.shape[-1] - 1)

        def towards(target: Array) -> tuple[Array, Array]:
            loss_fn = self.loss_fn(labels)
            gradient = eot(exact(self.defense, loss_fn), self.num_samples, self.samples_at_once)
            fooled = None
            if self.deterministic:
                fooled = lambda k, x: _relabel(self.defense(k, x), labels, target)
            run = apgd(
                gradient,
                norm=self.norm,
                epsilon=self.epsilon,
                num_steps=self.num_steps,
                predict=fooled,
            )
            adversarial = run(keys, images, target)
            return adversarial, losses.margin(mean(choose_keys, adversarial), labels)

        results, margins = jax.lax.map(towards, order.T[:count], batch_size=self.targets_at_once)
        return pick(results, margins)


def apgd_targeted(
    defense: PredictFn,
    *,
    norm: str = "linf",
    epsilon: float,
    num_steps: int = 100,
    num_targets: int = 9,
    num_samples: int = 1,
    samples_at_once: int | None = None,
    targets_at_once: int | None = None,
    loss_fn: Callable[[Array], LossFn] = losses.targeted_dlr,
    deterministic: bool = True,
) -> Attack:
    """APGD-T: Auto-PGD towards each of the ``num_targets`` runner-up classes, side by side.

    The targeted DLR loss (Croce & Hein 2020, equation 7) on the classes that follow the label in
    the clean prediction. Of the targets' results the one with the largest margin is kept.
    ``num_targets`` is lowered to the number of other classes.
    """
    check_ball(norm, epsilon)
    check_count("num_steps", num_steps)
    check_count("num_targets", num_targets)
    check_count("num_samples", num_samples)
    return TargetedAPGD(
        defense=defense,
        epsilon=epsilon,
        norm=norm,
        num_steps=num_steps,
        num_targets=num_targets,
        num_samples=num_samples,
        samples_at_once=samples_at_once,
        targets_at_once=targets_at_once,
        loss_fn=loss_fn,
        deterministic=deterministic,
    )


def _relabel(log_probs: Array, labels: Array, target: Array) -> Array:
    # ``apgd`` calls an image fooled when its prediction is not the label it was given (here the
    # target); what counts is whether it is not the true label.
    right = jnp.argmax(log_probs, axis=-1) == labels
    shown = jnp.where(right, target, (target + 1) % log_probs.shape[-1])
    return jax.nn.one_hot(shown, log_probs.shape[-1])
