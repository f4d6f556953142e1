"""The quickstart's story: which attacks, which table, which verdict. Its figures: ``illustrations``."""

import time
from typing import Any, NamedTuple

import purify_jax as pj
from purify_jax import attacks as atk
from purify_jax import evaluation
from purify_jax.devices import sharding
from purify_jax.devices.progress import bar
from purify_jax.evaluation import records
from purify_jax.reporting.verdicts import exact_against_flattering
from purify_jax.types import Array, Attack

SUMMARY = (
    "An energy-based model, trained by denoising score matching, cleans attacked images in a few "
    "steps along its score; then a classifier that knows nothing of it predicts. The same defense "
    "is attacked three ways: by someone who does not know of the purifier (blind), by someone who "
    "pretends that it were the identity (BPDA+EOT), and by the exact gradient through all of it, "
    "averaged over the defense's randomness (exact+EOT). The last row is the one to believe."
)
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


def attacks(defense: pj.defense.Defense, config: Any, *, steps: int, num_samples: int):
    """Blind PGD, BPDA+EOT and exact+EOT, against the defense."""

    def named(name: str, gradient: Any, eot: int) -> NamedAttack:
        def make(epsilon: float, num_steps: int = steps) -> Attack:
            return atk.pgd(
                atk.eot(gradient, eot, 4),
                norm=config.norm,
                epsilon=epsilon,
                num_steps=num_steps,
            )

        return NamedAttack(name, steps, eot, make)

    return [
        named("blind PGD", atk.blind(defense.logits_fn), 1),
        named("BPDA+EOT", atk.bpda(defense), num_samples),
        named("exact+EOT", atk.exact(defense), num_samples),
    ]


def run_attacks(
    key: Array,
    defense: pj.defense.Defense,
    named: list[NamedAttack],
    attacked: pj.data.Dataset,
    test: pj.data.Dataset,
    config: Any,
    progress: bool = True,
) -> dict[str, Any]:
    """Clean accuracy on the whole test split, and a row per attack on the images ``attacked``."""
    norm, epsilon, mesh = config.norm, config.epsilon, sharding.default_mesh()
    bare = pj.undefended(defense.logits_fn)
    value = lambda model: evaluation.accuracy(
        evaluation.evaluate(key, model, {}, test, draws=1, mesh=mesh), "clean"
    )
    clean_bare, clean = value(bare), value(defense)
    rows = []
    for entry in bar(named, desc="attacks", unit="attack", disable=not progress):
        started = time.monotonic()
        attack = entry.make(epsilon)
        found = evaluation.evaluate(key, defense, {entry.name: attack}, attacked, mesh=mesh)
        white_box = atk.pgd(atk.exact(bare), norm=norm, epsilon=epsilon, num_steps=entry.steps)
        found_bare = evaluation.evaluate(
            key, bare, {entry.name: white_box}, attacked, draws=1, mesh=mesh
        )
        robust = evaluation.accuracy(found, entry.name)
        rows.append(
            {
                "name": entry.name,
                "norm": norm,
                "epsilon": epsilon,
                "steps": entry.steps,
                "eot": entry.eot,
                "undefended": evaluation.accuracy(found_bare, entry.name).value,
                "defended": robust.value,
                "defended_ci95": [robust.low, robust.high],
                "images": len(attacked),
                "seconds": round(time.monotonic() - started, 2),
            }
        )
    return {
        "clean": {
            "undefended": clean_bare.value,
            "defended": clean.value,
            "defended_ci95": [clean.low, clean.high],
            "images": len(test),
        },
        "attacks": rows,
    }


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the accuracy table."""
    # What counts comes first: a narrow screen shows three columns or four.
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
