"""Suites: the attacks that belong together, built for one defense.

- clean: no attack at all, accuracy on many images
- standard: AutoAttack's for deterministic models, APGD-CE, APGD-T, Square
- rand: AutoAttack's for randomised defenses, APGD-CE and APGD-DLR with EOT
- paper: what the purification paper reports, blind, BPDA+EOT, joint (score), joint (full), SPSA
- honest: what specialists ask for, transfer, exact momentum PGD with two losses, Square; each image's
  strongest candidate counts, see purify_jax/evaluation/protocol.py
- exhaustive: ``honest`` up to 0.2, six times the backward passes, exact PGD+EOT, APGD-CE and APGD-CW
  with EOT, transfer, Square
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from purify_jax import costs, losses
from purify_jax.attacks.auto_pgd import APGD
from purify_jax.attacks.averages import EOT
from purify_jax.attacks.gradients import SPSA, ExactGradient, JointFull, JointScore, blind, bpda
from purify_jax.attacks.momentum import MomentumPGD
from purify_jax.attacks.norms import get
from purify_jax.attacks.projected_gradient import PGD
from purify_jax.attacks.square_search import Square
from purify_jax.attacks.targeted import TargetedAPGD
from purify_jax.checks import check_choice, check_count, check_epsilon
from purify_jax.defense import Defense
from purify_jax.keys import stream
from purify_jax.purifiers import score_of
from purify_jax.pytrees import Pytree, static
from purify_jax.types import Array, Attack, GradientFn, Keys, LossFn, PredictFn


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

    Raises InputError for an unknown norm, ε < 0 and counts below 1.
    """

    norm: str = "linf"
    epsilon: float = 8 / 255
    steps: int | None = None
    eot: int | None = None
    samples_at_once: int | None = None
    surrogate_restarts: int | None = None

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon, get(self.norm).name)
        for name in ("steps", "eot", "samples_at_once", "surrogate_restarts"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))

    @property
    def ball(self) -> dict[str, Any]:
        """The keywords of an attack that say how far it may go."""
        return {"norm": self.norm, "epsilon": self.epsilon}

    def surrogate(self, defense: Defense) -> Defense:
        """The defense that attacks optimise on."""
        restarts = self.surrogate_restarts
        return defense if restarts is None else defense.with_restarts(restarts)


class Suite(NamedTuple):
    """build: (defense, options) → attack by name. drop_fallen: later attacks skip fallen images."""

    build: Callable[[Defense, Options], dict[str, Attack]]
    drop_fallen: bool


#: The attack that :func:`white_box` makes, in records.
WHITE_BOX = "PGD, shared keys"

#: Attack of any suite → its family; red flags compare families.
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "PGD+EOT": "exact",
        "momentum PGD": "exact",
        "momentum PGD, smooth error": "exact",
        WHITE_BOX: "exact",
        "APGD-CE": "exact",
        "APGD-T": "exact",
        "APGD-CE+EOT": "exact",
        "APGD-DLR+EOT": "exact",
        "APGD-CW+EOT": "exact",
        "BPDA+EOT": "approximate",
        "joint (score)": "approximate",
        "joint (full)": "approximate",
        "blind": "transfer",
        "transfer": "transfer",
        "Square": "black-box",
        "SPSA": "black-box",
    }
)


def build(name: str, defense: Defense, options: Options) -> dict[str, Attack]:
    """Attack by name of a suite against a defense, in the order in which they run.

    Raises InputError for an unknown suite.
    """
    check_choice("suite", name, sorted(SUITES))
    return SUITES[name].build(options.surrogate(defense), options)


def passes(name: str, defense: Defense, options: Options, images: Array) -> dict[str, costs.Passes]:
    """Attack of a suite → what it costs per image of the shape of ``images [batch, h, w, c]``."""
    defense, options = options.surrogate(defense), replace(options, surrogate_restarts=None)
    cost = lambda attack: costs.count(lambda d: build(name, d, options)[attack], defense, images)
    return {attack: cost(attack) for attack in build(name, defense, options)}


def _steps(options: Options, default: int) -> int:
    return default if options.steps is None else options.steps


def _eot(defense: Defense, options: Options, default: int) -> int:
    if defense.is_deterministic:
        return 1
    return default if options.eot is None else options.eot


def _mean(gradient: GradientFn, options: Options, eot: int) -> GradientFn:
    return EOT(gradient, num_samples=eot, samples_at_once=options.samples_at_once)


def _apgd(defense: Defense, loss_fn: LossFn, options: Options, steps: int, eot: int) -> Attack:
    gradient = _mean(ExactGradient(defense, loss_fn), options, eot)
    predict = defense if defense.is_deterministic else None
    return APGD(gradient, num_steps=steps, predict=predict, **options.ball)


def _transfer(defense: Defense, options: Options) -> Attack:
    return APGD(blind(defense.logits_fn), num_steps=100, **options.ball)


def _square(defense: Defense, options: Options, queries: int) -> Attack:
    return Square(
        defense,
        num_queries=queries,
        num_samples=1 if defense.is_deterministic else 4,
        samples_at_once=options.samples_at_once,
        rescale_schedule=True,
        **options.ball,
    )


def _standard(defense: Defense, options: Options) -> dict[str, Attack]:
    steps, eot = _steps(options, 100), _eot(defense, options, 1)
    targeted = TargetedAPGD(
        defense, num_steps=steps, deterministic=defense.is_deterministic, num_samples=eot,
        samples_at_once=options.samples_at_once, **options.ball,
    )  # fmt: skip
    return {
        "APGD-CE": _apgd(defense, losses.cross_entropy, options, steps, eot),
        "APGD-T": targeted,
        "Square": Square(defense, num_queries=50 * steps, **options.ball),
    }


def _rand(defense: Defense, options: Options) -> dict[str, Attack]:
    steps, eot = _steps(options, 100), _eot(defense, options, 20)
    return {
        "APGD-CE+EOT": _apgd(defense, losses.cross_entropy, options, steps, eot),
        "APGD-DLR+EOT": _apgd(defense, losses.dlr, options, steps, eot),
    }


def _paper(defense: Defense, options: Options) -> dict[str, Attack]:
    steps, eot = _steps(options, 40), _eot(defense, options, 15)
    score_fn = score_of(defense.purifier)
    gradients: dict[str, GradientFn] = {
        "blind": blind(defense.logits_fn),
        "BPDA+EOT": _mean(bpda(defense), options, eot),
    }
    if score_fn is not None:  # else there is no score for this attack to climb
        gradients["joint (score)"] = JointScore(score_fn, defense.logits_fn, norm=options.norm)
    gradients["joint (full)"] = _mean(JointFull(defense, norm=options.norm), options, eot)
    gradients["SPSA"] = SPSA(defense, num_queries=128)
    pgd = lambda gradient: PGD(
        gradient, step_size=options.epsilon / 4, num_steps=steps, **options.ball
    )
    return {name: pgd(gradient) for name, gradient in gradients.items()}


def _honest(defense: Defense, options: Options) -> dict[str, Attack]:
    # Chosen by benchmarks/attack_budget: docs/experiments.md, H0 to H16.
    steps, eot = _steps(options, 400), _eot(defense, options, 1)
    first = _mean(ExactGradient(defense), options, eot)
    # The second loss starts where the bare classifier already errs, with more draws at each point.
    fewer, more = max(3 * steps // 8, 1), 1 if defense.is_deterministic else 4 * eot
    smooth = _mean(ExactGradient(defense, losses.smooth_error), options, more)
    bare = blind(defense.logits_fn, losses.smooth_error)
    start = MomentumPGD(bare, num_steps=50, **options.ball)
    return {
        "transfer": _transfer(defense, options),
        "momentum PGD": MomentumPGD(first, num_steps=steps, **options.ball),
        "momentum PGD, smooth error": MomentumPGD(
            smooth, num_steps=fewer, start=start, **options.ball
        ),
        "Square": _square(defense, options, 2 * steps),
    }


def _exhaustive(defense: Defense, options: Options) -> dict[str, Attack]:
    steps, eot = _steps(options, 200), _eot(defense, options, 20)
    shorter = max(steps // 4, 1)
    gradient = _mean(ExactGradient(defense), options, eot)
    return {
        "PGD+EOT": PGD(gradient, num_steps=steps, **options.ball),
        "APGD-CE+EOT": _apgd(defense, losses.cross_entropy, options, shorter, eot),
        "APGD-CW+EOT": _apgd(defense, losses.margin, options, shorter, eot),
        "transfer": _transfer(defense, options),
        "Square": _square(defense, options, 5 * steps),
    }


class FixedKeys(Pytree):
    """A defense that draws from the same keys at every call, whatever keys it is given."""

    defense: PredictFn
    keys: Keys

    def __call__(self, keys: Keys, images: Array) -> Array:
        return self.defense(self.keys, images)


class SharedKeys(Pytree):
    """Exact PGD against a defense that draws from the attack's own keys, see :func:`white_box`."""

    defense: PredictFn
    epsilon: float
    norm: str = static()
    num_steps: int = static()

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        gradient = ExactGradient(FixedKeys(self.defense, keys))
        attack = PGD(gradient, norm=self.norm, epsilon=self.epsilon, num_steps=self.num_steps)
        # The attack's own draws (its start) are not those of the defense, which has ``keys`` themselves.
        return attack(stream(keys, "attack"), images, labels)


def white_box(defense: Defense, options: Options) -> Attack:
    """Exact PGD by an attack that knows the defense's keys, so that the defense is deterministic to it.

    For ``evaluate(..., shared_keys=True)``, which hands the attack the very draw that is scored. Nothing
    has to be averaged, so this is the strongest and cheapest attack, if keys ever leak.
    """
    return SharedKeys(defense, num_steps=_steps(options, 200), **options.ball)


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "clean": Suite(lambda defense, options: {}, drop_fallen=False),
        "standard": Suite(_standard, drop_fallen=True),
        "rand": Suite(_rand, drop_fallen=True),
        "paper": Suite(_paper, drop_fallen=False),
        "honest": Suite(_honest, drop_fallen=True),
        "exhaustive": Suite(_exhaustive, drop_fallen=True),
    }
)
