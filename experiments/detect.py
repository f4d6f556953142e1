"""How well the score norm and the energy drop detect attacked images, and how well an attack evades them.

purify-jax detect --score_model=runs/quickstart/score_model.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --epsilon=0.15 --workdir=runs/detection

The images after the attacked ones calibrate the threshold. Writes results.json and report.html.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, loading, number_flags, shards
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError

loading.define(images=180, batch_size=60, score_model_required=True)
loading.define_ball()
flags.DEFINE_integer(
    "calibration_images", 180, "Clean images that fit the threshold; those after the attacked."
)
number_flags.define("false_positive_rate", 0.05, "Share of clean images that may be flagged.")
number_flags.define("fraction", 0.2, "d: noise below the threshold, as a fraction of full noise.")
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
    wanted = FLAGS.images + FLAGS.calibration_images
    whole = loaded.dataset.take(wanted)
    attacked = whole.take(FLAGS.images)
    detection = pj.evaluation.detection
    defense, score_model = loaded.defense, loaded.score_model
    energy_fn = None
    if score_model.role == "energy":
        energy_fn = pj.energy.NetworkEnergy(score_model.network, score_model.params)
    score_fn = pj.models.score_fn(score_model)
    norm = detection.score_norm(score_fn)
    statistics = {
        "score norm": norm,
        "energy drop": detection.EnergyDrop(score_fn, defense.purifier, energy_fn),
    }
    unattacked, _ = whole.batch(np.arange(FLAGS.images, wanted))
    calibration = {n: _of_images(s, unattacked, FLAGS.images) for n, s in statistics.items()}
    threshold = detection.fit_threshold(calibration["score norm"], FLAGS.false_positive_rate)
    rule = defense.replace(
        purifier=detection.deciding_purifier(defense.purifier, norm, threshold, FLAGS.fraction)
    )
    attacks = list(_attacks(loaded.undefended, rule, norm, threshold))
    work = lambda place, shard: _attacked_images(attacks, attacked, place, shard)
    join = lambda place: shards.gather(place, [[str(_file(n))] for n, _ in attacks])

    def write(workdir: Path, made: dict[str, np.ndarray]) -> None:
        images = {"clean": attacked.batch(np.arange(len(attacked)))[0], **made}
        models = {"undefended": loaded.undefended, "purified": defense, "decision rule": rule}
        predicted = {n: _each(pj.Partial(_predicted_class, m), images) for n, m in models.items()}
        values = {label: _each(statistic, images) for label, statistic in statistics.items()}
        results = {
            name: _judge(name, predicted, values, calibration, threshold, attacked.labels)
            for name in images
        }
        _write(workdir, results, values, images, threshold)

    settings = _settings("calibration_images", "eot")
    shards.run(work, join, write, settings, models=loaded.models, data=whole)


def _settings(*more: str) -> dict[str, Any]:
    names = ("norm", "epsilon", "false_positive_rate", "fraction", "steps")
    return loading.settings(*names, *more)


def _file(name: str) -> Path:
    return Path("adversarial") / f"{re.sub(r'[^a-z]+', '_', name.lower())}.npz"


def _attacked_images(attacks, dataset, workdir, shard) -> dict[str, np.ndarray]:
    """The images of this shard's attacks, made or read back."""
    clean, labels = dataset.batch(np.arange(len(dataset)))
    images = {}
    mine = pj.devices.batches.of_shard(attacks, shard, f"{len(attacks)} attacks")
    for name, attack in pj.devices.progress.bar(
        mine, desc="attacks", unit="attack", disable=not FLAGS.progress
    ):
        path = workdir / _file(name)
        if not path.is_file():
            made = _mapped(f"attack {name}", attack, clean, labels)
            write_atomically(path, pj.evaluation.adversarial.npz(images=made))
        images[name] = pj.evaluation.adversarial.read_npz(path)
        ball = pj.evaluation.predictions.ball_of(attack)
        pj.evaluation.predictions.check_adversarial(name, images[name], clean, ball)
    return images


def _attacks(bare, rule, norm, threshold):
    """The blind attack, the exact one on the decision rule, and two that evade the detector."""
    atk, evading = pj.attacks, pj.evaluation.detection.Evading
    pgd = lambda gradient: atk.PGD(
        gradient, norm=FLAGS.norm, epsilon=FLAGS.epsilon, num_steps=FLAGS.steps
    )
    eot = lambda gradient: atk.EOT(gradient, num_samples=FLAGS.eot)
    yield "blind", pgd(atk.ExactGradient(bare))
    yield "exact+EOT on the rule", pgd(eot(atk.ExactGradient(rule)))
    yield "evading, classifier alone", pgd(evading(bare, norm, threshold))
    yield "evading, decision rule", pgd(eot(evading(rule, norm, threshold)))


def _predicted_class(model, keys, images):
    # Draws of its own: an image's statistic is computed from the same keys.
    return pj.evaluation.predictions.predicted_class(model(pj.keys.stream(keys, "predict"), images))


def _each(function, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: _of_images(function, batch) for name, batch in images.items()}


def _of_images(function, images: np.ndarray, first: int = 0) -> np.ndarray:
    return _mapped("statistic", function, images, first=first)


def _mapped(stream: str, function, *arrays: np.ndarray, first: int = 0) -> np.ndarray:
    execution = dataclasses.replace(shards.execution(), progress=False)
    key = pj.stream_key(loading.key(), stream)
    return pj.evaluation.map_images(function, key, *arrays, first=first, execution=execution)


def _judge(name, predicted, values, calibration, threshold, labels) -> dict:
    """The table's column of one attack: field → share, or area, with its interval."""
    detection, wilson = pj.evaluation.detection, pj.evaluation.wilson
    row: dict = {}
    flagged = values["score norm"][name] > threshold
    for label, classes in predicted.items():
        pj.evaluation.predictions.check_classes(classes[name], f"{label}, {name}")
        wrong = classes[name] != labels
        row[f"accuracy, {label}"] = wilson(int((~wrong).sum()), len(labels))
        row[f"evaded, {label}"] = wilson(int((wrong & ~flagged).sum()), len(labels))
    for label, found in values.items():
        for rate in (0.01, 0.05):
            limit = detection.fit_threshold(calibration[label], rate)
            row[f"{label}, TPR at {rate:.0%}"] = detection.flagged_share(found[name], limit)
        if name != "clean":
            row[f"{label}, AUROC"] = detection.auroc(found["clean"], found[name])
    return row


def _verdict(results) -> list[str]:
    area = lambda name: f"{results[name]['score norm, AUROC'].value:.3f}"
    ignorant, knowing = "blind", "evading, classifier alone"
    return [
        f"The score norm finds a blind attack with an AUROC of {area(ignorant)} (0.5 is guessing), and one that "
        f"knows the detector with {area(knowing)}.",
        "Quote the second number: an attacker may know the detector.",
    ]


def _write(workdir, results, statistics, images, threshold) -> None:
    detection, plots = pj.evaluation.detection, pj.reporting.plots
    columns = ["measure", *results]
    fields = dict.fromkeys(field for row in results.values() for field in row)
    rows = [[field, *(str(row.get(field, "")) for row in results.values())] for field in fields]
    sections = [pj.reporting.Section("Detection", NOTE, columns, rows)]
    figures = {}
    for label, values in statistics.items():
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
    shown = [[batch[i] for batch in images.values()] for i in range(min(5, FLAGS.images))]
    alt = f"{len(shown)} images in rows; columns: {', '.join(images)}."
    grid = plots.image_grid(shown, list(images))
    sections.append(pj.reporting.Section("Images", figure=grid, alt=alt, pictures=True))
    summary = (
        f"{FLAGS.norm} ε = {FLAGS.epsilon:g}, {FLAGS.steps} steps, EOT {FLAGS.eot}, {FLAGS.images} "
        f"images; threshold {threshold:.4g} from {FLAGS.calibration_images} clean images; "
        f"rule: full noise above it, {FLAGS.fraction:g} of it below."
    )
    pj.reporting.pages.write_results(
        workdir,
        title="Detection",
        summary=summary,
        columns=columns,
        rows=rows,
        sections=sections,
        content={"settings": _settings(), "threshold": threshold, "attacks": results},
        seed=FLAGS.seed,
        figures=figures,
        verdict=_verdict(results),
    )


if __name__ == "__main__":
    cli.run(main)
