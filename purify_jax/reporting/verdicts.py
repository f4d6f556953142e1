"""What a page concludes, in sentences: counts of images before shares, and which figure to believe."""

from collections.abc import Mapping

from purify_jax.evaluation.statistics import Interval, wilson


def share(interval: Interval) -> str:
    """In per cent, with the interval's ends.

    >>> share(wilson(90, 100))
    '90.0%, 95% interval 82.6% to 94.5%'
    """
    value, low, high = (f"{100 * x:.1f}%" for x in interval[:3])
    return f"{value}, 95% interval {low} to {high}"


def exact_against_flattering(
    exact: int, images: int, flattering: Mapping[str, int], undefended: int
) -> list[str]:
    """The verdict of a defense that was attacked by exact gradients and by weaker attackers.

    Args:
      exact: images that are right under exact gradients, of ``images``.
      flattering: weaker attack → images that it leaves right.
      undefended: images that the bare classifier has right under attack.
    """
    others = ", ".join(f"{name} would have said {right}" for name, right in flattering.items())
    first = f"Exact gradients leave {exact} of {images} attacked images right; {others}."
    lowest = min(flattering, key=lambda name: flattering[name], default="")
    if lowest and flattering[lowest] < exact:
        believed, reason = (
            flattering[lowest],
            f"Believe the lowest figure, that of {lowest}: here the exact gradient is the weaker attack, "
            "a sign that it is masked or noisy",
        )
    else:
        believed, reason = (
            exact,
            "Believe the figure of the exact gradients: the others are of attackers who do not know the "
            "whole defense",
        )
    second = f"{reason}. That is {share(wilson(believed, images))}."
    third = f"Without the purifier {undefended} of {images} stay right."
    return [first, second, third]


def strongest_and_union(
    average: Interval,
    worst: Interval,
    draws: int,
    undefended: Interval | None,
    bpda: tuple[Interval, Interval] | None,
) -> list[str]:
    """The verdict of a suite of attacks.

    Args:
      average, worst: of one answer, and of all ``draws`` answers, under the strongest candidate of each image.
      undefended: the bare classifier's average, if it was attacked.
      bpda: accuracy under BPDA and under the exact gradient on the same images, if both were measured.
    """
    right = round(average.value * average.images)
    first = (
        f"Under the strongest attack found for each image, the defense answers right for {right} of "
        f"{average.images} images"
    )
    if bpda is None:
        first += "."
    else:
        first += (
            f"; BPDA, which pretends that the purifier is not there, would have said "
            f"{bpda[0].value:.0%} where the exact gradient leaves {bpda[1].value:.0%} "
            f"(short attacks, {bpda[0].images} images)."
        )
    second = f"Quote the average of one answer: {share(average)}."
    if draws > 1:
        second += (
            f" An attacker who may try {draws} times per image leaves {share(worst)}: "
            "the defense is random, and some answers are luck."
        )
    sentences = [first, second]
    if undefended is not None:
        sentences.append(f"The classifier without the purifier keeps {share(undefended)}.")
        sentences.append(_gain(average, undefended))
    return sentences


def _gain(defended: Interval, bare: Interval) -> str:
    if defended.low > bare.high:
        return "The purifier helps: the two intervals do not overlap."
    if defended.high < bare.low:
        return "The purifier harms: the two intervals do not overlap."
    return "The two intervals overlap: more images are needed to say whether the purifier helps."
