"""Shares with their intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

from purify_jax.checks import InputError, check_count, check_number


class Interval(NamedTuple):
    """A share with its 95% interval (Wilson) and the number of images behind it."""

    value: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a binomial share (Wilson 1927), by scipy; of none at all, NaN.

    >>> print(wilson(90, 100))
    0.900 [0.826, 0.945]
    """
    check_count("total", total, 0)
    check_count("successes", successes, 0, total)
    check_number("confidence", confidence, 0, 1, open_low=True, open_high=True)
    if total == 0:
        return Interval(float("nan"), 0.0, 1.0, 0)
    interval = scipy.stats.binomtest(int(successes), int(total)).proportion_ci(confidence, "wilson")
    return Interval(successes / total, float(interval.low), float(interval.high), int(total))


class Difference(NamedTuple):
    """A mean difference of two shares on the same images, with its 95% interval (Student's t)."""

    value: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
) -> Difference:
    """The mean of ``first - second`` over images that both measured, and Student's t interval.

    With dᵢ = firstᵢ − secondᵢ the interval is mean(d) ± t · std(d) / √n, n − 1 degrees of freedom: images
    that are hard for both do not widen it, as they do the intervals of two shares by themselves.

    Args:
      first, second: a number per image, for example the share of its draws that were right; the same images in
        the same order.

    Raises InputError for different lengths, fewer than two images, and what is not finite.

    >>> print(paired_difference([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]))
    +0.250 [-0.546, +1.046]
    """
    check_number("confidence", confidence, 0, 1, open_low=True, open_high=True)
    a, b = (np.asarray(values, np.float64) for values in (first, second))
    if a.ndim != 1 or a.shape != b.shape or a.size < 2:
        raise InputError(
            f"second: got shape {b.shape} beside {a.shape}, expected a number for each of the same images, two or more"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("first, second: got what is not finite, expected finite numbers")
    difference = a - b
    mean, count = float(difference.mean()), difference.size
    spread = float(difference.std(ddof=1)) / math.sqrt(count)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, count - 1)) * spread
    return Difference(mean, mean - half, mean + half, count)
