"""The accuracy to quote: fresh draws judge the candidate that the attacker prefers for each image.

Every attack yields one candidate image; the clean image is a candidate too. The attacker keeps the candidate
that looks strongest in draws of *its own*. Scoring uses other draws: a choice by the scoring draws themselves
would select by chance. The N scoring draws of that candidate then give

- the average: accuracy of one fresh draw;
- the worst of M ≤ N: all of M fresh draws are right, for an attacker who may submit M times.

A union over attacks with one scoring draw each (:func:`~purify_jax.evaluation.records.union_accuracy`) is
random itself and falls with the number of attacks, however weak they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from purify_jax.checks import InputError
from purify_jax.costs import Passes
from purify_jax.evaluation.records import Record, attack_names
from purify_jax.evaluation.statistics import Interval
from purify_jax.evaluation.worst_of import mean_survival

#: The number of this protocol in the header of a record file.
PROTOCOL = 2
#: The attacker judges a candidate by this many times the draws that score it.
OWN_DRAWS_PER_DRAW = 2


def own_draws(draws: int) -> int:
    """How many draws of its own an attacker takes for each candidate; one for a model of one draw."""
    return draws if draws == 1 else OWN_DRAWS_PER_DRAW * draws


def strongest(records: Sequence[Record]) -> list[Record]:
    """Each image's strongest record by the attacker's own draws, in the order of the indices.

    The strongest record has the fewest right draws and, among equals, the highest mean loss. Raises
    InputError without records.
    """
    if not records:
        raise InputError("records: got none, expected at least one")
    best: dict[int, Record] = {}
    for record in records:
        if record.get("skipped"):
            continue
        index = record["index"]
        if index not in best or rank(record) < rank(best[index]):
            best[index] = record
    return [best[index] for index in sorted(best)]


def rank(record: Record) -> tuple[int, float]:
    """Smaller for a candidate that the attacker prefers: fewer right own draws, then a higher loss."""
    return record["own_correct"], -record["own_loss"]


def cost(records: Sequence[Record], attack: str | None = None) -> Passes:
    """Mean passes per image of one attack, or of all with the attacker's own draws.

    The mean is over all images, also where an attack skipped those that had fallen before.
    """
    chosen = [r for r in records if attack is None or r["attack"] == attack]
    images = {r["index"] for r in chosen}
    total = np.sum([r.get("passes", Passes()) for r in chosen] or [Passes()], axis=0)
    return Passes(*(float(part) / max(len(images), 1) for part in total))


class Summary(NamedTuple):
    """What :func:`summary` returns.

    average: accuracy of one draw, the number to quote. all_draws: accuracy where all N draws must be
    right. worst_of: M → accuracy where M ≤ N draws must be right. by: attack → images for which it was
    strongest. draws: N. cost: mean passes per image.
    """

    average: Interval
    all_draws: Interval
    worst_of: dict[int, Interval]
    by: dict[str, int]
    draws: int
    cost: Passes


def summary(records: Sequence[Record]) -> Summary:
    """The average over the N scoring draws of each image's strongest candidate, and the worst of M ≤ N.

    Intervals are 95%, over images. Raises InputError without records.
    """
    kept = strongest(records)
    draws = int(kept[0]["draws"])
    right = np.array([r["correct_draws"] for r in kept])
    curve = {m: mean_survival(right, draws, m) for m in range(1, draws + 1)}
    names = [r["attack"] for r in kept]
    by = {name: names.count(name) for name in attack_names(records)}
    return Summary(curve[1], curve[draws], curve, by, draws, cost(records))
