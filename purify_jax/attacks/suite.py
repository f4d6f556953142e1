"""Suites: the attacks that belong together, built for one defense.

clean     no attack at all: accuracy on many images
standard  AutoAttack's for deterministic models: APGD-CE, APGD-T, Square
rand      AutoAttack's for randomised defenses: APGD-CE and APGD-DLR with EOT
paper     what the purification paper reports: blind, BPDA+EOT, joint (score), joint (full), SPSA
honest    what specialists ask for: exact PGD+EOT, APGD-CE and APGD-CW with EOT, transfer, Square;
          read its worst case per image
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp

from purify_jax import losses
from purify_jax.attacks import gradients as g
from purify_jax.attacks.apgd import apgd, apgd_targeted
from purify_jax.attacks.pgd import pgd
from purify_jax.attacks.square import square
from purify_jax.defense import Defense
from purify_jax.purification import ScorePurifier, identity
from purify_jax.types import Array, Attack, GradientFn, InputError, Keys


class Options(NamedTuple):
    """norm and epsilon of the ball; steps and eot override the suite's; samples side by side."""

    norm: str = "linf"
    epsilon: float = 8 / 255
    steps: int | None = None
    eot: int | None = None
    samples_at_once: int | None = 4


class Entry(NamedTuple):
    """An attack of a suite, with what a table says of it.

    family: "exact", "approximate", "transfer" or "black-box"; red flags compare families.
    """

    name: str
    attack: Attack
    steps: int
    eot: int
    family: str


class Suite(NamedTuple):
    """build: (defense, options) → entries. drop_fallen: later attacks skip fallen images."""

    build: Callable[[Defense, Options], list[Entry]]
    drop_fallen: bool


#: Which family an attack of any suite belongs to, by name.
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "PGD+EOT": "exact",
        "PGD, shared keys": "exact",
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


def is_deterministic(defense: Defense) -> bool:
    """Whether the defense is the bare classifier: EOT and several draws would change nothing."""
    return defense.purifier is identity


def build(name: str, defense: Defense, options: Options) -> list[Entry]:
    """The attacks of a suite against a defense; InputError for an unknown suite."""
    if name not in SUITES:
        raise InputError(f"suite: got {name!r}, expected one of {sorted(SUITES)}")
    return SUITES[name].build(defense, options)


def _eot(defense: Defense, options: Options, default: int) -> int:
    return 1 if is_deterministic(defense) else options.eot or default


def _entry(name: str, attack: Attack, steps: int, eot: int = 1) -> Entry:
    return Entry(name, attack, steps, eot, FAMILIES[name])


def _pgd(gradient: GradientFn, options: Options, steps: int, step_size: float) -> Attack:
    return pgd(
        gradient, norm=options.norm, epsilon=options.epsilon, step_size=step_size, num_steps=steps
    )


def _apgd(name: str, defense: Defense, loss_fn, options: Options, steps: int, eot: int) -> Entry:
    gradient = g.eot(g.exact(defense, loss_fn), eot, options.samples_at_once)
    predict = defense if is_deterministic(defense) else None
    attack = apgd(
        gradient, norm=options.norm, epsilon=options.epsilon, num_steps=steps, predict=predict
    )
    return _entry(name, attack, steps, eot)


def _standard(defense: Defense, options: Options) -> list[Entry]:
    steps = options.steps or 100
    deterministic = is_deterministic(defense)
    targeted = apgd_targeted(
        defense,
        norm=options.norm,
        epsilon=options.epsilon,
        num_steps=steps,
        deterministic=deterministic,
        num_samples=_eot(defense, options, 1),
        samples_at_once=options.samples_at_once,
    )
    queries = 50 * steps
    black_box = square(defense, norm=options.norm, epsilon=options.epsilon, num_queries=queries)
    ce = _apgd("APGD-CE", defense, losses.cross_entropy, options, steps, _eot(defense, options, 1))
    return [ce, _entry("APGD-T", targeted, steps), _entry("Square", black_box, queries)]


def _rand(defense: Defense, options: Options) -> list[Entry]:
    steps, eot = options.steps or 100, _eot(defense, options, 20)
    return [
        _apgd("APGD-CE+EOT", defense, losses.cross_entropy, options, steps, eot),
        _apgd("APGD-DLR+EOT", defense, losses.dlr, options, steps, eot),
    ]


def _paper(defense: Defense, options: Options) -> list[Entry]:
    steps, eot = options.steps or 40, _eot(defense, options, 15)
    purifier = defense.purifier
    # The bare classifier has no score to climb; its joint attack is the classifier's alone.
    score_fn = purifier.score_fn if isinstance(purifier, ScorePurifier) else jnp.zeros_like
    gradients = {
        "blind": (g.blind(defense.logits_fn), 1),
        "BPDA+EOT": (g.eot(g.bpda(defense), eot, options.samples_at_once), eot),
        "joint (score)": (g.joint_score(score_fn, defense.logits_fn), 1),
        "joint (full)": (g.eot(g.joint_full(defense), eot, options.samples_at_once), eot),
        "SPSA": (g.spsa(defense, num_queries=128), 1),
    }
    return [
        _entry(name, _pgd(gradient, options, steps, options.epsilon / 4), steps, samples)
        for name, (gradient, samples) in gradients.items()
    ]


def _honest(defense: Defense, options: Options) -> list[Entry]:
    steps, eot = options.steps or 200, _eot(defense, options, 20)
    gradient = g.eot(g.exact(defense), eot, options.samples_at_once)
    shorter = max(steps // 4, 1)
    bare = defense.replace(purifier=identity)
    transfer = apgd(
        g.exact(bare), norm=options.norm, epsilon=options.epsilon, num_steps=100, predict=None
    )
    draws = 1 if is_deterministic(defense) else 4
    queries = 5 * steps
    black_box = square(
        defense,
        norm=options.norm,
        epsilon=options.epsilon,
        num_queries=queries,
        num_samples=draws,
        samples_at_once=options.samples_at_once,
        rescale_schedule=True,
    )
    # Steps of ε/16 and more: far enough to cross the ball in 40 steps, small enough for the mean
    # gradient to mean something.
    step_size = 2.5 * options.epsilon / min(steps, 40)
    return [
        _entry("PGD+EOT", _pgd(gradient, options, steps, step_size), steps, eot),
        _apgd("APGD-CE+EOT", defense, losses.cross_entropy, options, shorter, eot),
        _apgd("APGD-CW+EOT", defense, losses.margin, options, shorter, eot),
        _entry("transfer", transfer, 100),
        _entry("Square", black_box, queries, draws),
    ]


def white_box(defense: Defense, options: Options) -> Entry:
    """Exact PGD by an attacker who shares the defender's keys: the defense is deterministic to it.

    For ``evaluate(..., shared_keys=True)``, which hands the attack the very draw that is scored.
    Nothing has to be averaged, so this is the strongest and cheapest attack, if keys ever leak.
    """
    steps = options.steps or 200
    step_size = 2.5 * options.epsilon / min(steps, 40)

    def attack(keys: Keys, images: Array, labels: Array) -> Array:
        fixed = lambda _, x: defense(keys, x)
        return _pgd(g.exact(fixed), options, steps, step_size)(keys, images, labels)

    return _entry("PGD, shared keys", attack, steps)


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "clean": Suite(lambda defense, options: [], drop_fallen=False),
        "standard": Suite(_standard, drop_fallen=True),
        "rand": Suite(_rand, drop_fallen=True),
        "paper": Suite(_paper, drop_fallen=False),
        "honest": Suite(_honest, drop_fallen=True),
    }
)
