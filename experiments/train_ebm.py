"""Trains an energy model by denoising score matching.

purify-jax train_ebm --config=experiments/configs/digits.py --workdir=runs/digits/ebm

--start goes on from a finished model with a new optimizer: a long training is a chain of such stages.
Resumes from --workdir, to the bit. Writes config.json, metrics.jsonl, checkpoints/ and, when
finished, model.safetensors (the averaged parameters).
"""

from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, from_config
from experiments.common.workdirs import claim_workdir

flagging.define_training()
flags.DEFINE_string(
    "start", None, "Model of the same network to go on from (default: random parameters)."
)
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, a model file out."""
    del argv
    config = flagging.training_config("ebm")
    dataset = flagging.training_data(config)
    start = pj.load_model(FLAGS.start, pj.models.SCORE_ROLES) if FLAGS.start else None
    given = {"start": FLAGS.start} if start else {}
    workdir = claim_workdir(FLAGS.workdir, {"ebm": {**flagging.section(config, "ebm"), **given}})
    model, finished = from_config.train_ebm(config, dataset, start=start, **flagging.how(workdir))
    flagging.finish(model, finished, workdir)


if __name__ == "__main__":
    cli.run(main)
