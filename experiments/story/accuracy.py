"""What the quickstart and the demo tell: which attacks, which table, which verdict. Figures: ``illustrations``."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import purify_jax as pj
from purify_jax import attacks as atk
from purify_jax import evaluation
from purify_jax.evaluation import records
from purify_jax.reporting.verdicts import exact_against_flattering
from purify_jax.types import Array, Attack

THREE_ATTACKS = (
    "The same defense is attacked in three ways: without knowledge of the purifier (blind), with the purifier's "
    "gradient taken as the identity (BPDA+EOT), and with the exact gradient through the whole defense, averaged "
    "over its randomness (exact+EOT). Quote the last row."
)


def what_ships(card: Mapping[str, Any]) -> str:
    """One sentence on how a model of this card came by its purifier."""
    if "defense" in card["files"]["score_model"]:
        return "A purifier and a classifier, trained together on attacks through both, clean attacked images and predict."
    return "A model that was trained only to remove noise cleans attacked images, then a classifier predicts."


TABLE_NOTE = (
    "Share of test images classified right, with 95% Wilson intervals; every attack scored with "
    "fresh random draws."
)
TERMS = (
    ("defended", "purifier and classifier together, under the attack of the row"),
    ("undefended", "the bare classifier under PGD on itself, with as many steps"),
    (
        "ε",
        "how far the attack may move every pixel (Linf) or the image (L2); pixels go from 0 to 1",
    ),
    ("steps", "gradient steps of the attack"),
    ("EOT", "random draws whose gradients each step averages"),
)


class NamedAttack(NamedTuple):
    """An attack with what the table says of it; ``make`` builds it for an ε (a number or traced)."""

    name: str
    steps: int
    eot: int
    make: Any


def attacks(
    defense: pj.defense.Defense, config: Any, *, steps: int, num_samples: int
) -> list[NamedAttack]:
    """Blind PGD, BPDA+EOT and exact+EOT, against the defense."""

    def named(name: str, gradient: Any, eot: int) -> NamedAttack:
        def make(epsilon: float, num_steps: int = steps) -> Attack:
            return atk.PGD(
                atk.EOT(gradient, num_samples=eot, samples_at_once=4),
                norm=config.norm,
                epsilon=epsilon,
                num_steps=num_steps,
            )

        return NamedAttack(name, steps, eot, make)

    return [
        named("blind PGD", atk.blind(defense.logits_fn), 1),
        named("BPDA+EOT", atk.bpda(defense), num_samples),
        named("exact+EOT", atk.ExactGradient(defense), num_samples),
    ]


class Attacked(NamedTuple):
    """results: what the table and the verdict are made of; adversarial: attack → images ``[n, h, w, c]``."""

    results: dict[str, Any]
    adversarial: dict[str, np.ndarray]


def run_attacks(
    key: Array,
    defense: pj.defense.Defense,
    named: list[NamedAttack],
    attacked: pj.data.Dataset,
    test: pj.data.Dataset,
    config: Any,
    progress: bool = True,
    bare_on_blind: bool = False,
) -> Attacked:
    """Clean accuracy on the whole test split, and a row per attack on the images ``attacked``.

    bare_on_blind: judge the bare classifier by the blind attack's images, which are made on it, and do not
    attack it anew for every row.
    """
    bare = pj.undefended(defense.logits_fn)
    evaluate = functools.partial(evaluation.evaluate, key, draws=1)
    saved = _Timed()
    found = evaluate(
        defense,
        {entry.name: entry.make(config.epsilon) for entry in named},
        attacked,
        saved=saved,
        execution=pj.Execution(progress=progress),
    )
    adversarial = {entry.name: saved.of(entry.name) for entry in named}
    if bare_on_blind:
        on_blind = _replaced(attacked, adversarial[named[0].name])
        undefended = [evaluation.accuracy(evaluate(bare, {}, on_blind), "clean")] * len(named)
    else:
        white = lambda steps: atk.PGD(
            atk.ExactGradient(bare), norm=config.norm, epsilon=config.epsilon, num_steps=steps
        )
        alone = evaluate(bare, {entry.name: white(entry.steps) for entry in named}, attacked)
        undefended = [evaluation.accuracy(alone, entry.name) for entry in named]
    rows = []
    for entry, without in zip(named, undefended, strict=True):
        robust = evaluation.accuracy(found, entry.name)
        rows.append(
            {
                "name": entry.name,
                "norm": config.norm,
                "epsilon": config.epsilon,
                "steps": entry.steps,
                "eot": entry.eot,
                "undefended": without.value,
                "defended": robust.value,
                "defended_ci95": [robust.low, robust.high],
                "images": len(attacked),
                "seconds": round(saved.seconds(entry.name), 2),
            }
        )
    whole = found if len(attacked) == len(test) else evaluate(defense, {}, test)
    clean = evaluation.accuracy(whole, "clean")
    clean_bare = evaluation.accuracy(evaluate(bare, {}, test), "clean")
    results = {
        "clean": {
            "undefended": clean_bare.value,
            "defended": clean.value,
            "defended_ci95": [clean.low, clean.high],
            "images": len(test),
        },
        "attacks": rows,
    }
    return Attacked(results, adversarial)


class _Timed(evaluation.AdversarialImages):
    """Adversarial images, and when the last batch of each attack was made."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, float] = {}

    def add(self, attack: str, indices: np.ndarray, images: np.ndarray) -> None:
        super().add(attack, indices, images)
        self.ends[attack] = time.monotonic()

    def seconds(self, attack: str) -> float:
        """How long an attack took: from the end of the one before it to its own."""
        names = list(self.ends)
        return self.ends[attack] - self.ends[names[names.index(attack) - 1]]


def _replaced(dataset: pj.data.Dataset, images: np.ndarray) -> pj.data.Dataset:
    return dataclasses.replace(dataset, images=images)


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the accuracy table."""
    # The most important columns come first: a narrow screen shows three or four.
    columns = ["attack", "defended", "undefended", "images", "ε", "steps", "EOT", "s"]
    defended = lambda row: str(records.Interval(row["defended"], *row["defended_ci95"], 0))
    clean = results["clean"]
    row = ["clean", defended(clean), f"{clean['undefended']:.3f}", str(clean["images"])]
    rows = [[*row, "0", "", "", ""]]
    for a in results["attacks"]:
        values = [a["name"], defended(a), f"{a['undefended']:.3f}", str(a["images"])]
        setting = [f"{a['epsilon']:g}", str(a["steps"]), str(a["eot"]), f"{a['seconds']:.1f}"]
        rows.append([*values, *setting])
    return columns, rows


def verdict(results: dict[str, Any]) -> list[str]:
    """What to conclude, in sentences."""
    *others, exact = results["attacks"]
    images = exact["images"]
    right = lambda row, model="defended": round(row[model] * row["images"])
    short = {"blind PGD": "an attack that is blind to the purifier", "BPDA+EOT": "BPDA"}
    flattering = {short[row["name"]]: right(row) for row in reversed(others)}
    bare = min(right(row, "undefended") for row in results["attacks"])
    return exact_against_flattering(right(exact), images, flattering, bare)
