"""Several draws of a random defense: the average, the worst of M, and what N draws say about both.

With k of N draws right on an image whose chance of being right is p, k ~ Binomial(N, p).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from purify_jax.checks import InputError, check_count, check_images, check_labels, check_outputs
from purify_jax.devices.batches import map_images
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.predictions import Draws
from purify_jax.evaluation.statistics import Interval, wilson
from purify_jax.keys import stream_key
from purify_jax.pytrees import Partial
from purify_jax.types import Array, Keys, PredictFn


def correct_draws(
    key: Array,
    defense: PredictFn,
    images: np.ndarray,
    labels: np.ndarray,
    draws: int,
    execution: Execution = Execution(),
) -> np.ndarray:
    """Which of ``draws`` independent draws are right, bool ``[images, draws]``.

    The draws are independent of those of :func:`~purify_jax.evaluation.evaluate` with the
    same key, so images that were chosen by its verdicts are judged anew.

    Raises InputError for bad images or labels.
    """
    check_images(images)
    if len(labels) != len(images) or len(images) == 0:
        raise InputError(f"labels: got {len(labels)} for {len(images)} images, expected one each")
    run = Partial(_correct, Draws(defense, draws=draws))
    first = jnp.asarray(images[:1], jnp.float32)
    shape = jax.eval_shape(Draws(defense, draws=1), jax.random.split(key, 1), first).shape
    check_outputs("defense", shape[1:])
    check_labels(labels, shape[-1])
    found = map_images(
        run,
        stream_key(key, "scoring of saved images"),
        np.asarray(images, np.float32),
        np.asarray(labels, np.int32),
        execution=execution,
        batch_axis=1,
        task="scoring",
    )
    return np.asarray(found).T


def _correct(scorer: Draws, keys: Keys, images: Array, labels: Array) -> Array:
    return jnp.argmax(scorer(keys, images), axis=-1) == labels


def survival(correct: np.ndarray, worst_of: int) -> np.ndarray:
    """Unbiased estimates ``[images]`` of p^M, the chance that M = ``worst_of`` draws are all right.

    C(k, M) / C(N, M) is the share of the M-subsets of the N draws that hold right draws only. Every
    subset is a sample of M independent draws, all right with probability p^M, so the share's mean is
    p^M too. In other words: given k, a random subset without return is all right with this
    (hypergeometric) probability, and k is sufficient, so this is the estimator of least variance
    (Rao-Blackwell, Lehmann-Scheffé). The obvious (k/N)^M is too high for M > 1. M = 1 gives k/N, M = N
    whether all draws are right; more than N draws cannot be estimated without bias.

    Args:
      correct: bool ``[images, N]``.

    Raises InputError unless 1 ≤ M ≤ N.
    """
    correct = _checked(correct)
    return survival_of_counts(correct.sum(axis=1), correct.shape[1], worst_of)


def survival_of_counts(right: np.ndarray, draws: int, worst_of: int) -> np.ndarray:
    """:func:`survival` of images with ``right[i]`` of ``draws`` right draws."""
    check_count("worst_of", worst_of)
    if worst_of > draws:
        raise InputError(f"worst_of: got {worst_of}, expected at most the {draws} draws there are")
    right = np.asarray(right)
    if right.ndim != 1 or right.size == 0 or right.min() < 0 or right.max() > draws:
        raise InputError(f"right: got {right!r}, expected counts from 0 to draws = {draws}")
    # C(k, M) / C(N, M) = Π_j (k − j) / (N − j), without large numbers.
    j = np.arange(worst_of)
    return np.prod(np.maximum(right[:, None] - j, 0) / (draws - j), axis=1)


def worst_of(correct: np.ndarray, draws: int | None = None) -> Interval:
    """Share of images that are right in ``draws`` fresh draws, with its 95% interval.

    All N draws by default: the worst of N. See :func:`survival` for fewer. The interval is over the
    images, of which these are a sample: draws of one image are not independent trials, and N of
    them are not N images. So each image counts once, by its own estimate:

    - mean ± t₀.₉₇₅ · s/√images of the per-image estimates, clipped to [0, 1];
    - Wilson's interval if every estimate is 0 or 1 (one draw, the worst of N, a deterministic
      defense), where it is a share of images; it has a width even if all agree.

    The randomness of the draws is in the estimates' spread. With some ten images, or nearly all
    estimates at one end, the t interval is too short, as everywhere.
    """
    correct = _checked(correct)
    of = correct.shape[1]
    return mean_survival(correct.sum(axis=1), of, of if draws is None else draws)


def mean_survival(right: np.ndarray, draws: int, worst_of: int) -> Interval:
    """:func:`worst_of` ``worst_of`` draws, from the number of right ones of each image."""
    each = survival_of_counts(right, draws, worst_of)
    if np.isin(each, (0.0, 1.0)).all():
        return wilson(int(each.sum()), len(each))
    mean, count = float(each.mean()), len(each)
    # With a single image nothing is known of the spread.
    error = each.std(ddof=1) / np.sqrt(count) if count > 1 else np.inf
    half = float(scipy.stats.t.ppf(0.975, max(count - 1, 1)) * error)
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0), count)


def average(correct: np.ndarray) -> Interval:
    """Accuracy of one draw, averaged over all of them: :func:`worst_of` one draw."""
    return worst_of(correct, 1)


def worst_of_curve(correct: np.ndarray, counts: Sequence[int] | None = None) -> dict[int, Interval]:
    """M → :func:`worst_of` M draws; every M from 1 to N by default."""
    counts = range(1, _checked(correct).shape[1] + 1) if counts is None else counts
    return {int(m): worst_of(correct, int(m)) for m in counts}


def _checked(correct: np.ndarray) -> np.ndarray:
    correct = np.asarray(correct)
    if correct.ndim != 2 or 0 in correct.shape:
        raise InputError(f"correct: got shape {correct.shape}, expected [images, draws]")
    if correct.dtype != bool:
        raise InputError(f"correct: got dtype {correct.dtype}, expected bool")
    return correct
