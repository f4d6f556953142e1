"""Trains an energy model by denoising score matching.

python -m experiments.train_ebm --config=experiments/configs/digits.py --workdir=runs/digits/ebm

Resumes from --workdir, to the bit. Writes config.json, metrics.jsonl, checkpoints/ and, when
finished, model.safetensors (the averaged parameters).
"""

from absl import flags

from experiments.common import cli, flagging, from_config
from experiments.common.workdirs import claim_workdir

flagging.define_training()
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, a model file out."""
    del argv
    config = flagging.training_config("ebm")
    dataset = flagging.training_data(config)
    workdir = claim_workdir(FLAGS.workdir, {"ebm": flagging.section(config, "ebm")})
    model, finished = from_config.train_ebm(config, dataset, **flagging.how(workdir))
    flagging.finish(model, finished, workdir)


if __name__ == "__main__":
    cli.run(main)
