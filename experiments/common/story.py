"""The quickstart's story: which attacks, which figures, which table."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import purify_jax as pj
from purify_jax import attacks as atk
from purify_jax import energy, evaluation
from purify_jax.devices import sharding
from purify_jax.evaluation import records
from purify_jax.evaluation.predictions import check_classes
from purify_jax.evaluation.sweeps import AttackedAndScored
from purify_jax.keys import fold_keys, image_keys, stream_key
from purify_jax.reporting import plots
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
    "fresh random draws. Undefended: the bare classifier under PGD with as many steps."
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
    for entry in tqdm(named, desc="attacks", unit="attack", disable=not progress):
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
    columns = [
        "attack",
        "ε",
        "steps",
        "EOT",
        "undefended",
        "defended",
        "95% interval",
        "images",
        "s",
    ]
    interval = lambda low, high: f"[{low:.3f}, {high:.3f}]"
    clean = results["clean"]
    row = ["clean", "0", "", "", f"{clean['undefended']:.3f}", f"{clean['defended']:.3f}"]
    rows = [[*row, interval(*clean["defended_ci95"]), str(clean["images"]), ""]]
    for a in results["attacks"]:
        values = [f"{a['undefended']:.3f}", f"{a['defended']:.3f}", interval(*a["defended_ci95"])]
        setting = [a["name"], f"{a['epsilon']:g}", str(a["steps"]), str(a["eot"])]
        rows.append([*setting, *values, str(a["images"]), f"{a['seconds']:.1f}"])
    return columns, rows


def figures(
    key: Array,
    defense: pj.defense.Defense,
    ebm: pj.models.Model,
    named: list[NamedAttack],
    test: pj.data.Dataset,
    config: Any,
) -> dict[str, tuple[str, bytes]]:
    """The report's figures: name → (text, PNG)."""
    count = min(128, len(test))
    images, labels = test.batch(np.arange(count))
    keys = image_keys(stream_key(key, "figures"), np.arange(count))
    adversarial = pj.jit(named[0].make(config.epsilon))(keys, images, labels)
    found = {"purification": _strip(defense, fold_keys(keys, 1), images, adversarial, labels)}
    found["steps"] = _steps(defense, fold_keys(keys, 1), images, adversarial)
    if ebm.role == "energy":
        found["energy"] = _energies(defense, ebm, fold_keys(keys, 1), images, adversarial)
    found["accuracy_against_epsilon"] = _sweep(
        key, defense, named, test.take(min(64, len(test))), config
    )
    return found


def _strip(defense, keys, images, adversarial, labels) -> tuple[str, bytes]:
    path = np.asarray(jax.jit(defense.purifier.trajectory)(keys, adversarial))
    shown = sorted({0, *np.linspace(1, len(path) - 1, 4).round().astype(int)})
    predict = lambda x: np.asarray(defense.logits_fn(jnp.asarray(x)).argmax(-1))
    columns = ["clean", "attacked", "noised", *(f"step {s}" for s in shown[1:-1]), "purified"]
    stages = [np.asarray(images), np.asarray(adversarial), *(path[s] for s in shown)]
    verdicts = [predict(stage) for stage in stages]
    # Images that the attack turned, so that there is something to see; one of each class.
    turned = [i for i in range(len(labels)) if verdicts[0][i] == labels[i] != verdicts[1][i]]
    of_class = {int(labels[i]): i for i in reversed(turned or range(len(labels)))}
    chosen = sorted(of_class.values())[:6]
    rows = [[stage[i] for stage in stages] for i in chosen]
    captions = [[f"{v[i]}{'' if v[i] == labels[i] else ' ✗'}" for v in verdicts] for i in chosen]
    text = "Below each image: the bare classifier's prediction of it, ✗ where it is wrong."
    return text, plots.image_grid(rows, columns, captions)


def _steps(defense, keys, images, adversarial) -> tuple[str, bytes]:
    lines = {}
    for name, batch in {"clean": images, "attacked": adversarial}.items():
        _, info = pj.jit(defense.purifier)(keys, batch)
        norms = np.asarray(info.score_norms).mean((1, 2))
        sizes = np.asarray(info.step_sizes).mean((1, 2))
        lines[f"step size α, {name}"] = sizes
        lines[f"score norm ‖s‖, {name}"] = norms
    steps = 1 + np.arange(len(norms))
    text = "Means over images and restarts."
    return text, plots.curves(steps, lines, "purification step", "step size, score norm")


def _energies(defense, ebm, keys, images, adversarial) -> tuple[str, bytes]:
    energy_fn = pj.jit(energy.energy_from_network(ebm.network, ebm.params))
    purified = jax.jit(lambda k, x: defense.purifier(k, x)[0][0])(keys, adversarial)
    stages = {"clean": images, "attacked": adversarial, "purified": purified}
    samples = {name: np.asarray(energy_fn(batch)) for name, batch in stages.items()}
    text = "The attack raises the energy of an image; purification lowers it again."
    return text, plots.histograms(samples, "energy E(x)")


def _sweep(key, defense, named, dataset, config) -> tuple[str, bytes]:
    epsilons = [config.epsilon * f for f in (0.0, 1 / 3, 2 / 3, 1.0, 4 / 3, 2.0)]
    images, labels = dataset.batch(np.arange(len(dataset)))
    lines: dict[str, list[float]] = {}
    bands: dict[str, list[tuple[float, float]]] = {}

    def add(name: str, entry: NamedAttack, model) -> None:
        # ε is a leaf of the attack: one compilation serves the whole curve.
        def correct(epsilon: float) -> int:
            run = AttackedAndScored(
                attack=entry.make(epsilon, 10), scorer=evaluation.fresh_draws(model, 1)
            )
            stream = stream_key(key, "sweep")
            mesh = sharding.default_mesh()
            predicted = evaluation.map_images(run, stream, images, labels, mesh=mesh)
            check_classes(predicted, f"{name} at epsilon {epsilon:g}")
            return int((predicted == labels).sum())

        found = [records.wilson(correct(float(e)), len(dataset)) for e in epsilons]
        lines[name] = [interval.value for interval in found]
        bands[name] = [(interval.low, interval.high) for interval in found]

    bare = pj.undefended(defense.logits_fn)
    add("undefended, blind PGD", named[0], bare)
    for entry in named:
        add(f"defended, {entry.name}", entry, defense)
    text = f"{len(dataset)} images, 10 steps each; shaded: 95% intervals."
    return text, plots.curves(
        epsilons, lines, f"ε ({config.norm})", "accuracy", bands, unit_interval=True
    )
