"""Trains a defense on attacks that go through all of it: noise, purifier, classifier.

purify-jax train_defense --config=digits_defense --classifier=classifier.safetensors \
    --score_model=score_model.safetensors --workdir=runs/digits/defense

Without --score_model, the classifier alone is trained on the same attacks: the control. Resumes from --workdir,
to the bit, and stops if a longer attack shows that the training collapsed. Writes config.json,
metrics.jsonl, checkpoints/ and, when finished, classifier.safetensors and score_model.safetensors.
"""

from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, from_config
from experiments.common.workdirs import claim_workdir
from purify_jax.checks import InputError

flagging.define_training()
flags.DEFINE_string("classifier", None, "Where the classifier starts.", required=True)
flags.DEFINE_string("score_model", None, "Where the purifier starts; none for the control.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, two model files out."""
    del argv
    if "defense" not in FLAGS.config:
        raise InputError("config: has no section 'defense', expected one as in digits_defense")
    config = flagging.training_config("defense")
    classifier = pj.load_model(FLAGS.classifier, ("classifier",))
    score_model = (
        pj.load_model(FLAGS.score_model, ("energy", "score")) if FLAGS.score_model else None
    )
    dataset = flagging.training_data(config)
    given = {"classifier": FLAGS.classifier, "score_model": FLAGS.score_model}
    workdir = claim_workdir(
        FLAGS.workdir, {"defense": {**flagging.section(config, "defense"), **given}}
    )
    made = from_config.train_defense(
        config, dataset, classifier=classifier, score_model=score_model, **flagging.how(workdir)
    )
    if not made.finished:
        print(f"stopped by SIGTERM; saved. The same command continues in {workdir}")
        return
    for name, model in (("classifier", made.classifier), ("score_model", made.score_model)):
        if model is not None:
            pj.models.save_model(workdir / f"{name}.safetensors", model)
            print(f"model: {workdir / name}.safetensors")


if __name__ == "__main__":
    cli.run(main)
