"""A purifier with its classifier → one file that needs jax alone.

python -m experiments.export --ebm=runs/quickstart/ebm.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --output=defense.jax

--platforms=cpu,cuda,tpu makes a file that runs on each. Batch size is free; gradients are included.
"""

from absl import flags

import purify_jax as pj
from experiments.common import cli
from purify_jax.models import exporting

flags.DEFINE_string("ebm", None, "Energy or score model (.safetensors).", required=True)
flags.DEFINE_string("classifier", None, "Classifier model (.safetensors).", required=True)
flags.DEFINE_string("output", None, "The file to write.", required=True)
flags.DEFINE_list("platforms", ["cpu"], f"Some of {', '.join(exporting.PLATFORMS)}.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, a file out."""
    del argv
    ebm = pj.models.load_model(FLAGS.ebm, ("energy", "score"))
    classifier = pj.models.load_model(FLAGS.classifier, ("classifier",))
    if ebm.image_shape != classifier.image_shape:
        raise pj.InputError(
            f"ebm: made for images {ebm.image_shape}, expected the classifier's {classifier.image_shape}"
        )
    defense = pj.defend(pj.models.model_purifier(ebm), pj.models.logits_fn(classifier))
    size = exporting.export_defense(FLAGS.output, defense, ebm.image_shape, FLAGS.platforms)
    print(f"exported: {FLAGS.output} ({size / 1e6:.1f} MB, {', '.join(FLAGS.platforms)})")


if __name__ == "__main__":
    cli.run(main)
