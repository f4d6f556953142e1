"""A purifier with its classifier → one file that needs jax alone.

purify-jax export --score_model=runs/quickstart/score_model.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --output=defense.jax

--platforms=cpu,cuda,tpu makes a file that runs on each. Batch size is free; gradients are included.
"""

from absl import flags

import purify_jax as pj
from experiments.common import cli, loading
from purify_jax.atomic import check_output

loading.define_models()
flags.DEFINE_string("output", None, "The file to write.", required=True)
flags.DEFINE_list("platforms", ["cpu"], "Some of cpu, cuda, rocm, tpu.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, a file out."""
    del argv
    check_output("output", FLAGS.output)
    score_model, classifier = loading.read_models(needs_score_model=True)
    defense = pj.Defense(pj.models.model_purifier(score_model), pj.models.logits_fn(classifier))
    size = pj.models.exporting.export_defense(
        FLAGS.output, defense, score_model.image_shape, FLAGS.platforms
    )
    made_for = ", ".join(FLAGS.platforms)
    print(f"written to {FLAGS.output}: the exported defense ({size / 1e6:.1f} MB, {made_for})")


if __name__ == "__main__":
    cli.run(main)
