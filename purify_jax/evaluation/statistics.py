"""Shares with their intervals."""

from typing import NamedTuple

import scipy

from purify_jax.checks import check_count, check_number


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
