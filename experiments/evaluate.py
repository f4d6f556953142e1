"""Attacks a purifier with a classifier, and the classifier alone; writes records and a report.

purify-jax evaluate --score_model=runs/quickstart/score_model.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --dataset=digits \
    --suite=honest --epsilon=0.15 --images=128 --workdir=runs/evaluation

Resumes from --workdir: an evaluation that was killed continues and ends with the same records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, loading, shards
from experiments.common.workdirs import claim_workdir
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError

#: The names of ``attacks.suites.SUITES`` and ``evaluation.sweeps.NAMES``, said here so that flags are
#: read before JAX is loaded; tests/project/test_start.py compares them.
SUITES = ("clean", "exhaustive", "honest", "paper", "rand", "standard")
SWEEPS = ("epsilon", "eot", "steps", "steps_eot")

loading.define(images=128, batch_size=32, own_code=True)
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
flags.DEFINE_integer("block", None, "Images attacked before the next ones (default: all).")
flags.DEFINE_float(
    "minutes",
    None,
    "Time for all: steps, then images are given up.",
)
shards.define()
flags.DEFINE_bool("save_adversarial", False, "Save adversarial/MODEL/ATTACK.npz, to be scored.")
flags.DEFINE_bool("save_images", False, "Also save images/MODEL/ATTACK/*.png, checked again.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, records and a report out."""
    del argv
    if loading.own_code() or FLAGS.minutes is not None:
        return _audit()
    run = pj.evaluation.suite_runs.SuiteRun(
        suite=FLAGS.suite,
        draws=FLAGS.draws,
        probe_images=FLAGS.probe_images,
        sweep=None if FLAGS.sweep == "none" else FLAGS.sweep,
        skip=tuple(FLAGS.skip or ()),
    )
    flagging.check_chosen("skip")
    saves = FLAGS.save_adversarial or FLAGS.save_images
    if shards.chosen() != (0, 1) and saves:
        raise InputError("shard: got it beside saved images, expected one or the other")
    loaded = loading.load()
    models, dataset = loading.chosen_models(loaded), loaded.dataset.take(FLAGS.images)
    label = list(models)[-1]
    # Before the folder is claimed: settings with an unknown name must not be written there.
    run.check_skip(models, _options())
    place = Path(FLAGS.workdir) / "adversarial"
    files = {
        m: pj.evaluation.AdversarialFiles(place / m, dataset, FLAGS.norm, FLAGS.epsilon)
        for m in (models if saves else ())
    }
    work = lambda place, shard: pj.evaluation.suite_runs.evaluate_suite(
        models[label],
        dataset,
        _options(),
        run,
        seed=FLAGS.seed,
        label=label,
        beside={m: model for m, model in models.items() if m != label},
        saved=files,
        execution=dataclasses.replace(shards.execution(place, shard), block=FLAGS.block),
    )
    shared = ["shared_keys"] if run.has_shared_keys(models[label]) else []
    names = [f"records_{m}.jsonl" for m in [*models, *shared]]
    join = lambda place: [shards.merge(place, name, _units) for name in names]

    def write(workdir: Path, result: pj.evaluation.suite_runs.SuiteResult) -> None:
        for m, kept in files.items():
            written = kept.finish(result.records[m])
            if FLAGS.save_images:
                _save_pictures(workdir / "images" / m, models[m], written)
        pj.reporting.robustness.write_robustness(
            workdir, result, _summary(FLAGS.draws), _settings(), FLAGS.seed
        )

    shards.run(
        work, join, write, _settings(), models=loaded.models, data=dataset, name="evaluation.json"
    )


#: Flags that an audit has no use for: it decides by itself.
_DECIDED = ("eot", "eot_at_once", "surrogate_restarts", "skip", "block", "shard", "merge", "save_adversarial",
            "save_images")  # fmt: skip


def _audit() -> None:
    """Examines the defense, plans, attacks, and writes the report of an audit."""
    if given := [name for name in _DECIDED if FLAGS[name].value not in (None, False)]:
        raise InputError(f"{given[0]}: got it beside --defense or --minutes, expected none")
    if FLAGS.sweep != "none":
        raise InputError("sweep: got it beside --defense or --minutes, expected none")
    loaded = loading.load()
    dataset, model = loaded.dataset.take(FLAGS.images), list(loaded.models.values())[-1]
    made_with = pj.evaluation.identity(models={"defended": model}, data=dataset)
    settings = _settings() | loading.values("minutes")
    workdir = claim_workdir(FLAGS.workdir, {**settings, "made_with": made_with}, "evaluation.json")
    found = pj.audit(
        model,
        dataset,
        norm=FLAGS.norm,
        epsilon=FLAGS.epsilon,
        suite=FLAGS.suite,
        steps=FLAGS.steps,
        draws=FLAGS.draws,
        minutes=FLAGS.minutes,
        seed=FLAGS.seed,
        execution=shards.execution(workdir),
    )
    pj.reporting.robustness.write_robustness(
        workdir, found.suite, _summary(found.plan.draws), settings, FLAGS.seed, found
    )


def _summary(draws: int) -> str:
    summary = (
        f"Suite {FLAGS.suite}, {FLAGS.norm} ε = {FLAGS.epsilon:g}, {FLAGS.images} images, "
        f"{draws} scoring draws."
    )
    if FLAGS.skip:
        summary += f" Left out: {', '.join(FLAGS.skip)}."
    if FLAGS.surrogate_restarts is not None:
        summary += (
            f" Restarts in the surrogate that attacks optimise on: {FLAGS.surrogate_restarts}."
        )
    return summary


def _units(header: Mapping[str, Any]) -> list[list[tuple[str, int]]]:
    blocks = pj.evaluation.attacked.shard_blocks(header["images"], header["block"], (0, 1))
    return [[(a, i) for a in ("clean", *header["attacks"]) for i in block] for block in blocks]


def _settings() -> dict[str, Any]:
    more = ("suite", "norm", "epsilon", "draws", "eot", "steps", "block")
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


def _save_pictures(folder: Path, model: pj.defense.Defense, files: Mapping[str, Path]) -> None:
    """Saved images as PNG (8 bits) too; prints how many of both the model has right."""
    predict = pj.jit(model)
    for attack, path in files.items():
        place = folder / path.stem
        with np.load(path) as archive:
            images, labels, indices = (
                archive[name] for name in ("adversarial", "labels", "indices")
            )
        rounded = np.rint(images * 255).astype(np.uint8)
        for index, pixels in zip(indices, rounded, strict=True):
            write_atomically(place / f"{index:06d}.png", pj.data.png(pixels))
        read = lambda i, place=place, c=images.shape[-1]: pj.data.read_image(
            place / f"{i:06d}.png", channels=c
        )
        again = pj.data.to_float(np.stack([read(i) for i in indices]))
        keys = pj.image_keys(loading.key(), indices)
        right = lambda x, k=keys, y=labels: int((np.asarray(predict(k, x)).argmax(-1) == y).sum())
        print(
            f"{attack}: of {len(indices)} saved images {right(images)} are classified right from "
            f".npz, {right(again)} after rounding to 8 bits (PNG)"
        )


if __name__ == "__main__":
    cli.run(main)
