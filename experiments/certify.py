"""Certified accuracy by randomised smoothing, of the classifier alone and of the defense.

purify-jax certify --score_model=runs/quickstart/score_model.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --sigma=0.25 --n=2000 \
    --noise_scale=0 --num_restarts=1 --workdir=runs/certification

The smoothing noise can take the place of the purifier's own: --noise_scale=0 certifies more.

Resumes from --workdir. Writes records_*.jsonl, results.json and report.html.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, loading, number_flags, shards

loading.define(images=100, batch_size=10, own_code=True)
number_flags.define("sigma", 0.25, "Smoothing noise, in units of a pixel's range.")
flags.DEFINE_integer("n0", 100, "Samples that select the class.")
flags.DEFINE_integer("n", 1000, "Samples that bound its share.")
number_flags.define("alpha", 0.001, "Probability that a certificate is wrong.")
flags.DEFINE_integer(
    "samples_at_once",
    None,
    "Samples of an image side by side (default: 100, fewer where memory asks).",
)
loading.define_undefended()
shards.define()
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, records and a report out."""
    del argv
    pj.evaluation.certification.check_settings(FLAGS.sigma, FLAGS.n0, FLAGS.n, FLAGS.alpha)
    loaded = loading.load()
    models = loading.chosen_models(loaded)
    dataset = loaded.dataset.take(FLAGS.images)
    settings = loading.settings("sigma", "n0", "n", "alpha")
    work = lambda place, shard: {
        label: pj.evaluation.certify(
            loading.key(),
            model,
            dataset,
            sigma=FLAGS.sigma,
            n0=FLAGS.n0,
            n=FLAGS.n,
            alpha=FLAGS.alpha,
            samples_at_once=FLAGS.samples_at_once,
            label=label,
            execution=shards.execution(place, shard),
        )
        for label, model in models.items()
    }
    join = lambda place: [shards.merge(place, f"records_{m}.jsonl", _units) for m in models]
    write = lambda place, found: _write(place, found, len(dataset), settings)
    shards.run(work, join, write, settings, models=loaded.models, data=dataset)


def _units(header: Mapping[str, Any]) -> list[list[tuple[str, int]]]:
    every = pj.devices.batches.batches(range(header["images"]), header["batch_size"])
    return [[("certify", int(i)) for i in batch] for batch, _ in every]


def _write(workdir, found: dict, images: int, settings: dict) -> None:
    certified_accuracy = pj.evaluation.certified_accuracy
    largest = FLAGS.sigma * 4
    radii = np.linspace(0, largest, 41).tolist()
    curves = {label: certified_accuracy(r, radii) for label, r in found.items()}
    figure = pj.reporting.plots.curves(
        radii,
        {label: [i.value for i in curve] for label, curve in curves.items()},
        "radius (L2)",
        "certified accuracy",
        {label: [(i.low, i.high) for i in curve] for label, curve in curves.items()},
        unit_interval=True,
        markers=False,
    )
    chosen = [0, *(FLAGS.sigma * f for f in (0.5, 1, 1.5, 2, 3))]
    columns = ["radius", *found]
    rows = [
        [f"{r:.3g}", *(str(certified_accuracy(found[m], [r])[0]) for m in found)] for r in chosen
    ]
    abstained = {
        m: pj.evaluation.wilson(
            sum(r["prediction"] == pj.evaluation.certification.ABSTAIN for r in found[m]),
            len(found[m]),
        )
        for m in found
    }
    rows.append(["abstained", *(str(interval) for interval in abstained.values())])
    summary = (
        f"Randomised smoothing (Cohen et al. 2019), σ = {FLAGS.sigma:g}, n₀ = {FLAGS.n0}, "
        f"n = {FLAGS.n}, α = {FLAGS.alpha:g}, {images} images. Share of images whose smoothed "
        "prediction is right and cannot change within the L2 radius; each certificate is wrong "
        "with probability at most α."
    )
    alt = "Line chart: certified accuracy falls with the radius; the table has the numbers."
    text = "Shaded: 95% intervals."
    sections = [
        pj.reporting.Section("Certified accuracy", text, columns, rows, figure=figure, alt=alt)
    ]
    pj.reporting.pages.write_results(
        workdir,
        title="Certification",
        summary=summary,
        columns=columns,
        rows=rows,
        sections=sections,
        content={
            "settings": settings,
            "radii": radii,
            "certified_accuracy": curves,
            "abstained": abstained,
        },
        seed=FLAGS.seed,
        figures={"certified_accuracy": figure},
        verdict=[_verdict(found)],
    )


def _verdict(found: dict) -> str:
    certified = lambda model: pj.evaluation.certified_accuracy(found[model], [FLAGS.sigma])[0]
    at = lambda model: pj.reporting.verdicts.share(certified(model))
    kept = "; ".join(f"{model} {at(model)}" for model in found)
    return f"Certified right within an L2 radius of {FLAGS.sigma:g}: {kept}."


if __name__ == "__main__":
    cli.run(main)
