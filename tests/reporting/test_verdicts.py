"""What pages conclude, in words, for figures that are given."""

from purify_jax.costs import Passes
from purify_jax.evaluation import wilson
from purify_jax.evaluation.protocol import Summary
from purify_jax.reporting import verdicts


def figures(right, images, draws=4):
    average = wilson(right, images)
    return Summary(average, wilson(right // 2, images), {1: average}, {}, draws, Passes())


def test_exact_gradients_beside_what_flatters():
    found = verdicts.exact_against_flattering(171, 256, {"BPDA": 192, "a blind attack": 194}, 34)
    assert found == [
        "Exact gradients leave 171 of 256 attacked images right; BPDA would have said 192, a blind attack would "
        "have said 194.",
        "Quote the exact gradients: the other attackers do not know the whole defense. That is 66.8%, 95% interval 60.8% to "
        "72.3%. These attacks are short: purify-jax evaluate --suite=honest measures the average and the worst of ten draws.",
        "Without the purifier 34 of 256 stay right.",
    ]


def test_the_lowest_figure_is_believed_whoever_found_it():
    _, second, _ = verdicts.exact_against_flattering(90, 100, {"BPDA": 50, "blind": 95}, 5)
    assert second.startswith("Quote the lowest figure, that of BPDA")
    assert "50.0%, 95% interval 40.4% to 59.6%" in second


def test_a_suite_says_its_figure_and_what_the_purifier_gains():
    first, second, third = verdicts.of_suite(
        figures(80, 100), undefended=wilson(5, 100), bpda_and_exact=(wilson(9, 10), wilson(7, 10))
    )
    assert first == (
        "The strongest attack found for each image leaves 80 of 100 images right on average; BPDA would have said 90% where "
        "the exact gradient leaves 70% (short attacks, 10 images)."
    )
    assert second.startswith("Quote the average of one answer: 80.0%, 95% interval 71.1% to 86.7%.")
    assert "All of 4 answers are right for 40.0%" in second
    assert third.endswith("The purifier helps: the two intervals do not overlap.")


def test_a_suite_says_what_it_cannot_say():
    alike = verdicts.of_suite(figures(50, 100, draws=1), undefended=wilson(45, 100), red_flags=2)
    assert "answers are right for" not in alike[1]
    assert "more images are needed" in alike[2]
    assert alike[3].startswith("There are 2 red flags")
    (first, _) = verdicts.of_suite(figures(98, 100), attacked=False)
    assert first == "No attack was run: 98 of 100 clean images are right."
