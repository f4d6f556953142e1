"""The health of gradients: whether they vanish, where they do, and whether they are the derivative."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax import losses
from purify_jax.attacks import ExactGradient
from purify_jax.data import Dataset
from purify_jax.defense import Attackable, Defense
from purify_jax.devices.batches import map_images
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.predictions import are_probabilities
from purify_jax.keys import draw_each, normal_like, stream, stream_key
from purify_jax.keys import signs as signs_of
from purify_jax.pytrees import Partial, Pytree
from purify_jax.types import Array, Keys, LogitsFn

#: How far a pixel moves to measure a slope, in units of a pixel's range.
STEP = 1e-3


class Health(Pytree):
    """(keys, images, labels) → what :func:`gradient_health` averages, for each image."""

    defense: Attackable

    def __call__(self, keys: Keys, images: Array, labels: Array) -> dict[str, Array]:
        defense = self.defense
        grads, loss = ExactGradient(defense)(keys, images, labels)
        if isinstance(defense, Defense):
            parts, spare = _health_of_parts(defense, keys, images, labels)
        else:
            parts, spare = {}, normal_like(stream(keys, "projection"), images)
        # Along the gradient's own signs, so that the slope is as large as rounding allows.
        signs = jnp.where(grads == 0, jnp.sign(spare), jnp.sign(grads))
        value = lambda x: losses.cross_entropy(defense(keys, x), labels)
        measured = _slope(value, images, signs)
        claimed = jnp.sum(grads * signs, axis=(1, 2, 3))
        larger = jnp.maximum(jnp.abs(measured), jnp.abs(claimed))
        wrong = jnp.abs(measured - claimed) > 0.5 * larger + 0.02
        return {
            **parts,
            "not_derivative": wrong | parts.get("not_derivative", False),
            "zero": jnp.all(grads == 0, axis=(1, 2, 3)),
            "not_finite": ~jnp.all(jnp.isfinite(grads), axis=(1, 2, 3)),
            "saturated": loss < 1e-6,
        }


def _health_of_parts(
    defense: Defense, keys: Keys, images: Array, labels: Array
) -> tuple[dict[str, Array], Array]:
    """What can be said of purifier and classifier; and a random direction for the images."""
    purified, pull_back = jax.vjp(lambda x: defense.purifier(keys, x)[0], images)
    loss_of = lambda x: jnp.sum(losses.cross_entropy(defense.classify(x), labels))
    at_purified = jax.grad(loss_of)(purified)
    projection = normal_like(stream(keys, "projection"), jnp.moveaxis(purified, 0, 1))
    random = jnp.moveaxis(projection, 1, 0)
    through = pull_back(random)[0]
    # A stopped branch has no part in the gradient's signs. So the purifier alone, along random ones: what
    # comes back from a random cotangent is off by about as much as there should be.
    draw = lambda key: signs_of(key, images.shape[1:], images.dtype)
    signs = draw_each(draw, stream(keys, "direction"))
    project = lambda x: jnp.sum(random * defense.purifier(keys, x)[0], axis=(0, 2, 3, 4))
    error = _slope(project, images, signs) - jnp.sum(through * signs, axis=(1, 2, 3))
    found = {
        "not_derivative": jnp.abs(error) > 0.3 * jnp.sqrt(jnp.sum(through**2, axis=(1, 2, 3))),
        "classifier_zero": jnp.all(at_purified == 0, axis=(0, 2, 3, 4)),
        "purifier_zero": jnp.all(through == 0, axis=(1, 2, 3)),
    }
    return found, random[0]


def _slope(function: Callable[[Array], Array], images: Array, direction: Array) -> Array:
    """The central difference ``[batch]`` along ``direction``."""
    ahead, behind = function(images + STEP * direction), function(images - STEP * direction)
    return (ahead - behind) / (2 * STEP)


def gradient_health(
    key: Array,
    defense: Attackable,
    dataset: Dataset,
    execution: Execution = Execution(),
) -> dict[str, float]:
    """Shares of images (clean, one draw each) whose gradients vanish, and where they do.


    zero, not_finite: of the exact gradient of the cross-entropy.
    saturated: the loss itself is 0 to rounding, so its gradient must vanish.
    margin_zero: of the exact gradient of the margin, which no saturated softmax can take away.
    probabilities: the classifier returns probabilities, where attacks expect logits.
    classifier_zero: the gradient with respect to the purified images is zero.
    purifier_zero: nothing comes back through the purifier from a random cotangent. (These three need the parts.)
    not_derivative: a slope measured by central differences, with the same keys, contradicts the
      gradient: of the loss along the gradient's signs by more than half of the larger of the two, or of
      the purifier's output, in a random projection along random signs, by 0.3 standard deviations.
    """
    images, labels = dataset.batch(np.arange(len(dataset)))
    key = stream_key(key, "health")
    found = map_images(Health(defense), key, images, labels, execution=execution)
    # Programs of their own: what is exactly 0 in another one depends on what is computed beside it.
    margins = Partial(_margin_zero, defense)
    found["margin_zero"] = map_images(margins, key, images, labels, execution=execution)
    if isinstance(defense, Defense):
        outputs = Partial(_are_probabilities, defense.logits_fn)
        found["probabilities"] = map_images(outputs, key, images, execution=execution)
    return {name: float(np.mean(value)) for name, value in found.items()}


def _margin_zero(defense: Attackable, keys: Keys, images: Array, labels: Array) -> Array:
    gradient, _ = ExactGradient(defense, losses.margin)(keys, images, labels)
    return jnp.all(gradient == 0, axis=(1, 2, 3))


def _are_probabilities(logits_fn: LogitsFn, keys: Keys, images: Array) -> Array:
    return are_probabilities(logits_fn(images))
