"""Attacks a purifier with a classifier, and the classifier alone; writes records and a report.

python -m experiments.evaluate --ebm=runs/quickstart/ebm.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --dataset=digits \
    --suite=honest --epsilon=0.15 --images=128 --workdir=runs/evaluation

Resumes from --workdir: an evaluation that was killed continues and ends with the same records.
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

import purify_jax as pj
from experiments import cli, loading
from experiments.workdirs import claim_workdir
from purify_jax import evaluation, plots, records, red_flags, sharding, sweeps
from purify_jax.attacks import suite as suites

loading.define(images=128, batch_size=32)
loading.define_ball()
flags.DEFINE_enum("suite", "honest", sorted(suites.SUITES), "Which attacks.")
flags.DEFINE_integer("draws", 10, "Scoring draws.")
flags.DEFINE_integer("eot", None, "EOT samples (default: the suite's).")
flags.DEFINE_integer("steps", None, "Attack steps (default: the suite's).")
flags.DEFINE_integer("eot_at_once", 4, "EOT samples computed side by side; fewer take less memory.")
flags.DEFINE_integer(
    "probe_images", 48, "Images of the short attacks behind the red flags; 0 for none."
)
flags.DEFINE_enum("sweep", "none", ["none", *sorted(sweeps.SWEEPS)], "Also draw a curve over this.")
flags.DEFINE_bool("save_images", False, "Save adversarial images (.npz, PNG) and check them again.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, records and a report out."""
    del argv
    loaded = loading.load()
    models, dataset = loaded.models, loaded.dataset.take(FLAGS.images)
    workdir = claim_workdir(FLAGS.workdir, _settings(), "evaluation.json")

    found = {label: _attack(label, model, dataset, workdir) for label, model in models.items()}
    shared = None
    if FLAGS.ebm and FLAGS.suite == "honest":
        shared = _white_box(models["defended"], dataset, workdir)
    probes = {}
    if FLAGS.ebm and FLAGS.probe_images > 0:
        few = dataset.take(min(FLAGS.probe_images, len(dataset)))
        probes = red_flags.probe(jax.random.key(FLAGS.seed), models["defended"], few, _options())
    curve = None
    if FLAGS.sweep != "none":
        target = models.get("defended", models["undefended"])
        curve = sweeps.run(FLAGS.sweep, jax.random.key(FLAGS.seed), target, dataset, _options())
    _report(workdir, found, shared, probes, curve)


def _settings() -> dict:
    more = ("suite", "norm", "epsilon", "draws", "eot", "steps")
    return loading.settings(*more)


def _options() -> suites.Options:
    return suites.Options(
        norm=FLAGS.norm,
        epsilon=FLAGS.epsilon,
        steps=FLAGS.steps,
        eot=FLAGS.eot,
        samples_at_once=FLAGS.eot_at_once,
    )


def _attack(label: str, model: pj.defense.Defense, dataset, workdir: Path) -> list[records.Record]:
    entries = suites.build(FLAGS.suite, model, _options())
    bar = tqdm(total=len(entries) * len(dataset), unit="image", disable=not FLAGS.progress)
    survivors: dict[int, bool] = {}

    def on_batch(attack: str, done: int, batch: list[records.Record]) -> None:
        for record in batch:
            index = record["index"]
            survivors[index] = survivors.get(index, True) and record["one_draw"]
        robust = sum(survivors.values()) / len(survivors)
        bar.set_description(f"{label}, {attack}: robust so far {robust:.3f}")
        if attack != "clean":
            bar.update(len(batch))

    keep = _keeper(workdir / "images" / label, model, dataset) if FLAGS.save_images else None
    with bar:
        return evaluation.evaluate(
            jax.random.key(FLAGS.seed),
            model,
            {entry.name: entry.attack for entry in entries},
            dataset,
            draws=1 if label == "undefended" else FLAGS.draws,
            batch_size=FLAGS.batch_size,
            path=workdir / f"records_{label}.jsonl",
            header={"suite": FLAGS.suite, "norm": FLAGS.norm, "epsilon": FLAGS.epsilon},
            drop_fallen=suites.SUITES[FLAGS.suite].drop_fallen,
            mesh=sharding.default_mesh(),
            on_start=lambda attack: bar.set_description(f"{label}, {attack}: compiling"),
            on_batch=on_batch,
            keep_images=keep,
        )


def _keeper(folder: Path, model: pj.defense.Defense, dataset):
    """Saves adversarial images as .npz (exact) and PNG (8 bits), and predicts both from disk."""
    predict = jax.jit(model)

    def keep(attack: str, indices: np.ndarray, adversarial: np.ndarray) -> None:
        name = attack.replace(" ", "_").replace("+", "_")
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        np.savez(place / f"{indices[0]:06d}.npz", indices=indices, images=adversarial)
        for index, image in zip(indices, adversarial, strict=True):
            pixels = np.rint(image * 255).astype(np.uint8)
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
                place / f"{index:06d}.png"
            )
        again = np.load(place / f"{indices[0]:06d}.npz")["images"]
        rounded = np.stack(
            [pj.data.read_image(place / f"{i:06d}.png", channels=again.shape[-1]) for i in indices]
        )
        keys = pj.types.image_keys(jax.random.key(FLAGS.seed), indices)
        labels = dataset.labels[indices]
        right = lambda x: int((np.asarray(predict(keys, x)).argmax(-1) == labels).sum())
        tqdm.write(
            f"{attack}: of {len(indices)} saved images {right(again)} are classified right from "
            f".npz, {right(pj.data.to_float(rounded))} after rounding to 8 bits (PNG)"
        )

    return keep


def _white_box(model: pj.defense.Defense, dataset, workdir: Path) -> records.Interval:
    entry = suites.white_box(model, _options())
    found = evaluation.evaluate(
        jax.random.key(FLAGS.seed),
        model,
        {entry.name: entry.attack},
        dataset,
        draws=1,
        batch_size=FLAGS.batch_size,
        path=workdir / "records_shared_keys.jsonl",
        header={"norm": FLAGS.norm, "epsilon": FLAGS.epsilon},
        shared_keys=True,
        mesh=sharding.default_mesh(),
    )
    return records.accuracy(found, entry.name)


def _report(workdir: Path, found: dict[str, list], shared, probes: dict, curve) -> None:
    rows = {label: records.table(r) for label, r in found.items()}
    flags_raised = []
    if "defended" in found:
        flags_raised = red_flags.red_flags(found["defended"], probes, curve=curve)
    columns = [
        "attack",
        *(f"{label} {s}" for label in rows for s in records.SCORINGS[: _width(label)]),
    ]
    body = []
    for index, row in enumerate(next(iter(rows.values()))):
        cells = [
            str(table[index][scoring])
            for label, table in rows.items()
            for scoring in records.SCORINGS[: _width(label)]
        ]
        body.append([row["attack"], *cells])
    worst = [
        str(records.worst_case(found[label], scoring))
        for label in rows
        for scoring in records.SCORINGS[: _width(label)]
    ]
    body.append(["worst case per image", *worst])
    names = [row[0] for row in body]
    groups = {
        label: [table[i]["one_draw"] for i in range(len(table))]
        + [records.worst_case(found[label])]
        for label, table in rows.items()
    }
    if shared is not None:
        blanks = ["" for label in rows for _ in records.SCORINGS[: _width(label)]]
        blanks[_width("undefended")] = str(shared)
        body.append(["PGD, shared keys (deterministic white box)", *blanks])
    figure = plots.bars(
        names,
        {label: [i.value for i in intervals] for label, intervals in groups.items()},
        {label: [(i.low, i.high) for i in intervals] for label, intervals in groups.items()},
    )
    summary = (
        f"Suite {FLAGS.suite}, {FLAGS.norm} ε = {FLAGS.epsilon:g}, {FLAGS.images} images, "
        f"{FLAGS.draws} scoring draws."
    )
    note = (
        "Accuracy with 95% Wilson intervals. one_draw: a single answer; mean: of the mean "
        "probability of all draws; vote: of their majority; worst: all draws right (an attacker who "
        "may resubmit). In suites that drop fallen images, a row counts those as wrong."
    )
    sections = [
        pj.report.Section("Accuracy", note, columns, body, figure=figure),
        pj.report.Section("Red flags", flags=[str(flag) for flag in flags_raised]),
    ]
    if curve is not None:
        sections.append(pj.report.Section(f"Sweep over {curve.name}", figure=sweeps.draw(curve)))
    versions = pj.report.versions()
    footer = f"seed {FLAGS.seed}; " + ", ".join(f"{k} {v}" for k, v in versions.items())
    report = pj.report.write_report(
        workdir / "report.html", "Robustness evaluation", summary, sections, footer
    )
    results = {
        "settings": _settings(),
        "versions": versions,
        "rows": {label: table for label, table in rows.items()},
        "worst_case": {label: records.worst_case(r) for label, r in found.items()},
        "shared_keys": shared,
        "red_flags": [flag._asdict() for flag in flags_raised],
        "probes": probes,
        "sweep": None if curve is None else curve._asdict(),
    }
    pj.checkpoints.write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    print(pj.report.text_table(columns, body))
    for flag in flags_raised:
        print(f"RED FLAG: {flag}")
    print(f"report: {report}")


def _width(label: str) -> int:
    # A deterministic model has one scoring; a defense has four.
    return 1 if label == "undefended" else len(records.SCORINGS)


if __name__ == "__main__":
    cli.run(main)
