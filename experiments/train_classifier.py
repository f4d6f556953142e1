"""Trains a classifier.

purify-jax train_classifier --config=experiments/configs/digits.py --workdir=runs/digits/classifier

Resumes from --workdir, to the bit. Writes config.json, metrics.jsonl, checkpoints/ and, when
finished, model.safetensors (the averaged parameters).
"""

from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, from_config
from experiments.common.workdirs import claim_workdir
from purify_jax.checks import InputError

flagging.define_training()
flags.DEFINE_string(
    "score_model", None, "Model that purifies the share config.classifier.purified of the images."
)
flags.DEFINE_string(
    "start", None, "Model of the same network to go on from (default: random parameters)."
)
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, a model file out."""
    del argv
    config = flagging.training_config("classifier")
    dataset = flagging.training_data(config)
    purifier = None
    if FLAGS.score_model and not config.classifier.get("purified"):
        raise InputError(
            "score_model: given, but config.classifier.purified is 0, expected the share of images to purify"
        )
    if "purification" in config.classifier and not FLAGS.score_model:
        raise InputError(
            "score_model: not given, expected one, as config.classifier.purification is"
        )
    if FLAGS.score_model:
        score_model = pj.models.load_model(FLAGS.score_model, pj.models.SCORE_ROLES)
        if tuple(score_model.image_shape) != tuple(dataset.image_shape):
            raise InputError(
                f"score_model: made for images {score_model.image_shape}, expected those of {dataset.name}, "
                f"{tuple(dataset.image_shape)}"
            )
        purifier = from_config.training_purifier(config, score_model)
    start = None
    if FLAGS.start and config.classifier.get("recipe"):
        raise InputError("start: given, but this recipe starts at random, expected none")
    if FLAGS.start:
        start = pj.load_model(FLAGS.start, ("classifier",))
    given = {"start": FLAGS.start} if start else {}
    workdir = claim_workdir(
        FLAGS.workdir, {"classifier": {**flagging.section(config, "classifier"), **given}}
    )
    model, finished = from_config.train_classifier(
        config, dataset, purifier=purifier, start=start, **flagging.how(workdir)
    )
    flagging.finish(model, finished, workdir)


if __name__ == "__main__":
    cli.run(main)
