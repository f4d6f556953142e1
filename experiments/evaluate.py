"""Attacks a purifier with a classifier, and the classifier alone; writes records and a report.

python -m experiments.evaluate --ebm=runs/quickstart/ebm.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --dataset=digits \
    --suite=honest --epsilon=0.15 --images=128 --workdir=runs/evaluation

Resumes from --workdir: an evaluation that was killed continues and ends with the same records.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, loading, shards
from experiments.common.adversarial import AdversarialFiles
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError, check_file_name

#: The names of ``attacks.suites.SUITES`` and ``evaluation.sweeps.NAMES``, said here so that flags are
#: read before JAX is loaded; tests/project/test_start.py compares them.
SUITES = ("clean", "exhaustive", "honest", "paper", "rand", "standard")
SWEEPS = ("epsilon", "eot", "steps", "steps_eot")

loading.define(images=128, batch_size=32)
loading.define_ball()
loading.define_undefended()
flags.DEFINE_enum("suite", "honest", SUITES, "Which attacks.")
flags.DEFINE_integer("draws", 10, "Scoring draws.")
flags.DEFINE_integer("eot", None, "EOT samples (default: the suite's).")
flags.DEFINE_integer("steps", None, "Attack steps (default: the suite's).")
flags.DEFINE_integer("eot_at_once", None, "EOT samples side by side (default: 4 or fewer).")
flags.DEFINE_integer(
    "surrogate_restarts",
    None,
    "Restarts of the purifier in the surrogate that attacks optimise on (default: all).",
)
flags.DEFINE_list("skip", None, "Attacks to leave out, by name ('shared keys' too).")
flags.DEFINE_integer("probe_images", 48, "Images of the red flags' attacks; 0 for none.")
flags.DEFINE_enum("sweep", "none", ["none", *SWEEPS], "Also draw a curve over this.")
flags.DEFINE_integer(
    "block", None, "Images that pass all attacks before the next ones start (default: all)."
)
shards.define()
flags.DEFINE_bool("save_adversarial", False, "Save adversarial/MODEL/ATTACK.npz, to be scored.")
flags.DEFINE_bool("save_images", False, "Save adversarial images (.npz, PNG), checked again.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, records and a report out."""
    del argv
    run = pj.evaluation.suite_runs.SuiteRun(
        suite=FLAGS.suite,
        draws=FLAGS.draws,
        batch_size=FLAGS.batch_size,
        probe_images=FLAGS.probe_images,
        sweep=None if FLAGS.sweep == "none" else FLAGS.sweep,
        block=FLAGS.block,
        skip=tuple(FLAGS.skip or ()),
    )
    flagging.check_chosen("skip")
    shard = shards.chosen()
    if shard != (0, 1) and (FLAGS.save_adversarial or FLAGS.save_images):
        raise InputError("shard: got it beside saved images, expected one or the other")
    loaded = loading.load()
    models, dataset = loading.chosen_models(loaded), loaded.dataset.take(FLAGS.images)
    # Before the folder is claimed: a name that is none must not belong to its settings.
    pj.evaluation.suite_runs.chosen_attacks(run, models, _options())
    files, keep = _keepers(models, dataset)
    work = lambda place, part: _run(
        models, dataset, dataclasses.replace(run, shard=part), place, keep
    )
    join = lambda place: _merge(place, list(models), run)
    done = shards.run(work, join, _settings(), "evaluation.json")
    if done is None:
        return
    workdir, result = done
    for label, kept in files.items():
        kept.finish(result.records[label])
    summary = (
        f"Suite {FLAGS.suite}, {FLAGS.norm} ε = {FLAGS.epsilon:g}, {FLAGS.images} images, "
        f"{FLAGS.draws} scoring draws."
    )
    if FLAGS.skip:
        summary += f" Left out: {', '.join(FLAGS.skip)}."
    if FLAGS.surrogate_restarts is not None:
        summary += (
            f" Restarts in the surrogate that attacks optimise on: {FLAGS.surrogate_restarts}."
        )
    pj.reporting.robustness.write_robustness(workdir, result, summary, _settings(), FLAGS.seed)
    shards.finish()


def _run(
    models: dict,
    dataset: pj.data.Dataset,
    run: pj.evaluation.suite_runs.SuiteRun,
    workdir: Path,
    keep: dict,
):
    with pj.devices.progress.bar(unit="image", disable=not FLAGS.progress) as bar:
        return pj.evaluation.suite_runs.evaluate_suite(
            models.get("defended") or models["undefended"],
            dataset,
            _options(),
            run,
            seed=FLAGS.seed,
            models=models,
            workdir=workdir,
            mesh=shards.mesh(),
            on_progress=_Progress(bar),
            keep_images=keep,
        )


def _merge(workdir: Path, labels: list[str], run: pj.evaluation.suite_runs.SuiteRun) -> None:
    shared = ["shared_keys"] if run.has_shared_keys and "defended" in labels else []
    for label in [*labels, *shared]:
        shards.merge(workdir, f"records_{label}.jsonl", _units)


def _units(header: Mapping[str, Any]) -> list[list[tuple[str, int]]]:
    blocks = pj.evaluation.attacked.shard_blocks(header["images"], header["block"], (0, 1))
    return [[(a, i) for a in ("clean", *header["attacks"]) for i in block] for block in blocks]


def _keepers(models: dict, dataset: pj.data.Dataset) -> tuple[dict, dict]:
    """Files of adversarial images by model, and what is called with the images of every batch."""
    files, keep = {}, {}
    workdir = Path(FLAGS.workdir)
    if FLAGS.save_adversarial:
        ball = FLAGS.norm, FLAGS.epsilon
        place = workdir / "adversarial"
        files = keep = {m: AdversarialFiles(place / m, dataset, *ball) for m in models}
    if FLAGS.save_images:
        pictures = {m: _keeper(workdir / "images" / m, models[m], dataset) for m in models}
        keep = {m: _both(pictures[m], files.get(m)) for m in models}
    return files, keep


class _Progress:
    """Says which attack runs on which model, and what has survived so far."""

    def __init__(self, bar: Any):
        self.bar, self.label, self.records = bar, "", []

    def __call__(self, label: str, attack: str, done: int, batch: list | None) -> None:
        if label != self.label:
            self.label, self.records = label, []
        if batch is None:
            self.bar.set_description(f"{label}, {attack}: compiling")
            return
        self.records += batch
        robust = pj.evaluation.suite_runs.survivors_so_far(self.records)
        self.bar.set_description(f"{label}, {attack}: robust so far {robust:.3f}")
        if attack != "clean":
            self.bar.update(len(batch))


def _settings() -> dict:
    more = ("suite", "norm", "epsilon", "draws", "eot", "steps", "block")
    # Named only where given: records of before these flags belong to the same settings.
    given = [name for name in ("surrogate_restarts", "skip") if FLAGS[name].value is not None]
    return loading.settings(*more, *given)


def _options() -> pj.attacks.suites.Options:
    options = pj.attacks.suites.Options(
        norm=FLAGS.norm,
        epsilon=FLAGS.epsilon,
        steps=FLAGS.steps,
        eot=FLAGS.eot,
        surrogate_restarts=FLAGS.surrogate_restarts,
    )
    given = FLAGS.eot_at_once
    return options if given is None else dataclasses.replace(options, samples_at_once=given)


def _both(first, second):
    def keep(*arguments) -> None:
        first(*arguments)
        if second is not None:
            second(*arguments)

    return keep


def _keeper(folder: Path, model: pj.defense.Defense, dataset):
    """Saves adversarial images as .npz (exact) and PNG (8 bits), and predicts both from disk."""
    from tqdm import tqdm

    predict = pj.jit(model)

    def keep(attack: str, indices: np.ndarray, adversarial: np.ndarray) -> None:
        name = attack.replace(" ", "_").replace("+", "_")
        check_file_name("attack", name)
        place = folder / name
        buffer = io.BytesIO()
        np.savez(buffer, indices=indices, images=adversarial)
        write_atomically(place / f"{indices[0]:06d}.npz", buffer.getvalue())
        for index, image in zip(indices, adversarial, strict=True):
            pixels = np.rint(image * 255).astype(np.uint8)
            write_atomically(place / f"{index:06d}.png", pj.data.png(pixels))
        again = np.load(place / f"{indices[0]:06d}.npz")["images"]
        rounded = np.stack(
            [pj.data.read_image(place / f"{i:06d}.png", channels=again.shape[-1]) for i in indices]
        )
        keys = pj.image_keys(loading.key(), indices)
        labels = dataset.labels[indices]
        right = lambda x: int((np.asarray(predict(keys, x)).argmax(-1) == labels).sum())
        tqdm.write(
            f"{attack}: of {len(indices)} saved images {right(again)} are classified right from "
            f".npz, {right(pj.data.to_float(rounded))} after rounding to 8 bits (PNG)"
        )

    return keep


if __name__ == "__main__":
    cli.run(main)
