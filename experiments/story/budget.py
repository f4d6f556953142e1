"""How many images and how long an attack fit into a minute: counted from the programs, so that the same
model gets the same attacks on every machine."""

from typing import NamedTuple

import jax
import numpy as np

import purify_jax as pj
from purify_jax import attacks as atk
from purify_jax.costs import multiplications
from purify_jax.purifiers import is_deterministic

#: Floating-point operations: 15 seconds at 100 GFLOP/s. Starting and compiling take about twice as long.
BUDGET = 1.5e12
#: Answers of the defense to each image, beside the attacks: clean and after three attacks, one each to score
#: and one of the attacker's own; and for the page's pictures.
_ANSWERS = 14


class Size(NamedTuple):
    """images: how many are attacked; steps: of each attack; eot: draws averaged at each step."""

    images: int
    steps: int
    eot: int


#: From the strongest that makes sense in a minute to what even a large model can do.
SIZES = (
    *(Size(64, *s) for s in ((20, 4), (10, 4), (10, 2), (10, 1))),
    *(Size(32, *s) for s in ((10, 2), (10, 1))),
    Size(24, 10, 1),
    *(Size(16, *s) for s in ((10, 1), (6, 1))),
    *(Size(8, *s) for s in ((6, 1), (3, 1))),
)


def size(defense: pj.defense.Defense, test: pj.data.Dataset, budget: float = BUDGET) -> Size:
    """The first of :data:`SIZES` that the budget (in floating-point operations) pays; else the last.

    A defense that draws nothing needs no averages.
    """
    images, labels = test.batch(np.arange(1))
    keys = pj.image_keys(jax.random.key(0), np.arange(1))
    cost = lambda gradient: multiplications(gradient, keys, images, labels)
    blind = cost(atk.blind(defense.logits_fn))
    through = cost(atk.bpda(defense)) + cost(atk.ExactGradient(defense))
    answer = multiplications(defense, keys, images)
    fixed = is_deterministic(defense.purifier)
    for chosen in SIZES:
        if chosen.images > len(test) or (fixed and chosen.eot > 1):
            continue
        each = chosen.steps * (blind + chosen.eot * through) + _ANSWERS * answer
        if chosen.images * each <= budget:
            return chosen
    return SIZES[-1]
