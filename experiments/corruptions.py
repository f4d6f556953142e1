"""Accuracy under the common corruptions, of the classifier alone and of the defense.

purify-jax corruptions --score_model=runs/quickstart/score_model.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --workdir=runs/corruptions

--corruptions_dir=DIR reads ready-made CIFAR-10-C files instead. Resumes from --workdir.
"""

from pathlib import Path

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, loading, shards
from purify_jax.checks import InputError
from purify_jax.corruptions import EXTRA, NAMES, SEVERITIES, check_name, corrupt

loading.define(images=360, batch_size=128, own_code=True)
flags.DEFINE_list("corruptions", list(NAMES), "Which corruptions.")
flags.DEFINE_string("corruptions_dir", None, "A CIFAR-10-C folder (<corruption>.npy, labels.npy).")
shards.define()
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, records and a report out."""
    del argv
    flagging.check_chosen("corruptions")
    for name in FLAGS.corruptions:
        check_name(name)
    loaded = loading.load()
    dataset = loaded.dataset.take(FLAGS.images)
    names = FLAGS.corruptions
    load = lambda name, severity: pj.evaluation.corruption.corrupted_dataset(
        dataset, name, severity, FLAGS.seed
    )
    if FLAGS.corruptions_dir:
        classes = dataset.num_classes
        load = lambda name, severity: pj.evaluation.corruption.load_folder(
            FLAGS.corruptions_dir, name, severity, classes
        ).take(FLAGS.images)
        shape = load(names[0], 1).image_shape
        if shape != dataset.image_shape:
            raise InputError(
                f"corruptions_dir: images are {shape}, expected the model's {dataset.image_shape}"
            )
    work = lambda place, shard: pj.evaluation.evaluate_corrupted(
        loading.key(), loaded.models, load, names=names, execution=shards.execution(place, shard)
    )
    count = len(load(names[0], 1))
    units = [[(f"{n} {s}", i) for i in range(count)] for n in names for s in SEVERITIES]
    join = lambda place: [
        shards.merge(place, f"records_{m}.jsonl", lambda header: units) for m in loaded.models
    ]
    write = lambda place, found: _write(place, found, _sheet(load, dataset, names))
    settings = loading.settings("corruptions", "corruptions_dir")
    shards.run(work, join, write, settings, models=loaded.models, data=dataset)


def _sheet(load, dataset, names) -> bytes:
    """The first image under every corruption and severity."""
    images, _ = dataset.batch(np.array([0]))
    if FLAGS.corruptions_dir:
        stages = lambda name: [load(name, s).batch(np.array([0]))[0][0] for s in SEVERITIES]
    else:
        stages = lambda name: [corrupt(images, name, s, seed=FLAGS.seed)[0] for s in SEVERITIES]
    rows = [[images[0], *stages(name)] for name in names]
    labels = [name.replace("_", "\n") for name in names]
    return pj.reporting.plots.image_grid(rows, ["clean", *map(str, SEVERITIES)], row_labels=labels)


def _verdict(means: "dict[str, pj.evaluation.Interval]") -> str:
    share = lambda m: f"{means[m].value:.1%}"
    kept = ", ".join(f"{m} {share(m)}" for m in means if m != "undefended")
    kept = kept or "no defense was measured"
    return f"Of corrupted images the bare classifier has {share('undefended')} right on average; {kept}."


def _right_answers(workdir: Path, model: str) -> np.ndarray:
    """[images, corruptions × severities], of the benchmark's corruptions; of all where none of those was chosen."""
    _, records = pj.evaluation.read_records(workdir / f"records_{model}.jsonl")
    names = [name for name in FLAGS.corruptions if name not in EXTRA] or FLAGS.corruptions
    return pj.evaluation.corruption.right_answers(records, names)


def _write(workdir, found, sheet: bytes) -> None:
    names = list(next(iter(found.values())))
    columns = ["corruption", *(f"{m}, {s}" for m in found for s in SEVERITIES)]
    rows = [
        [name, *(f"{found[m][name][s].value:.3f}" for m in found for s in SEVERITIES)]
        for name in names
    ]
    right = {m: _right_answers(Path(workdir), m) for m in found}
    means = {m: pj.evaluation.worst_of.average(answers) for m, answers in right.items()}
    mce = {
        m: pj.evaluation.corruption.mean_corruption_error(table, found["undefended"])
        for m, table in found.items()
    }
    summary_rows = [[m, str(means[m]), f"{mce[m]:.3f}"] for m in found]
    images = next(iter(found["undefended"][names[0]].values())).images
    half = max(
        (i.high - i.low) / 2 for t in found.values() for row in t.values() for i in row.values()
    )
    note = (
        f"{images} images, one draw each; 95% intervals of single cells are at most ±{half:.3f}. "
        f"Means are over the 15 corruptions of the benchmark, without {', '.join(EXTRA)}. mCE: errors "
        "relative to the undefended classifier's, averaged over corruptions."
    )
    heat = pj.reporting.plots.heat_map(
        names,
        [f"{m[:3]}. {s}" for m in found for s in SEVERITIES],
        [[found[m][n][s].value for m in found for s in SEVERITIES] for n in names],
    )
    sections = [
        pj.reporting.Section("Summary", note, ["model", "mean accuracy", "mCE"], summary_rows),
        pj.reporting.Section(
            "Accuracy",
            "One row per corruption, one column per model and severity (1 to 5).",
            columns,
            rows,
            heat,
            alt="The same numbers as the table, as colours.",
            pictures=True,
        ),
        pj.reporting.Section(
            "Contact sheet",
            "Columns: severities.",
            figure=sheet,
            alt="The first image under every corruption (rows) at severities 1 to 5 (columns).",
            pictures=True,
        ),
    ]
    means_table = pj.reporting.text_table(["model", "mean accuracy", "mCE"], summary_rows)
    pj.reporting.pages.write_results(
        workdir,
        title="Common corruptions",
        summary="",
        columns=columns,
        rows=rows,
        sections=sections,
        content={
            "settings": loading.settings("corruptions_dir"),
            "mean_accuracy": means,
            "mce": mce,
            "accuracy": found,
            "per_image": {
                m: {"draws": answers.shape[1], "correct_draws": answers.sum(axis=1).tolist()}
                for m, answers in right.items()
            },
        },
        seed=FLAGS.seed,
        figures={"accuracy": heat, "contact_sheet": sheet},
        verdict=[_verdict(means)],
        notes=[means_table],
    )


if __name__ == "__main__":
    cli.run(main)
