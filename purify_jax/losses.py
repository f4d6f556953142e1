"""Losses: denoising score matching to train with, classification losses to train and attack with.

Attack losses take log-probabilities ``[batch, classes]`` and labels ``[batch]`` and return
``[batch]``; an attack ascends them. A softmax only shifts logits by a constant per image, so
margin and DLR of the log-probabilities of a deterministic model equal those of its logits.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from purify_jax import noise
from purify_jax.arrays import per_image
from purify_jax.checks import InputError
from purify_jax.keys import LEVEL, NOISE, PATTERN, draw_each, fold_keys, normal_like, threefry
from purify_jax.pytrees import Partial, as_pytree
from purify_jax.types import Array, Keys, LossFn, ScoreFn

# --- training ---------------------------------------------------------------------------------


def denoising_score_matching(
    score_fn: ScoreFn,
    keys: Keys,
    images: Array,
    sigmas: Array,
    scale: Callable[[Array], Array] = noise.per_sigma,
    perturb: Callable[[Keys, Array], Array] | None = None,
) -> Array:
    """Denoising score matching over noise levels, one loss per image ``[batch]``.

    For x̃ = x + σε, ε ~ N(0, I), σ drawn uniformly from ``sigmas``:
    ``½ σ² ‖ s(x̃, σ) + ε/σ ‖²`` with s(x̃, σ) = scale(σ)·f(x̃) (Vincent 2011, equation 11,
    weighted by σ² as in Song & Ermon 2019, equation 5). f does not see σ: the model is
    noise-unconditional, as published.

    Args:
      score_fn: f, images → same shape.
      keys: ``[batch]``, one per image; image i's level and noise depend on key i alone.
      images: ``[batch, h, w, c]`` in [0, 1].
      sigmas: ``[levels]`` positive noise levels, in units of a pixel's range.
      scale: σ → factor that turns f into a score, see :mod:`purify_jax.noise`.
      perturb: (keys, images) → a further perturbation, added to the Gaussian noise, which f
        learns to undo as well (f is then a denoiser of both, no longer the score of a Gaussian
        smoothing); see :func:`purify_jax.noise.patterns`.
    """
    keys = threefry(keys)
    chex.assert_rank([keys, images, sigmas], [1, 4, 1])
    choose = lambda key: jax.random.randint(key, (), 0, sigmas.shape[0], jnp.int32)
    sigma = sigmas[draw_each(choose, fold_keys(keys, LEVEL))]
    epsilon = normal_like(fold_keys(keys, NOISE), images)
    if perturb is not None:
        epsilon = epsilon + perturb(fold_keys(keys, PATTERN), images) / per_image(sigma, images)
    noisy = images + per_image(sigma, images) * epsilon
    score = score_fn(noisy)
    chex.assert_equal_shape([score, noisy])
    # σ(s + ε/σ) in one factor, so that nothing is divided by a small σ and multiplied back.
    residual = per_image(sigma * scale(sigma), images) * score + epsilon
    return 0.5 * jnp.sum(residual.reshape(images.shape[0], -1) ** 2, axis=-1)


# --- classification ---------------------------------------------------------------------------


def _of_label(log_probs: Array, labels: Array) -> Array:
    chex.assert_rank([log_probs, labels], [2, 1])
    return jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]


def _largest_other(log_probs: Array, labels: Array) -> Array:
    is_label = jax.nn.one_hot(labels, log_probs.shape[-1], dtype=bool)
    return jnp.max(jnp.where(is_label, -jnp.inf, log_probs), axis=-1)


def cross_entropy(log_probs: Array, labels: Array) -> Array:
    """−log p(y), in nats."""
    return -_of_label(log_probs, labels)


def margin(log_probs: Array, labels: Array) -> Array:
    """max_{j≠y} z_j − z_y: positive exactly when the image is misclassified.

    The loss of Carlini & Wagner 2017 (arXiv 1608.04644, f₆) without its floor.

    >>> margin(jnp.array([[2.0, 0.5, -1.0]]), jnp.array([0])).tolist()
    [-1.5]
    """
    return _largest_other(log_probs, labels) - _of_label(log_probs, labels)


def smooth_error(log_probs: Array, labels: Array) -> Array:
    """1 / (1 + exp(−margin)): near 1 for a misclassified image, near 0 for one that is classified safely.

    Its mean over draws approximates the share of misclassified draws, which an attack on a random defense
    maximises. Draws far from the decision boundary hardly contribute, whereas they dominate a mean margin
    or a mean cross-entropy.

    >>> smooth_error(jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]])), jnp.array([0, 0])).round(3).tolist()
    [0.5, 0.10000000149011612]
    """
    return jax.nn.sigmoid(margin(log_probs, labels))


def dlr(log_probs: Array, labels: Array) -> Array:
    """Difference of logits ratio, −(z_y − max_{j≠y} z_j)/(z_π1 − z_π3) (Croce & Hein 2020, eq. 6).

    Invariant to shift and scale of the logits. Raises InputError for fewer than 3 classes: with two
    the quotient is −1 for every image that is classified correctly, whatever its logits.
    """
    _check_classes("dlr", log_probs, 3)
    ordered = jnp.sort(log_probs, axis=-1)
    return margin(log_probs, labels) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def _check_classes(name: str, log_probs: Array, least: int) -> None:
    if log_probs.shape[-1] < least:
        raise InputError(
            f"{name}: got {log_probs.shape[-1]} classes, expected at least {least} (use margin)"
        )


def _targeted_dlr(labels: Array, log_probs: Array, targets: Array) -> Array:
    _check_classes("targeted_dlr", log_probs, 4)
    ordered = jnp.sort(log_probs, axis=-1)
    scale = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12
    return (_of_label(log_probs, targets) - _of_label(log_probs, labels)) / scale


def targeted_dlr(labels: Array) -> LossFn:
    """Targeted DLR, −(z_y − z_t)/(z_π1 − ½(z_π3 + z_π4)) (Croce & Hein 2020, equation 7).

    ``labels`` are the true labels; the returned loss takes the targets in their place. It raises
    InputError for fewer than 4 classes.
    """
    return Partial(_targeted_dlr, labels)


def _negated(loss_fn: LossFn, log_probs: Array, targets: Array) -> Array:
    return -loss_fn(log_probs, targets)


def targeted(loss_fn: LossFn) -> LossFn:
    """Turns an untargeted loss into one that is ascended towards the labels (now targets)."""
    return Partial(_negated, as_pytree(loss_fn))
