"""What a page concludes, in sentences: counts of images before shares, and which figure to believe."""

from collections.abc import Mapping

from purify_jax.evaluation.protocol import Summary
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
            f"Quote the lowest figure, that of {lowest}: here the exact gradient is the weaker attack, a sign that "
            "it is masked or noisy",
        )
    else:
        believed, reason = (
            exact,
            "Quote the exact gradients: the other attackers do not know the whole defense",
        )
    second = (
        f"{reason}. That is {share(wilson(believed, images))}. These attacks are short: "
        "purify-jax evaluate --suite=honest measures the average and the worst of ten draws."
    )
    third = f"Without the purifier {undefended} of {images} stay right."
    return [first, second, third]


def of_suite(
    found: Summary,
    *,
    attacked: bool = True,
    undefended: Interval | None = None,
    bpda_and_exact: tuple[Interval, Interval] | None = None,
    red_flags: int = 0,
) -> list[str]:
    """The verdict of a suite of attacks.

    Args:
      found: the summary of the model that was attacked.
      attacked: whether there was any attack, beside the clean images.
      undefended: the bare classifier's average, if it was attacked beside a defense.
      bpda_and_exact: short attacks with either gradient on the same images, if they were run.
      red_flags: how many were raised.
    """
    average = found.average
    right = f"{average.value * average.images:.0f} of {average.images}"
    if attacked:
        mean = " on average" if found.draws > 1 else ""
        first = f"The strongest attack found for each image leaves {right} images right{mean}"
    else:
        first = f"No attack was run: {right} clean images are right"
    if bpda_and_exact is not None:
        bpda, exact = bpda_and_exact
        first += (
            f"; BPDA would have said {bpda.value:.0%} where the exact gradient leaves {exact.value:.0%} "
            f"(short attacks, {exact.images} images)"
        )
    second = f"Quote the average of one answer: {share(average)}."
    if found.draws > 1:
        second += f" All of {found.draws} answers are right for {share(found.all_draws)}."
    sentences = [f"{first}.", second]
    if undefended is not None:
        without = f"The classifier without the purifier keeps {share(undefended)}."
        sentences.append(f"{without} {_gain(average, undefended)}")
    if red_flags:
        flags = "is a red flag" if red_flags == 1 else f"are {red_flags} red flags"
        sentences.append(f"There {flags}: the attacks were too weak, the true figure may be lower.")
    return sentences


def _gain(defended: Interval, bare: Interval) -> str:
    if defended.low > bare.high:
        return "The purifier helps: the two intervals do not overlap."
    if defended.high < bare.low:
        return "The purifier harms: the two intervals do not overlap."
    return "The two intervals overlap: more images are needed to say whether the purifier helps."
