"""Detection: does an image look attacked? Statistics, thresholds, curves, and an evading attack.

The score of an attacked image is longer than that of a clean one, and purification lowers its energy
further (Yoon, Hwang & Lee 2021, arXiv 2106.06041, appendix F). A :data:`Statistic` is larger on
attacked images; an image is flagged above a threshold that is fitted on clean images alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from purify_jax import energy, losses
from purify_jax.arrays import dot, l2_norm, per_image
from purify_jax.attacks.gradients import loss_gradient
from purify_jax.checks import InputError, check_at_least, check_number, is_traced
from purify_jax.evaluation.predictions import check_classes, predicted_class
from purify_jax.evaluation.statistics import Interval, wilson
from purify_jax.keys import stream
from purify_jax.purifiers import ADP, Purifier
from purify_jax.pytrees import Partial, Pytree, as_pytree
from purify_jax.types import Array, EnergyFn, Keys, PredictFn, ScoreFn

#: (keys ``[batch]``, images) → one number per image ``[batch]``, larger on attacked images.
Statistic: TypeAlias = Callable[[Keys, Array], Array]


def _score_norm(score_fn: ScoreFn, keys: Keys, images: Array) -> Array:
    return l2_norm(score_fn(images))


def score_norm(score_fn: ScoreFn) -> Statistic:
    """‖s(x)‖₂, the published statistic; deterministic."""
    return Partial(_score_norm, as_pytree(score_fn))


class EnergyDrop(Pytree):
    """E(x) − E(purified), the mean over restarts: how much purification lowers the energy.

    score_fn: the score, whose integral is the difference without an ``energy_fn``.
    purifier: (keys, images) → (purified, info).
    energy_fn: images → energy. Without one (a score network) the difference is the trapezoid rule's, see
      :func:`purify_jax.energy.difference`.
    """

    score_fn: ScoreFn
    purifier: Purifier
    energy_fn: EnergyFn | None = None

    def __call__(self, keys: Keys, images: Array) -> Array:
        purified, _ = self.purifier(keys, images)
        energy_fn = self.energy_fn
        if energy_fn is None:
            drop = lambda end: -energy.difference(self.score_fn, images, end)
        else:
            drop = lambda end: energy_fn(images) - energy_fn(end)
        return jnp.mean(jax.vmap(drop)(purified), axis=0)


# --- thresholds and curves --------------------------------------------------------------------


def fit_threshold(clean: Sequence[float] | np.ndarray, false_positive_rate: float) -> float:
    """The smallest value that at most this share of the clean statistics exceeds.

    Raises InputError for an empty or non-finite calibration set, or a rate outside (0, 1).
    """
    values = _checked(clean, "calibration set")
    check_number("false_positive_rate", false_positive_rate, 0, 1, open_low=True, open_high=True)
    allowed = int(np.floor(false_positive_rate * len(values) + 1e-9))
    return float(np.sort(values)[len(values) - 1 - allowed])


def _checked(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, float).ravel()
    if array.size == 0:
        raise InputError(f"{name}: got no images, expected at least one")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise InputError(f"{name}: {bad} of {array.size} statistics are not finite, expected all")
    return array


def flagged_share(values: Sequence[float] | np.ndarray, threshold: float) -> Interval:
    """Share of values above the threshold, with Wilson's 95% interval: TPR or FPR."""
    array = _checked(values, "statistics")
    _check_threshold(threshold)
    return wilson(int((array > threshold).sum()), array.size)


def roc(clean: np.ndarray, attacked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false-positive rates, true-positive rates) of every threshold, by scikit-learn."""
    from sklearn import metrics

    false_positive, true_positive, _ = metrics.roc_curve(*_labelled(clean, attacked))
    return false_positive, true_positive


def _labelled(clean: np.ndarray, attacked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(1 for an attacked image, its statistic) of all images."""
    clean, attacked = _checked(clean, "clean statistics"), _checked(attacked, "attacked statistics")
    return np.r_[np.zeros(clean.size), np.ones(attacked.size)], np.r_[clean, attacked]


def auroc(clean: np.ndarray, attacked: np.ndarray, confidence: float = 0.95) -> Interval:
    """Area under the ROC curve (scikit-learn) with DeLong's interval on the logit scale.

    DeLong, DeLong & Clarke-Pearson 1988: the variance is that of each clean image's rank among
    the attacked ones over their number, plus the same the other way around. Where the two sets
    do not overlap the variance is 0; the interval is then Wilson's for the smaller set.
    """
    from sklearn import metrics

    truth, values = _labelled(clean, attacked)
    area = float(metrics.roc_auc_score(truth, values))
    clean, attacked = values[truth == 0], values[truth == 1]
    above = attacked[:, None] > clean
    equal = attacked[:, None] == clean
    wins = above + 0.5 * equal
    ddof = lambda n: 1 if n > 1 else 0
    variance = sum(
        wins.mean(axis).var(ddof=ddof(size)) / size
        for axis, size in ((1, attacked.size), (0, clean.size))
    )
    total = clean.size + attacked.size
    if area in (0.0, 1.0) or variance == 0:
        smaller = min(clean.size, attacked.size)
        bound = wilson(round(area * smaller), smaller, confidence)
        return Interval(area, min(bound.low, area), max(bound.high, area), total)
    logit = np.log(area / (1 - area))
    half = scipy.stats.norm.ppf(0.5 + confidence / 2) * np.sqrt(variance) / (area * (1 - area))
    low, high = 1 / (1 + np.exp(-np.array([logit - half, logit + half])))
    return Interval(area, float(low), float(high), total)


# --- the decision rule, and an attack that evades it ---------------------------------------------


def deciding_purifier(
    purifier: ADP, statistic: Statistic, threshold: float, fraction: float
) -> ADP:
    """The published rule: full noise σ where the statistic exceeds the threshold, d·σ elsewhere.

    ``fraction`` is d in [0, 1] (the paper tries 0, 0.1 and 0.2): images that look clean keep more
    of their detail. It is deployed and attacked as it is: gradients are those of the branch that
    an image takes. The statistic must not need keys (``score_norm``).

    Raises InputError for d outside [0, 1] or a purifier whose noise scale is a function already.
    """
    check_at_least("fraction", fraction, 0.0)
    _check_threshold(threshold)
    sigma = purifier.noise_scale
    if fraction > 1:
        raise InputError(f"fraction: got {fraction}, expected 0 to 1")
    if callable(sigma):
        raise InputError("purifier: its noise scale is a function, expected a number")

    return purifier.replace(noise_scale=DecidedNoise(statistic, threshold, sigma, fraction))


class DecidedNoise(Pytree):
    """Images → σ of each image: ``sigma`` above the threshold, ``fraction`` of it elsewhere."""

    statistic: Statistic
    threshold: float
    sigma: float
    fraction: float

    def __call__(self, images: Array) -> Array:
        no_keys = jnp.zeros(images.shape[0], jnp.uint32)
        attacked = self.statistic(no_keys, images) > self.threshold
        return jnp.where(attacked, self.sigma, self.fraction * self.sigma)


def _check_threshold(threshold: float) -> None:
    check_at_least("threshold", threshold, float("-inf"))


class Verdict(NamedTuple):
    """misclassified, detected, and evaded = misclassified without being detected; ``[batch]``."""

    misclassified: Array
    detected: Array
    evaded: Array


class Judge(Pytree):
    """(keys, images, labels) → what the defense and the detector make of the images.

    defense: (keys, images) → log-probabilities.
    statistic: larger on attacked images.
    threshold: above it an image counts as detected.

    Raises InputError for a threshold that is not a number, and for predictions and statistics that
    are not; under jit, where they cannot be looked at, such an image counts as evaded.
    """

    defense: PredictFn
    statistic: Statistic
    threshold: float

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Verdict:
        # The statistic may purify as well: the defense has draws of its own.
        predicted = predicted_class(self.defense(stream(keys, "predict"), images))
        values = self.statistic(keys, images)
        if not is_traced(predicted, values):
            check_classes(predicted, "defense")
            _checked(np.asarray(values), "statistic")
        wrong, detected = predicted != labels, values > self.threshold
        return Verdict(wrong, detected, wrong & ~detected)


class Evading(Pytree):
    """The gradient of an attacker that fools the defense and stays below the threshold.

    Orthogonal gradients of Bryniarski et al. 2021 (arXiv 2106.15023, section 3): where the
    statistic is above the threshold, down the statistic; elsewhere up the margin, without its
    component along the statistic's gradient. Both gradients are exact. The loss that ``PGD``
    keeps the best iterate by is the margin, at most 1, and far below that while detected.

    defense: (keys, images) → log-probabilities; a random one needs ``eot`` around this gradient.
    statistic: larger on attacked images.
    threshold: > 0; below it an image is not detected.

    Raises InputError for a threshold ≤ 0.
    """

    defense: PredictFn
    statistic: Statistic
    threshold: float

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)
        if not (is_traced(self.threshold) or self.threshold > 0):
            raise InputError(f"threshold: got {self.threshold}, expected a positive number")

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        fooling = lambda x: losses.margin(self.defense(stream(keys, "predict"), x), labels)
        up, margin = loss_gradient(fooling, images)
        away, relative = loss_gradient(lambda x: self.statistic(keys, x) / self.threshold, images)
        along = dot(up, away) / jnp.maximum(dot(away, away), 1e-20)
        sideways = up - per_image(along, up) * away
        unit = lambda g: g / per_image(jnp.maximum(l2_norm(g), 1e-20), g)
        # A little below the threshold, so that the last step does not end just above it.
        direction = jnp.where(per_image(relative > 0.98, up), -unit(away), unit(sideways))
        # Iterates below the threshold come first, whatever their margin.
        return direction, jnp.where(relative <= 1, jnp.minimum(margin, 1.0), -1e3 * relative)
