"""What an evaluation will cost, and the largest one that fits into a given time.

The time of a pass is measured on the defense itself; how many passes an attack makes is counted in its
program (:mod:`purify_jax.costs`). Images that fall early are not attacked again, which takes less; compiling is a
guess, which may take more.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax import costs
from purify_jax.atomic import write_atomically
from purify_jax.attacks import suites
from purify_jax.checks import InputError
from purify_jax.costs import Passes
from purify_jax.data import Dataset
from purify_jax.defense import Attackable, Defense, undefended
from purify_jax.evaluation.protocol import own_draws
from purify_jax.keys import image_keys
from purify_jax.pytrees import jit

#: Of the time that is given, the share that a plan fills; the rest is for what cannot be foreseen.
FILLED = 0.75
#: Most images of the last check, which attacks them again with twice the steps.
DOUBLED = 16
#: Seconds after which a measurement is not repeated.
SLOW = 3.0
#: Compiling an attack takes about so many times as long as its gradient.
PROGRAMS = 1.5
#: What a plan gives up, in this order: (share of the suite's steps, most images, images of the probes).
SMALLER = (
    (1, None, 48), (1, None, 16), (1 / 2, None, 16), (1 / 4, None, 16), (1 / 4, 128, 16), (1 / 4, 64, 16),
    (1 / 8, 64, 0), (1 / 8, 32, 0), (1 / 16, 32, 0), (1 / 16, 16, 0), (1 / 32, 16, 0), (1 / 64, 8, 0),
)  # fmt: skip


class Rates(NamedTuple):
    """Measured seconds for one image.

    passes: of each kind of pass.
    gradient: of one gradient that attacks follow, at one draw.
    compiling: of compiling such a gradient, for the whole batch.
    """

    passes: Passes
    gradient: float
    compiling: float

    def seconds(self, passes: Passes) -> float:
        """How long these passes take."""
        return float(np.dot(self.passes, passes))


class Plan(NamedTuple):
    """What will be run.

    images, steps, draws: how many images, attack steps and scoring draws. probes: images of the red flags'
    short attacks; doubled: images that are attacked again with twice the steps.
    seconds: predicted for all. attacking, scoring: the parts of it for the suite's attacks with
    what they compile, and for its scoring.
    given_up: what was given up to fit into the time.
    """

    images: int
    steps: int
    draws: int
    probes: int
    doubled: int
    seconds: float
    attacking: float
    scoring: float
    given_up: tuple[str, ...]

    def __str__(self) -> str:
        text = (
            f"{self.images} images, {self.steps} attack steps, {self.draws} scoring draws: about "
            f"{self.seconds / 60:.1f} minutes, {self.scoring / 60:.1f} of them for scoring"
        )
        return f"{text}; given up: {', '.join(self.given_up)}" if self.given_up else text


def kept(workdir: str | Path | None, minutes: float | None, make: Callable[[], Plan]) -> Plan:
    """The plan of a work directory, made once: measured times differ, and a run that continues must not.

    Raises InputError for a directory that was planned for other ``minutes``, and for a damaged file.
    """
    if workdir is None:
        return make()
    path = Path(workdir, "plan.json")
    if not path.exists():
        made = make()
        write_atomically(path, json.dumps({"minutes": minutes, **made._asdict()}, indent=2) + "\n")
        return made
    try:
        found = dict(json.loads(path.read_text()))
        before, found["given_up"] = found.pop("minutes"), tuple(found["given_up"])
        plan = Plan(**found)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"workdir: {path} is damaged ({error}), expected a plan") from error
    if before != minutes:
        raise InputError(
            f"minutes: got {minutes}, but {path} was planned for {before}, expected the same or another "
            "work directory"
        )
    return plan


def measured(defense: Attackable, dataset: Dataset, options: suites.Options, batch: int) -> Rates:
    """Times passes of a defense, and of its bare classifier where it has one, on a batch of its images.

    defense: what will be attacked. dataset: of which the first images are used, repeated to fill a batch.
    """
    images, labels = dataset.batch(np.resize(np.arange(len(dataset)), batch))
    forward, backward, gradient, compiling = _timed(defense, options, images, labels)
    whole = Passes(0, 0, forward, backward)
    if not isinstance(defense, Defense):
        return Rates(whole, gradient, compiling)
    each = costs.count_prediction(defense, jnp.asarray(images[:1]))
    if not each.purifier_forward:
        return Rates(whole, gradient, compiling)
    bare = _timed(undefended(defense.logits_fn), suites.Options(), images, labels)[:2]
    # A prediction passes the classifier once for every restart.
    left = lambda own, of_classifier: max(own - each.classifier_forward * of_classifier, 0.0)
    passes = Passes(left(forward, bare[0]), left(backward, bare[1]), *bare)
    return Rates(passes, gradient, compiling)


def _timed(
    defense: Attackable, options: suites.Options, images: np.ndarray, labels: np.ndarray
) -> tuple[float, float, float, float]:
    """Seconds for an image: of a forward pass, of a backward pass beside it, of a gradient; of compiling it."""
    keys = image_keys(jax.random.key(0), np.arange(len(images)))
    given = (keys, jnp.asarray(images), jnp.asarray(labels))
    count = len(images)
    forward, _ = _best_of(lambda: jit(defense)(*given[:2]))
    if options.smoothing is not None:
        # An estimate from values is of forward passes alone, and they are counted as such. One image is enough.
        one = tuple(each[:1] for each in given)
        gradient, first = _best_of(lambda: jit(options.gradient(defense))(*one))
        return forward / count, 0.0, gradient, max(first - gradient, 0.0)
    gradient, first = _best_of(lambda: jit(options.gradient(defense))(*given))
    backward = max(gradient - forward, 0.0)
    return forward / count, backward / count, gradient / count, max(first - gradient, 0.0)


def _best_of(run: Callable[[], object], times: int = 3) -> tuple[float, float]:
    """(the shortest of the later runs, the first run, which compiles); one later run if it is slow."""
    taken: list[float] = []
    for _ in range(times + 1):
        start = time.monotonic()
        jax.block_until_ready(run())
        taken.append(time.monotonic() - start)
        if sum(taken[1:]) > SLOW:
            break
    return min(taken[1:]), taken[0]


def plan(
    suite: str,
    defense: Attackable,
    dataset: Dataset,
    options: suites.Options,
    draws: int,
    rates: Rates,
    seconds: float | None = None,
) -> Plan:
    """The largest evaluation that fits into ``seconds``, or the whole one with its predicted duration.

    Scoring comes first: no draw is given up. Then attack steps are halved, then images, see :data:`SMALLER`.
    The last check, which doubles the steps for some of the images, is part of the time.

    Raises InputError if even the smallest one does not fit.
    """
    image = jnp.asarray(dataset.batch(np.arange(1))[0])
    judging = costs.count_prediction(defense, image).times(own_draws(draws) + draws)
    full = suites.SUITES[suite].steps if options.steps is None else options.steps
    attacks = suites.build(suite, defense, options)
    scoring = rates.seconds(judging) * (len(attacks) + 1)

    def attacking(steps: int) -> np.ndarray:
        found = suites.passes(suite, defense, dataclasses.replace(options, steps=steps), image)
        return np.array([rates.seconds(passes) for passes in found.values()] or [0.0])

    # Passes are linear in the steps but for rounding, so two counts are enough.
    fewer = max(full // 8, 1)
    high = attacking(full)
    slope = 0.0 if seconds is None else (high - attacking(fewer)) / max(full - fewer, 1)
    samples = 1 if defense.is_deterministic else 4
    for share, most, probes in SMALLER:
        steps, images = max(int(full * share), 1), min(len(dataset), most or len(dataset))
        doubled, probes = min(DOUBLED, images), min(probes, images)
        one = high + slope * (steps - full)
        # With the shared keys, and the short attacks of the probes (red_flags.probe).
        others = images * steps * rates.gradient + probes * 240 * samples * rates.gradient
        again = doubled * (2 * one.max() + scoring)
        compiling = rates.compiling * (PROGRAMS * len(attacks) + 3 + (6 if probes else 0))
        needed = compiling + images * (one.sum() + scoring) + others + again
        if seconds is None or needed <= FILLED * seconds:
            first = images * one.sum() + PROGRAMS * len(attacks) * rates.compiling
            given_up = _given_up((full, steps), (len(dataset), images))
            times = float(needed), float(first), images * scoring
            return Plan(images, steps, draws, probes, doubled, *times, given_up)
    given = 0.0 if seconds is None else seconds / 60
    raise InputError(
        f"minutes: got {given:g}, expected at least {needed / FILLED / 60:.1f}: {images} images with "
        f"{steps} attack steps take {needed / 60:.1f} minutes"
    )


def _given_up(steps: tuple[int, int], images: tuple[int, int]) -> tuple[str, ...]:
    both = (("attack steps", *steps), ("images", *images))
    return tuple(f"{full - left} of {full} {what}" for what, full, left in both if left < full)
