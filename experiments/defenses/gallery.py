"""What each defense of the gallery would have claimed, and what is left of it.

python -m experiments.defenses.gallery --data_dir=DIR --images=64 --minutes=5

For CIFAR-10 at Linf 8/255: accuracy on clean images; under an attack on the classifier alone (transfer); under
naive PGD, which follows whatever gradient PyTorch returns for one draw; and under ``pj.audit``. Writes
results/gallery/NAME.json; a defense whose file is there is left out. ``make tables`` makes the table of docs/gallery.md.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, provenance
from experiments.defenses.gallery_table import DEFENSES, FOLDER
from purify_jax.atomic import write_atomically

_EPSILON, _STEP, _STEPS = 8 / 255, 2 / 255, 40

flags.DEFINE_list("names", list(DEFENSES), "Which defenses.")
flags.DEFINE_integer("images", 64, "Images, from the start of the test split.")
flags.DEFINE_float("minutes", 5.0, "Time of each audit.")
flags.DEFINE_integer("seed", 0, "Seed of all randomness.")
flagging.define_data()
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in, a file for each defense out."""
    dataset = pj.load_split("cifar10", "test", FLAGS.data_dir).take(FLAGS.images)
    command = provenance.shown(["experiments.defenses.gallery", *argv[1:]], FLAGS.data_dir)
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
    started = time.monotonic()
    given = pj.bridges.built(f"{Path(__file__).parent / name}.py:build")
    claimed = claims(given, *dataset.batch(np.arange(len(dataset))))
    claiming = time.monotonic() - started
    audit = pj.audit(given, dataset, epsilon=_EPSILON, minutes=FLAGS.minutes, seed=FLAGS.seed)
    return {
        "claimed": claimed,
        "average": audit.average,
        "worst_of_10": audit.worst_of(audit.plan.draws),
        "red_flags": [flag.name for flag in audit.red_flags],
        "cost": audit.suite.summary().cost,
        **pj.reporting.audits.content(audit),
        "seconds_of_the_claims": round(claiming, 1),
    }


def claims(given: Any, images: np.ndarray, labels: np.ndarray) -> Mapping[str, Any]:
    """Accuracy of one draw on clean images, under the transfer attack and under naive PGD."""
    import torch

    from experiments.defenses import networks

    torch.manual_seed(FLAGS.seed)
    np.random.seed(FLAGS.seed)  # noqa: NPY002  (what a defense draws from)
    defense = torch.nn.Sequential(*given) if isinstance(given, tuple) else given
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    y = torch.from_numpy(np.asarray(labels, np.int64))

    def accuracy(images: Any) -> pj.evaluation.statistics.Interval:
        with torch.no_grad():
            right = int((defense(images).argmax(-1) == y).sum())
        return pj.evaluation.statistics.wilson(right, len(y))

    moved = {
        "clean": x,
        "transfer": _pgd(networks.classifier(), x, y),
        "naive": _pgd(defense, x, y),
    }
    return {kind: accuracy(images) for kind, images in moved.items()}


def _pgd(module: Any, x: Any, y: Any) -> Any:
    """Sign steps along the gradient of one draw each; images without a gradient stay."""
    import torch

    moved = x.clone()
    for _ in range(_STEPS):
        moved.requires_grad_()
        loss = torch.nn.functional.cross_entropy(module(moved), y)
        if loss.requires_grad:
            (slope,) = torch.autograd.grad(loss, moved, allow_unused=True)
        if not loss.requires_grad or slope is None:
            return x
        moved = moved.detach() + _STEP * slope.sign()
        moved = torch.clamp(torch.minimum(torch.maximum(moved, x - _EPSILON), x + _EPSILON), 0, 1)
    return moved.detach()


if __name__ == "__main__":
    cli.run(main)
