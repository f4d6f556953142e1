"""Suites: the attacks that belong together, built for one defense.

- clean: no attack at all, accuracy on many images
- standard: AutoAttack's for deterministic models without FAB-T, APGD-CE, APGD-T, Square
- rand: AutoAttack's for randomised defenses, APGD-CE and APGD-DLR with EOT
- paper: what the purification paper reports, blind, BPDA+EOT, joint (score), joint (full), SPSA
- honest: what specialists ask for, transfer, exact momentum PGD with two losses, Square; each image's
  strongest candidate counts, see purify_jax/evaluation/protocol.py
- exhaustive: ``honest`` up to 0.2, ten times the backward passes, exact PGD+EOT, APGD-CE and APGD-CW
  with EOT, transfer, Square
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from purify_jax import costs, losses
from purify_jax.attacks.auto_pgd import APGD
from purify_jax.attacks.averages import EOT
from purify_jax.attacks.gradients import SPSA, ExactGradient, JointFull, JointScore, blind, bpda
from purify_jax.attacks.momentum import MomentumPGD
from purify_jax.attacks.norms import get
from purify_jax.attacks.projected_gradient import PGD
from purify_jax.attacks.square_search import Square
from purify_jax.attacks.targeted import TargetedAPGD
from purify_jax.checks import check_at_least, check_choice, check_count, check_epsilon
from purify_jax.defense import Attackable, Defense
from purify_jax.keys import image_keys
from purify_jax.purifiers import score_of
from purify_jax.types import Array, Attack, GradientFn, LossFn, PredictFn, ScoreFn

Made = TypeVar("Made")
#: Values of the loss for each gradient of ``Options.smoothing``.
QUERIES = 32


@dataclass(frozen=True)
class Options:
    """What the attacks of a suite have in common.

    norm, epsilon: the ball.
    steps, eot: in place of the suite's own numbers of steps and of EOT samples.
    samples_at_once: EOT samples side by side. By default at most four, fewer where memory asks; a number
      that is given is kept.
    surrogate_restarts: of the purifier in the surrogate that the attacks optimise on, by default all of the
      defense's. One restart is a draw of the same thing at a fraction of the cost. Scoring uses the whole
      defense in any case.
    bpda: in place of the exact gradient that of :func:`~purify_jax.attacks.bpda`, for a purifier that passes
      none. It needs the parts of a defense.
    margin: the margin in place of the cross-entropy, whose gradient vanishes where a softmax is saturated.
    smoothing: δ > 0 of :class:`~purify_jax.attacks.SPSA`, whose gradient then takes the place of the exact one:
      for a defense whose gradient is missing or zero almost everywhere. By default the exact gradient.
    num_classes: of the defense. Attacks whose loss needs more are left out; None for enough
      (:func:`with_classes` finds out).

    Raises InputError for an unknown norm, ε < 0, counts below 1 and δ ≤ 0.
    """

    norm: str = "linf"
    epsilon: float = 8 / 255
    steps: int | None = None
    eot: int | None = None
    samples_at_once: int | None = None
    surrogate_restarts: int | None = None
    bpda: bool = False
    margin: bool = False
    smoothing: float | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon, get(self.norm).name)
        for name in ("steps", "eot", "samples_at_once", "surrogate_restarts"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.smoothing is not None:
            check_at_least("smoothing", self.smoothing, 1e-12)

    @property
    def ball(self) -> dict[str, Any]:
        """The keywords of an attack that say how far it may go."""
        return {"norm": self.norm, "epsilon": self.epsilon}

    def surrogate(self, defense: Attackable) -> Attackable:
        """The defense that attacks optimise on."""
        restarts = self.surrogate_restarts
        return defense if restarts is None else defense.with_restarts(restarts)

    def gradient(self, defense: PredictFn, loss_fn: LossFn = losses.cross_entropy) -> GradientFn:
        """The exact gradient of a defense's loss, or what ``bpda`` or ``smoothing`` puts in its place."""
        loss_fn = losses.margin if self.margin and loss_fn is losses.cross_entropy else loss_fn
        if self.bpda and isinstance(defense, Defense):
            return bpda(defense, loss_fn)
        if self.smoothing is None:
            return ExactGradient(defense, loss_fn)
        return SPSA(defense, loss_fn, delta=self.smoothing, num_queries=QUERIES)


#: An attack of a suite, or why a defense cannot be attacked by it.
Possible: TypeAlias = Attack | str


class Suite(NamedTuple):
    """build: (defense, options, steps) → attack by name. drop_fallen: later attacks skip fallen images. steps: of its
    attacks, where the options name no others."""

    build: Callable[[Attackable, Options, int], dict[str, Possible]]
    drop_fallen: bool
    steps: int


#: The attack that :func:`~purify_jax.attacks.white_box` makes, in records.
WHITE_BOX = "PGD, shared keys"


def with_classes(options: Options, defense: PredictFn, image_shape: tuple[int, ...]) -> Options:
    """The options with the number of classes that the defense answers with, by its shapes alone."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    keys = jax.eval_shape(lambda: image_keys(jax.random.key(0), jnp.arange(1)))
    return replace(options, num_classes=jax.eval_shape(defense, keys, images).shape[-1])


def build(name: str, defense: Attackable, options: Options) -> dict[str, Attack]:
    """Attack by name of a suite against a defense, in the order in which they run.

    Raises InputError for an unknown suite.
    """
    return {n: made for n, made in _possible(name, defense, options).items() if callable(made)}


def left_out(name: str, defense: Attackable, options: Options) -> dict[str, str]:
    """Attack by name of a suite that the defense cannot be attacked by → the reason."""
    return {n: why for n, why in _possible(name, defense, options).items() if isinstance(why, str)}


def _possible(name: str, defense: Attackable, options: Options) -> dict[str, Possible]:
    check_choice("suite", name, sorted(SUITES))
    suite = SUITES[name]
    steps = suite.steps if options.steps is None else options.steps
    return suite.build(options.surrogate(defense), options, steps)


def passes(
    name: str, defense: Attackable, options: Options, images: Array
) -> dict[str, costs.Passes]:
    """Attack of a suite → what it costs per image of the shape of ``images [batch, h, w, c]``."""
    defense, options = options.surrogate(defense), replace(options, surrogate_restarts=None)
    cost = lambda attack: costs.count(lambda d: build(name, d, options)[attack], defense, images)
    return {attack: cost(attack) for attack in build(name, defense, options)}


def _eot(defense: Attackable, options: Options, default: int) -> int:
    if defense.is_deterministic:
        return 1
    return default if options.eot is None else options.eot


def _mean(gradient: GradientFn, options: Options, eot: int) -> GradientFn:
    return EOT(gradient, num_samples=eot, samples_at_once=options.samples_at_once)


def _apgd(defense: Attackable, loss_fn: LossFn, options: Options, steps: int, eot: int) -> Attack:
    gradient = _mean(options.gradient(defense, loss_fn), options, eot)
    predict = defense if defense.is_deterministic else None
    return APGD(gradient, num_steps=steps, predict=predict, **options.ball)


def _few_classes(options: Options, needed: int) -> str | None:
    """Why an attack whose loss takes ``needed`` classes is impossible; None if it is not."""
    has = options.num_classes
    return None if has is None or has >= needed else f"its loss needs {needed} classes of {has}"


def _of_parts(defense: Attackable, make: Callable[[Defense], Made]) -> Made | str:
    """What ``make`` makes of a defense with parts; else why there is nothing to make it of."""
    return make(defense) if isinstance(defense, Defense) else defense.reason


def _transfer(defense: Attackable, options: Options) -> Possible:
    attack = lambda d: APGD(blind(d.logits_fn), num_steps=100, **options.ball)
    return _of_parts(defense, attack)


def _square(defense: Attackable, options: Options, queries: int) -> Attack:
    return Square(
        defense,
        num_queries=queries,
        num_samples=1 if defense.is_deterministic else 4,
        samples_at_once=options.samples_at_once,
        rescale_schedule=True,
        **options.ball,
    )


def _standard(defense: Attackable, options: Options, steps: int) -> dict[str, Possible]:
    eot = _eot(defense, options, 1)
    targeted = TargetedAPGD(
        defense, num_steps=steps, deterministic=defense.is_deterministic, num_samples=eot,
        samples_at_once=options.samples_at_once, **options.ball,
    )  # fmt: skip
    replaced = options.bpda or options.smoothing is not None
    impossible = _few_classes(options, 4) or ("it needs exact gradients" if replaced else None)
    return {
        "APGD-CE": _apgd(defense, losses.cross_entropy, options, steps, eot),
        "APGD-T": impossible or targeted,
        "Square": Square(defense, num_queries=50 * steps, **options.ball),
    }


def _rand(defense: Attackable, options: Options, steps: int) -> dict[str, Possible]:
    eot = _eot(defense, options, 20)
    return {
        "APGD-CE+EOT": _apgd(defense, losses.cross_entropy, options, steps, eot),
        "APGD-DLR+EOT": _few_classes(options, 3) or _apgd(defense, losses.dlr, options, steps, eot),
    }


def _paper(defense: Attackable, options: Options, steps: int) -> dict[str, Possible]:
    eot = _eot(defense, options, 15)
    climbing = lambda d: _climbing(d, score_of(d.purifier), options.norm)
    gradients: dict[str, GradientFn | str] = {
        "blind": _of_parts(defense, lambda d: blind(d.logits_fn)),
        "BPDA+EOT": _of_parts(defense, lambda d: _mean(bpda(d), options, eot)),
        "joint (score)": _of_parts(defense, climbing),
        "joint (full)": _of_parts(
            defense, lambda d: _mean(JointFull(d, norm=options.norm), options, eot)
        ),
        "SPSA": SPSA(defense, num_queries=128),
    }
    pgd = lambda gradient: PGD(
        gradient, step_size=options.epsilon / 4, num_steps=steps, **options.ball
    )
    return {n: made if isinstance(made, str) else pgd(made) for n, made in gradients.items()}


def _climbing(defense: Defense, score_fn: ScoreFn | None, norm: str) -> GradientFn | str:
    if score_fn is None:
        return "the purifier has no score for it to climb"
    return JointScore(score_fn, defense.logits_fn, norm=norm)


def _honest(defense: Attackable, options: Options, steps: int) -> dict[str, Possible]:
    eot = _eot(defense, options, 1)
    # A query of a random defense is four draws, and there Square is a check: it found no image that gradients had not.
    queries = 3 * steps if defense.is_deterministic else max(steps // 2, 1)
    # An estimate from many values at each point is no draw of a gradient: fewer steps of it are enough.
    steps = steps if options.smoothing is None else max(steps // 8, min(steps, 20))
    first = _mean(options.gradient(defense), options, eot)
    # The second loss starts where the bare classifier already errs, with more draws at each point.
    fewer, more = max(3 * steps // 8, 1), 1 if defense.is_deterministic else 4 * eot
    smooth = _mean(options.gradient(defense, losses.smooth_error), options, more)
    start = _of_parts(
        defense,
        lambda d: MomentumPGD(
            blind(d.logits_fn, losses.smooth_error), num_steps=50, **options.ball
        ),
    )
    # Of a function without parts there is no bare classifier: from where the whole errs.
    if isinstance(start, str):
        start = MomentumPGD(first, num_steps=fewer, **options.ball)
    return {
        "transfer": _transfer(defense, options),
        "momentum PGD": MomentumPGD(first, num_steps=steps, **options.ball),
        "momentum PGD, smooth error": MomentumPGD(
            smooth, num_steps=fewer, start=start, **options.ball
        ),
        "Square": _square(defense, options, queries),
    }


def _exhaustive(defense: Attackable, options: Options, steps: int) -> dict[str, Possible]:
    eot = _eot(defense, options, 20)
    shorter = max(steps // 4, 1)
    gradient = _mean(options.gradient(defense), options, eot)
    return {
        "PGD+EOT": PGD(gradient, num_steps=steps, **options.ball),
        "APGD-CE+EOT": _apgd(defense, losses.cross_entropy, options, shorter, eot),
        "APGD-CW+EOT": _apgd(defense, losses.margin, options, shorter, eot),
        "transfer": _transfer(defense, options),
        "Square": _square(defense, options, 5 * steps),
    }


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "clean": Suite(lambda defense, options, steps: {}, drop_fallen=False, steps=1),
        "standard": Suite(_standard, drop_fallen=True, steps=100),
        "rand": Suite(_rand, drop_fallen=True, steps=100),
        "paper": Suite(_paper, drop_fallen=False, steps=40),
        # Chosen by measurements: docs/experiments.md, H0 to H38.
        "honest": Suite(_honest, drop_fallen=True, steps=250),
        "exhaustive": Suite(_exhaustive, drop_fallen=True, steps=200),
    }
)
