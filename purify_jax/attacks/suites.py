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
from types import MappingProxyType
from typing import Any, NamedTuple

from purify_jax import losses
from purify_jax.attacks import costs
from purify_jax.attacks import gradients as g
from purify_jax.attacks.auto_pgd import apgd
from purify_jax.attacks.averages import eot as mean_gradient
from purify_jax.attacks.momentum import momentum_pgd
from purify_jax.attacks.norms import check_epsilon, get
from purify_jax.attacks.projected_gradient import PGD
from purify_jax.attacks.square_search import square
from purify_jax.attacks.targeted import apgd_targeted
from purify_jax.checks import check_choice, check_count
from purify_jax.defense import Defense, undefended
from purify_jax.keys import stream
from purify_jax.purifiers import score_of
from purify_jax.pytrees import pytree, static
from purify_jax.types import Array, Attack, GradientFn, Keys


class Options(NamedTuple):
    """norm and epsilon of the ball; steps and eot override the suite's; samples side by side.

    At most four samples side by side by default, fewer where memory asks; a number that is given is kept. restarts: of the
    purifier in what attacks look through, all of the defense's by default. One is a draw of the same thing at
    a fraction of the cost; scoring is by the whole defense whatever it is.
    """

    norm: str = "linf"
    epsilon: float = 8 / 255
    steps: int | None = None
    eot: int | None = None
    samples_at_once: int | None = None
    restarts: int | None = None

    def seen(self, defense: Defense) -> Defense:
        """The defense as attacks look through it."""
        return defense if self.restarts is None else defense.with_restarts(self.restarts)


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
        "momentum PGD": "exact",
        "momentum PGD, smooth error": "exact",
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


def build(name: str, defense: Defense, options: Options) -> list[Entry]:
    """The attacks of a suite against a defense; InputError for an unknown suite."""
    check_choice("suite", name, sorted(SUITES))
    check_epsilon(options.epsilon)
    get(options.norm)
    for field in ("steps", "eot", "samples_at_once"):
        if getattr(options, field) is not None:
            check_count(field, getattr(options, field))
    return SUITES[name].build(options.seen(defense), options)


def passes(name: str, defense: Defense, options: Options, images: Array) -> dict[str, costs.Passes]:
    """Attack of a suite → what it costs per image of the shape of ``images [batch, h, w, c]``."""

    def cost(place: int) -> costs.Passes:
        return costs.count(lambda d: build(name, d, options)[place].attack, defense, images)

    defense, options = options.seen(defense), options._replace(restarts=None)
    entries = build(name, defense, options)
    return {entry.name: cost(place) for place, entry in enumerate(entries)}


def _steps(options: Options, default: int) -> int:
    return default if options.steps is None else options.steps


def _eot(defense: Defense, options: Options, default: int) -> int:
    if defense.is_deterministic:
        return 1
    return default if options.eot is None else options.eot


def _entry(name: str, attack: Attack, steps: int, eot: int = 1) -> Entry:
    return Entry(name, attack, steps, eot, FAMILIES[name])


def _pgd(
    gradient: GradientFn, options: Options, steps: int, step_size: float | None = None
) -> Attack:
    return PGD(
        gradient, norm=options.norm, epsilon=options.epsilon, step_size=step_size, num_steps=steps
    )


def _apgd(name: str, defense: Defense, loss_fn, options: Options, steps: int, eot: int) -> Entry:
    gradient = mean_gradient(g.exact(defense, loss_fn), eot, options.samples_at_once)
    predict = defense if defense.is_deterministic else None
    attack = apgd(
        gradient, norm=options.norm, epsilon=options.epsilon, num_steps=steps, predict=predict
    )
    return _entry(name, attack, steps, eot)


def _standard(defense: Defense, options: Options) -> list[Entry]:
    steps = _steps(options, 100)
    deterministic = defense.is_deterministic
    ball: dict[str, Any] = {"norm": options.norm, "epsilon": options.epsilon}
    targeted = apgd_targeted(
        defense, num_steps=steps, deterministic=deterministic, num_samples=_eot(defense, options, 1),
        samples_at_once=options.samples_at_once, **ball,
    )  # fmt: skip
    queries = 50 * steps
    black_box = square(defense, num_queries=queries, **ball)
    ce = _apgd("APGD-CE", defense, losses.cross_entropy, options, steps, _eot(defense, options, 1))
    return [ce, _entry("APGD-T", targeted, steps), _entry("Square", black_box, queries)]


def _rand(defense: Defense, options: Options) -> list[Entry]:
    steps, eot = _steps(options, 100), _eot(defense, options, 20)
    return [
        _apgd("APGD-CE+EOT", defense, losses.cross_entropy, options, steps, eot),
        _apgd("APGD-DLR+EOT", defense, losses.dlr, options, steps, eot),
    ]


def _paper(defense: Defense, options: Options) -> list[Entry]:
    steps, eot = _steps(options, 40), _eot(defense, options, 15)
    score_fn = score_of(defense.purifier)
    mean = lambda gradient: mean_gradient(gradient, eot, options.samples_at_once)
    gradients = {
        "blind": (g.blind(defense.logits_fn), 1),
        "BPDA+EOT": (mean(g.bpda(defense)), eot),
        "joint (score)": None
        if score_fn is None
        else (g.joint_score(score_fn, defense.logits_fn), 1),
        "joint (full)": (mean(g.joint_full(defense)), eot),
        "SPSA": (g.spsa(defense, num_queries=128), 1),
    }
    # Without a score there is nothing for the joint attack (score) to climb, and no such row.
    chosen = {name: entry for name, entry in gradients.items() if entry is not None}
    return [
        _entry(name, _pgd(gradient, options, steps, options.epsilon / 4), steps, samples)
        for name, (gradient, samples) in chosen.items()
    ]


def _honest(defense: Defense, options: Options) -> list[Entry]:
    # Chosen by benchmarks/attack_budget.py: docs/experiments.md, H0 to H16.
    steps, eot = _steps(options, 400), _eot(defense, options, 1)
    ball: dict[str, Any] = {"norm": options.norm, "epsilon": options.epsilon}
    bare = g.exact(undefended(defense.logits_fn), losses.smooth_error)
    transfer = apgd(g.exact(undefended(defense.logits_fn)), num_steps=100, predict=None, **ball)
    first = momentum_pgd(
        mean_gradient(g.exact(defense), eot, options.samples_at_once), num_steps=steps, **ball
    )
    # The second loss starts where the bare classifier already errs, with more draws at each point.
    fewer, more = max(3 * steps // 8, 1), 1 if defense.is_deterministic else 4 * eot
    smooth = mean_gradient(g.exact(defense, losses.smooth_error), more, options.samples_at_once)
    start = momentum_pgd(bare, num_steps=50, **ball)
    second = momentum_pgd(smooth, num_steps=fewer, start=start, **ball)
    draws = 1 if defense.is_deterministic else 4
    black_box = square(
        defense,
        num_queries=2 * steps,
        num_samples=draws,
        samples_at_once=options.samples_at_once,
        rescale_schedule=True,
        **ball,
    )
    return [
        _entry("transfer", transfer, 100),
        _entry("momentum PGD", first, steps, eot),
        _entry("momentum PGD, smooth error", second, fewer, more),
        _entry("Square", black_box, 2 * steps, draws),
    ]


def _exhaustive(defense: Defense, options: Options) -> list[Entry]:
    steps, eot = _steps(options, 200), _eot(defense, options, 20)
    gradient = mean_gradient(g.exact(defense), eot, options.samples_at_once)
    shorter = max(steps // 4, 1)
    bare = undefended(defense.logits_fn)
    ball: dict[str, Any] = {"norm": options.norm, "epsilon": options.epsilon}
    transfer = apgd(g.exact(bare), num_steps=100, predict=None, **ball)
    draws = 1 if defense.is_deterministic else 4
    queries = 5 * steps
    black_box = square(
        defense, num_queries=queries, num_samples=draws, samples_at_once=options.samples_at_once,
        rescale_schedule=True, **ball,
    )  # fmt: skip
    return [
        _entry("PGD+EOT", _pgd(gradient, options, steps), steps, eot),
        _apgd("APGD-CE+EOT", defense, losses.cross_entropy, options, shorter, eot),
        _apgd("APGD-CW+EOT", defense, losses.margin, options, shorter, eot),
        _entry("transfer", transfer, 100),
        _entry("Square", black_box, queries, draws),
    ]


@pytree
class FixedKeys:
    """A defense that draws from the same keys at every call, whatever keys it is given."""

    defense: Any
    keys: Keys

    def __call__(self, keys: Keys, images: Array) -> Array:
        return self.defense(self.keys, images)


@pytree
class SharedKeys:
    """See :func:`white_box`."""

    defense: Any
    epsilon: float
    norm: str = static()
    steps: int = static()

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        attack = PGD(
            g.exact(FixedKeys(defense=self.defense, keys=keys)),
            norm=self.norm,
            epsilon=self.epsilon,
            num_steps=self.steps,
        )
        # The attack's own draws (its start) are not those of the defense, which has ``keys`` themselves.
        return attack(stream(keys, "attack"), images, labels)


def white_box(defense: Defense, options: Options) -> Entry:
    """Exact PGD by an attacker who shares the defender's keys: the defense is deterministic to it.

    For ``evaluate(..., shared_keys=True)``, which hands the attack the very draw that is scored.
    Nothing has to be averaged, so this is the strongest and cheapest attack, if keys ever leak.
    """
    steps = _steps(options, 200)
    attack = SharedKeys(defense=defense, epsilon=options.epsilon, norm=options.norm, steps=steps)
    return _entry("PGD, shared keys", attack, steps)


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "clean": Suite(lambda defense, options: [], drop_fallen=False),
        "standard": Suite(_standard, drop_fallen=True),
        "rand": Suite(_rand, drop_fallen=True),
        "paper": Suite(_paper, drop_fallen=False),
        "honest": Suite(_honest, drop_fallen=True),
        "exhaustive": Suite(_exhaustive, drop_fallen=True),
    }
)
