"""What each defense of the gallery would have claimed, and what is left of it.

python -m experiments.defenses.gallery --data_dir=DIR --images=64 --minutes=5

For CIFAR-10 at Linf 8/255: accuracy on clean images; under an attack on the classifier alone (transfer); under
naive PGD, which follows whatever gradient PyTorch returns for one draw; and under ``pj.audit``. Writes
results/gallery/NAME.json; a defense whose file is there is left out. ``make tables`` makes the table of docs/gallery.md.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, provenance
from experiments.reproduction.gallery_table import DEFENSES, FOLDER, SURROGATES
from purify_jax.atomic import write_atomically

_EPSILON = 8 / 255

flags.DEFINE_list("names", list(DEFENSES), "Which defenses.")
flags.DEFINE_integer("images", 64, "Images, from the start of the test split.")
flags.DEFINE_float("minutes", 5.0, "Time of each audit.")
flags.DEFINE_integer("seed", 0, "Seed of all randomness.")
flagging.define_data()
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, a file for each defense out."""
    del argv
    dataset = pj.load_split("cifar10", "test", FLAGS.data_dir).take(FLAGS.images)
    command = provenance.shown(["experiments.defenses.gallery", *sys.argv[1:]], FLAGS.data_dir)
    for name in FLAGS.names:
        path = provenance.ROOT / "results" / FOLDER / f"{name}.json"
        if path.is_file():
            continue
        found = measure(name, dataset)
        made = {"command": command, "commit": provenance.commit(), **found}
        write_atomically(
            path, json.dumps({**made, "versions": pj.models.versions.versions()}, indent=2) + "\n"
        )
        print(f"written: {path.relative_to(provenance.ROOT)}")


def measure(name: str, dataset: pj.data.Dataset) -> dict[str, Any]:
    """What the defense claims, and what the audit found."""
    from experiments.defenses.claims import claims, through  # PyTorch, after flags are read

    started = time.monotonic()
    place = f"{Path(__file__).parent / name}.py"
    given = pj.bridges.built(f"{place}:build")
    images, labels = dataset.batch(np.arange(len(dataset)))
    claimed = claims(given, images, labels, _EPSILON, FLAGS.seed)
    if name in SURROGATES:
        twin = pj.bridges.built(f"{place}:surrogate")
        claimed["surrogate"] = through(twin, given, images, labels, _EPSILON, FLAGS.seed)
    claiming = time.monotonic() - started
    audit = pj.audit(given, dataset, epsilon=_EPSILON, minutes=FLAGS.minutes, seed=FLAGS.seed)
    return {
        "claimed": claimed,
        "average": audit.average,
        "worst_of_10": audit.worst_of(audit.plan.draws),
        "red_flags": [flag.cause for flag in audit.red_flags],
        "cost": audit.suite.summary().cost,
        **pj.reporting.audits.content(audit),
        "seconds_of_the_claims": round(claiming, 1),
    }


if __name__ == "__main__":
    cli.run(main)
