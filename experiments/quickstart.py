"""Trains, attacks and purifies handwritten digits, and writes a report. What ``make demo`` runs.

purify-jax quickstart --workdir=runs/quickstart

Writes results.json, report.html (self-contained), figures/*.png, score_model.safetensors and
classifier.safetensors. Finished training is picked up again from the work directory.
"""

from __future__ import annotations

import time
from pathlib import Path

from absl import flags

import purify_jax as pj
from experiments.common import cli, config_schema, flagging, from_config
from experiments.common.workdirs import claim_workdir
from purify_jax.checks import InputError

flagging.define_config()
flags.DEFINE_string("workdir", "runs/quickstart", "Folder for models, results and the report.")
flags.DEFINE_integer("images", 256, "Test images to attack.")
flags.DEFINE_integer("steps", 40, "Attack steps.")
flags.DEFINE_integer("eot", 8, "Draws whose gradients are averaged (EOT).")
flagging.define_data()
FLAGS = flags.FLAGS
SUMMARY = (
    "An energy-based model, trained by denoising score matching, cleans attacked images in a few "
    "steps along its score. Then a classifier that was trained without it predicts. "
)


def main(argv: list[str]) -> None:
    """Flags in, a report out."""
    del argv
    started = time.monotonic()
    config = flagging.training_config("classifier")
    flagging.training_config("ebm")
    config_schema.check_whole(config)
    settings = {"images": FLAGS.images, "steps": FLAGS.steps, "eot": FLAGS.eot}
    workdir = claim_workdir(FLAGS.workdir, {**config.to_dict(), **settings})
    train = pj.data.load_split(config.dataset, config.train_split, FLAGS.data_dir)
    test = pj.data.load_split(config.dataset, config.test_split, FLAGS.data_dir)
    classifier = _trained(workdir, "classifier", from_config.train_classifier, config, train)
    score_model = _trained(workdir, "score_model", from_config.train_ebm, config, train)

    import jax

    from experiments.story import accuracy, illustrations, page

    key = jax.random.key(config.seed)
    logits_fn = pj.models.logits_fn(classifier)
    defense = pj.Defense(pj.models.adp_purifier(score_model), logits_fn)
    attacks = accuracy.attacks(defense, config.attack, steps=FLAGS.steps, num_samples=FLAGS.eot)
    attacked = test.take(min(FLAGS.images, len(test)))
    results, adversarial = accuracy.run_attacks(
        key, defense, attacks, attacked, test, config.attack, FLAGS.progress
    )
    results = {
        "dataset": config.dataset,
        "seed": config.seed,
        **results,
    }
    illustrated = illustrations.sections(
        key, defense, score_model, attacks, adversarial, test, config.attack
    )
    results["seconds"] = round(time.monotonic() - started, 1)
    page.write(
        workdir,
        results,
        illustrated,
        title=f"Adversarial purification of {results['dataset']}",
        summary=SUMMARY + accuracy.THREE_ATTACKS,
        verdict=accuracy.verdict(results),
    )


def _trained(workdir: Path, name: str, train, config, dataset) -> pj.models.Model:
    path = workdir / f"{name}.safetensors"
    if path.exists():
        return pj.models.load_model(path)
    execution = pj.Execution(workdir=workdir / name, progress=FLAGS.progress)
    model, finished = train(config, dataset, execution)
    if not finished:
        raise InputError("training: stopped by SIGTERM; the same command continues")
    pj.models.save_model(path, model)
    return model


if __name__ == "__main__":
    cli.run(main)
