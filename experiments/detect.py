"""How well the score norm and the energy drop detect attacked images, and how well an attack evades them.

python -m experiments.detect --score_model=runs/quickstart/score_model.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --epsilon=0.15 --workdir=runs/detection

The images after the attacked ones calibrate the threshold. Writes results.json and report.html.
"""

import dataclasses
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, loading, shards
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError

loading.define(images=180, batch_size=60, score_model_required=True)
loading.define_ball()
flags.DEFINE_integer(
    "calibration_images", 180, "Clean images that fit the threshold; those after the attacked."
)
flags.DEFINE_float("false_positive_rate", 0.05, "Share of clean images that may be flagged.")
flags.DEFINE_float("fraction", 0.2, "d: noise below the threshold, as a fraction of full noise.")
flags.DEFINE_integer("steps", 40, "Attack steps.")
flags.DEFINE_integer("eot", 4, "Draws whose gradients are averaged (EOT).")
shards.define()
FLAGS = flags.FLAGS

NOTE = (
    "AUROC with DeLong's 95% interval; TPR: share of attacked images above the threshold that "
    "1% or 5% of the calibration images exceed, with Wilson's. The evading attack knows the "
    "detector and follows exact gradients: down the statistic while detected, else up the "
    "classifier's margin at a right angle to it. Evaded: misclassified and not detected."
)


def main(argv: list[str]) -> None:
    """Flags in, curves and a report out."""
    del argv
    loaded = loading.load()
    if not isinstance(loaded.defense.purifier, pj.purifiers.ADP):
        raise InputError(
            "score_model: its method is not adp, expected adp, whose noise the rule decides"
        )
    if FLAGS.calibration_images < 1:
        raise InputError(f"calibration_images: got {FLAGS.calibration_images}, expected at least 1")
    wanted = FLAGS.images + FLAGS.calibration_images
    whole = loaded.dataset.take(wanted)
    names = ("calibration_images", "false_positive_rate", "fraction", "steps", "eot")
    detection = pj.evaluation.detection
    key = loading.key()
    score_fn = pj.models.score_fn(loaded.score_model)
    energy_fn = None
    if loaded.score_model.role == "energy":
        energy_fn = pj.energy.NetworkEnergy(loaded.score_model.network, loaded.score_model.params)
    defense = loaded.defense
    norm = detection.score_norm(score_fn)
    statistics = {
        "score norm": norm,
        "energy drop": detection.EnergyDrop(score_fn, defense.purifier, energy_fn),
    }
    clean = {n: _values(key, s, whole, FLAGS.images, wanted) for n, s in statistics.items()}
    threshold = detection.fit_threshold(clean["score norm"], FLAGS.false_positive_rate)
    rule = defense.replace(
        purifier=detection.deciding_purifier(defense.purifier, norm, threshold, FLAGS.fraction)
    )
    attacked = whole.take(FLAGS.images)
    batches = list(_attacks(loaded.undefended, rule, norm, threshold))
    work = lambda place, shard: _attacked_images(key, batches, attacked, place, shard)
    join = lambda place: shards.gather(place, [[str(_kept("", name))] for name, _ in batches])
    made_with = pj.evaluation.identity(models=loaded.models, data=whole)
    done = shards.run(work, join, loading.settings("norm", "epsilon", *names), made_with)
    if done is None:
        return
    workdir, made = done
    images = {"clean": attacked.batch(np.arange(len(attacked)))[0], **made}
    models = {"undefended": loaded.undefended, "purified": defense, "decision rule": rule}
    predictions = {label: pj.Partial(_predicted_class, model) for label, model in models.items()}
    results = {
        name: _judge(key, name, batch, attacked, predictions, statistics, clean, threshold, images)
        for name, batch in images.items()
    }
    _write(workdir, results, statistics, images, attacked, key, threshold)
    shards.finish()


def _kept(workdir, name: str) -> Path:
    return Path(workdir) / "adversarial" / f"{re.sub(r'[^a-z]+', '_', name.lower())}.npz"


def _attacked_images(key, chosen, dataset, workdir, shard) -> dict[str, np.ndarray]:
    """The images of this shard's attacks, made or read back."""
    images = {}
    mine = pj.devices.batches.of_shard(chosen, shard, f"{len(chosen)} attacks")
    for name, attack in pj.devices.progress.bar(
        mine, desc="attacks", unit="attack", disable=not FLAGS.progress
    ):
        path = _kept(workdir, name)
        if not path.is_file():
            made = _attacked(key, name, attack, dataset)
            write_atomically(path, pj.evaluation.adversarial.npz(images=made))
        try:
            with np.load(path) as archive:
                images[name] = archive["images"]
        except (ValueError, EOFError, LookupError, zipfile.BadZipFile) as error:
            raise InputError(
                f"workdir: {path} is damaged ({error}), expected it as written; without it, the attack is "
                "made again"
            ) from error
        clean, _ = dataset.batch(np.arange(len(dataset)))
        pj.evaluation.predictions.check_adversarial(
            name, images[name], clean, pj.evaluation.predictions.ball_of(attack)
        )
    return images


def _attacks(bare, rule, norm, threshold):
    """The blind attack, the exact one on the decision rule, and two that evade the detector."""
    atk, evading = pj.attacks, pj.evaluation.detection.Evading
    pgd = lambda gradient: atk.PGD(
        gradient,
        norm=FLAGS.norm,
        epsilon=FLAGS.epsilon,
        num_steps=FLAGS.steps,
    )
    eot = lambda gradient: atk.EOT(gradient, num_samples=FLAGS.eot)
    yield "blind", pgd(atk.ExactGradient(bare))
    yield "exact+EOT on the rule", pgd(eot(atk.ExactGradient(rule)))
    yield "evading, classifier alone", pgd(evading(bare, norm, threshold))
    yield "evading, decision rule", pgd(eot(evading(rule, norm, threshold)))


def _predicted_class(model, keys, images):
    # Draws of its own: an image's statistic is computed from the same keys.
    return pj.evaluation.predictions.predicted_class(model(pj.keys.stream(keys, "predict"), images))


def _values(key, statistic, dataset, start: int, stop: int) -> np.ndarray:
    """A statistic of the clean images start..stop, in batches."""
    images, _ = dataset.batch(np.arange(start, stop))
    return _of_images(key, statistic, images, start)


def _of_images(key, function, images: np.ndarray, start: int = 0) -> np.ndarray:
    return _mapped(function, pj.stream_key(key, "statistic"), images, first=start)


def _attacked(key, name: str, attack, dataset: pj.data.Dataset) -> np.ndarray:
    images, labels = dataset.batch(np.arange(len(dataset)))
    return _mapped(attack, pj.stream_key(key, f"attack {name}"), images, labels)


def _mapped(function, key, *arrays: np.ndarray, first: int = 0) -> Any:
    execution = dataclasses.replace(shards.execution(), progress=False)
    return pj.evaluation.map_images(function, key, *arrays, first=first, execution=execution)


def _judge(key, name, batch, dataset, models, statistics, clean, threshold, images) -> dict:
    detection, labels = pj.evaluation.detection, dataset.labels
    row: dict = {}
    flagged = _of_images(key, statistics["score norm"], batch) > threshold
    for label, model in models.items():
        predicted = _of_images(key, model, batch)
        pj.evaluation.predictions.check_classes(predicted, f"{label}, {name}")
        wrong = predicted != labels
        row[f"accuracy, {label}"] = pj.evaluation.wilson(int((~wrong).sum()), len(labels))
        row[f"evaded, {label}"] = pj.evaluation.wilson(int((wrong & ~flagged).sum()), len(labels))
    for label, statistic in statistics.items():
        values = _of_images(key, statistic, batch)
        for rate in (0.01, 0.05):
            limit = detection.fit_threshold(clean[label], rate)
            row[f"{label}, TPR at {rate:.0%}"] = detection.flagged_share(values, limit)
        if name != "clean":
            reference = _of_images(key, statistic, images["clean"])
            row[f"{label}, AUROC"] = detection.auroc(reference, values)
    return row


def _verdict(results) -> list[str]:
    area = lambda name: f"{results[name]['score norm, AUROC'].value:.3f}"
    ignorant, knowing = "blind", "evading, classifier alone"
    if ignorant not in results or knowing not in results:
        return []
    return [
        f"The score norm finds a blind attack with an AUROC of {area(ignorant)} (0.5 is guessing), and one that "
        f"knows the detector with {area(knowing)}.",
        "Believe the second: an attacker may know the detector.",
    ]


def _write(workdir, results, statistics, images, dataset, key, threshold) -> None:
    detection, plots = pj.evaluation.detection, pj.reporting.plots
    columns = ["measure", *results]
    fields = dict.fromkeys(field for row in results.values() for field in row)
    rows = [[field, *(str(row.get(field, "")) for row in results.values())] for field in fields]
    sections = [pj.reporting.Section("Detection", NOTE, columns, rows)]
    figures = {}
    for label, statistic in statistics.items():
        values = {name: _of_images(key, statistic, batch) for name, batch in images.items()}
        curves = {n: detection.roc(values["clean"], v) for n, v in values.items() if n != "clean"}
        figure = plots.parametric(curves, "false-positive rate", "true-positive rate")
        figures[f"roc_{label}".replace(" ", "_")] = figure
        histogram = plots.histograms(values, label)
        sections += [
            pj.reporting.Section(
                f"ROC, {label}",
                "Dotted: guessing.",
                figure=figure,
                alt="A curve per attack: share of attacked images found against share of clean ones flagged; "
                "the table has the areas.",
            ),
            pj.reporting.Section(
                f"Distribution, {label}",
                figure=histogram,
                alt=f"A histogram of the {label} for clean images and for every attack's, on one axis.",
            ),
        ]
    shown = [[batch[i] for batch in images.values()] for i in range(min(5, len(dataset)))]
    alt = f"{len(shown)} images in rows; columns: {', '.join(images)}."
    grid = plots.image_grid(shown, list(images))
    sections.append(pj.reporting.Section("Images", figure=grid, alt=alt, pictures=True))
    summary = (
        f"{FLAGS.norm} ε = {FLAGS.epsilon:g}, {FLAGS.steps} steps, EOT {FLAGS.eot}, {len(dataset)} "
        f"images; threshold {threshold:.4g} from {FLAGS.calibration_images} clean images; "
        f"rule: full noise above it, {FLAGS.fraction:g} of it below."
    )
    settings = loading.settings("norm", "epsilon", "false_positive_rate", "fraction", "steps")
    pj.reporting.pages.write_results(
        workdir,
        title="Detection",
        summary=summary,
        columns=columns,
        rows=rows,
        sections=sections,
        content={"settings": settings, "threshold": threshold, "attacks": results},
        seed=FLAGS.seed,
        figures=figures,
        verdict=_verdict(results),
    )


if __name__ == "__main__":
    cli.run(main)
