"""Red flags: signs that an evaluation overstates robustness, raised by the program itself.

Every item of the list that specialists check (Athalye et al. 2018, arXiv 1802.00420, section
3.1; Carlini et al. 2019, arXiv 1902.06705): a weaker attacker beats a stronger one, accuracy
does not fall to zero as ε grows, more effort still lowers it much, gradients vanish.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from purify_jax.attacks import blind, bpda
from purify_jax.attacks.norms import get
from purify_jax.attacks.suites import WHITE_BOX, Options
from purify_jax.data import Dataset
from purify_jax.defense import Attackable, Defense
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.probes.health import gradient_health
from purify_jax.evaluation.probes.sweeps import Curve, Grid, attacked_accuracy
from purify_jax.evaluation.records import Record, attack_names, of_attack
from purify_jax.evaluation.statistics import Interval
from purify_jax.types import Array, Json

#: Shares above which something is "more than a few images" or "much".
FEW, MUCH = 0.05, 0.10

#: Attack of any suite → its family.
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


class RedFlag(NamedTuple):
    """cause: what is wrong; evidence: the numbers that triggered it; advice: what to try."""

    cause: str
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.evidence}. Try: {self.advice}."


def probe(
    key: Array,
    defense: Attackable,
    dataset: Dataset,
    options: Options,
    execution: Execution = Execution(),
) -> dict[str, Interval | dict[str, float]]:
    """Short attacks whose comparison tells whether stronger ones can be trusted, and the health.

    20 steps with EOT 4: exact; BPDA and transfer, of a defense with parts; exact with 4 times the EOT samples,
    with 4 times the steps, and with an ε that allows any image.
    """
    base = dataclasses.replace(options, steps=20, eot=4)
    accuracy = lambda o=base, **more: attacked_accuracy(
        key, defense, dataset, o, execution=execution, **more
    )
    largest = {"linf": 0.5, "l2": 0.5 * float(np.sqrt(np.prod(dataset.image_shape)))}
    everything = largest.get(get(options.norm).name, float(np.prod(dataset.image_shape)))
    at, at_large = accuracy(epsilons=(options.epsilon, everything))
    surrogate, others = options.surrogate(defense), {}
    if isinstance(surrogate, Defense):
        others["BPDA"] = accuracy(gradient=bpda(surrogate))[0]
        others["transfer"] = accuracy(gradient=blind(surrogate.logits_fn))[0]
    return {
        "exact": at,
        "exact, any image allowed": at_large,
        **others,
        "exact, 4x EOT": accuracy(dataclasses.replace(base, eot=16))[0],
        "exact, 4x steps": accuracy(dataclasses.replace(base, steps=80))[0],
        "health": gradient_health(key, defense, dataset, execution),
    }


def failed(error: Exception) -> RedFlag:
    """The red flag of an evaluation whose probes ended with an error after its attacks."""
    return RedFlag(
        "the probes could not be run",
        f"{type(error).__name__}: {error}",
        "mend what it names; until then nothing says whether the attacks above were strong enough",
    )


def red_flags(
    records: Sequence[Record] = (),
    probes: Json | None = None,
    curve: Curve | Grid | None = None,
) -> list[RedFlag]:
    """All red flags that records of an evaluation, :func:`probe` and a sweep give cause for."""
    flags = list(_from_records(records))
    if probes:
        flags += _from_health(probes["health"])
        flags += _from_probes(probes)
    if curve is not None:
        flags += _from_grid(curve) if isinstance(curve, Grid) else _from_curve(curve)
    return flags


def _from_records(records: Sequence[Record]) -> list[RedFlag]:
    names = attack_names(records)
    family = lambda *kinds: [n for n in names if FAMILIES.get(n) in kinds]
    right = {n: {r["index"]: r.get("mean", False) for r in of_attack(records, n)} for n in names}
    strong = family("exact")
    flags: list[RedFlag] = []
    if not strong:
        return flags
    images = list(right[strong[0]])
    standing = [i for i in images if right["clean"].get(i) and all(right[n][i] for n in strong)]
    for weak in family("transfer", "black-box", "approximate"):
        # An image that an exact attack missed and a weaker attacker turned.
        attacked = {r["index"]: r["mean"] for r in of_attack(records, weak) if "mean" in r}
        turned = [i for i in standing if not attacked.get(i, True)]
        if len(turned) > max(2, FEW * len(images)):
            flags.append(
                RedFlag(
                    f"{weak} ({FAMILIES[weak]}) beats the exact gradient",
                    f"it turns {len(turned)} of {len(standing)} images that withstood "
                    f"{', '.join(strong)}",
                    "gradients are masked: look for zero or noisy gradients, use another loss "
                    "(margin on logits), more EOT samples and steps",
                )
            )
    return flags


def _from_health(health: Mapping[str, float]) -> list[RedFlag]:
    flags = []
    if health.get("probabilities", 0.0) > 1 - FEW:
        flags.append(
            RedFlag(
                "the classifier returns probabilities",
                f"its outputs are >= 0 and sum to 1 on {health['probabilities']:.0%} of images",
                "return logits: a softmax of a softmax flattens the gradients that attacks follow",
            )
        )
    if health["not_finite"] > FEW:
        flags.append(
            RedFlag(
                "gradients are not finite",
                f"on {health['not_finite']:.0%} of images",
                "find the division or root that overflows; such images are not attacked at all",
            )
        )
    if health["not_derivative"] > MUCH and health["zero"] <= FEW:
        flags.append(
            RedFlag(
                "the gradient is not the derivative (a branch is stopped, rounded, shattered or replaced)",
                f"measured slopes contradict it on {health['not_derivative']:.0%} of images",
                "differentiate the missing branch; BPDA with a smooth stand-in for what oscillates",
            )
        )
    if health["zero"] <= FEW:
        return flags
    where, advice = "gradients vanish", "find the step that is constant almost everywhere"
    if health.get("purifier_zero", 0.0) > FEW:
        where = "the purifier passes no gradient (quantised, or stopped on purpose)"
        advice = "BPDA through the purifier, or a smooth stand-in for it in the backward pass"
    elif health.get("classifier_zero", 0.0) - health["saturated"] > FEW:
        # Saturated images have no gradient either; here there are more without one.
        where = "the classifier passes no gradient (quantised, or stopped on purpose)"
        advice = "BPDA through the classifier, or a transfer attack from a smooth copy"
    elif health["saturated"] > FEW >= health.get("margin_zero", 0.0):
        where = "the softmax is saturated (extreme temperature or confidence)"
        advice = "a margin or DLR loss on the logits, or divide the logits by their scale"
    flags.append(RedFlag(where, f"the gradient is zero on {health['zero']:.0%} of images", advice))
    return flags


def _lower(weak: Interval, strong: Interval) -> bool:
    return strong.value - weak.value > MUCH


def _from_probes(probes: Json) -> list[RedFlag]:
    flags = []
    base = probes["exact"]
    for name, advice in (
        ("BPDA", "the exact gradient is masked or too noisy: more EOT samples, held step sizes"),
        ("transfer", "the exact gradient is masked: check for zero gradients, try other losses"),
    ):
        if name in probes and _lower(probes[name], base):
            evidence = f"{name} leaves {probes[name]}, the exact gradient {base}"
            flags.append(RedFlag(f"{name} beats the exact gradient", evidence, advice))
    at_large = probes["exact, any image allowed"]
    if at_large.low > MUCH:
        evidence = f"{at_large} although any image is allowed (at the given ε: {base})"
        advice = "the attack is broken or blinded: an unbounded attack must succeed"
        flags.append(RedFlag("accuracy does not fall to 0 as ε grows", evidence, advice))
    for name, what in (("exact, 4x EOT", "EOT samples"), ("exact, 4x steps", "steps")):
        if _lower(probes[name], base) and probes[name].high < base.value:
            evidence = f"20 steps with EOT 4 leave {base}, {name} {probes[name]}"
            advice = f"raise the {what} until the curve is flat (--sweep)"
            flags.append(RedFlag(f"more {what} still lower the accuracy much", evidence, advice))
    return flags


def _from_curve(curve: Curve) -> list[RedFlag]:
    last, before = curve.accuracies[-1], curve.accuracies[-2]
    text = ", ".join(
        f"{p:g}: {a.value:.3f}" for p, a in zip(curve.points, curve.accuracies, strict=True)
    )
    if curve.name == "epsilon" and last.low > MUCH:
        advice = "the attack is broken or blinded: a large enough attack must succeed"
        return [RedFlag("accuracy does not fall to 0 as ε grows", text, advice)]
    if curve.name != "epsilon" and before.value - last.value > MUCH:
        advice = f"raise the {curve.name} further, until the curve is flat"
        return [RedFlag(f"more {curve.name} still lower the accuracy much", text, advice)]
    return []


def _from_grid(grid: Grid) -> list[RedFlag]:
    return [
        RedFlag(
            f"more {what} still lower the accuracy much",
            f"the last increase changes it by {change}, image by image",
            f"raise the {what} further, until the curve is flat",
        )
        for what, change in grid.changes.items()
        if change.value < -MUCH
    ]
