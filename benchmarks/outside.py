"""An outsider's attack: the official AutoAttack `rand` on a defense through the PyTorch bridge.

python -m benchmarks.outside --model=digits --dataset=digits --images=128 --epsilon=0.15 --workdir=runs/outside

Two counts, because AutoAttack hands back the clean image where no single draw was fooled: "one draw in union" is
its own count (right before, and after every attack, in one draw each), "average" judges the images that are
handed back by fresh draws. Differences are paired over images. Needs PyTorch and https://github.com/fra31/auto-attack.
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, loading
from purify_jax.atomic import write_atomically
from purify_jax.attacks import saved, suites
from purify_jax.checks import InputError
from purify_jax.evaluation import evaluate, paired_difference, protocol, worst_of

loading.define(images=128, batch_size=64)
loading.define_ball()
flags.DEFINE_integer("draws", 20, "Fresh draws for each image.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in; a table on the terminal, ``outside.json`` and ``autoattack_rand.npz`` out."""
    del argv
    loaded = loading.load()
    defense, dataset = loaded.models["defended"], loaded.dataset.take(FLAGS.images)
    workdir = Path(FLAGS.workdir)
    file = workdir / "autoattack_rand.npz"
    if not file.exists():
        saved.save(file, _autoattack(defense, dataset))
    found = saved.load(file, dataset.image_shape)
    key = jax.random.key(FLAGS.seed)
    execution = pj.Execution(batch_size=FLAGS.batch_size)
    right = worst_of.correct_draws(
        key, defense, found.adversarial, found.labels, FLAGS.draws, execution
    )
    changed = np.abs(found.adversarial - found.clean).max(axis=(1, 2, 3)) > 0
    clean = evaluate(key, defense, {}, dataset, draws=1, execution=execution)
    union = ~changed & np.array([r["one_draw"] for r in clean])
    rows = {"AutoAttack rand, official": (union, right.mean(axis=1))}
    for suite in ("rand", "honest"):
        rows[suite] = _ours(suite, key, defense, dataset)
    table = {name: _row(*row, *rows["AutoAttack rand, official"]) for name, row in rows.items()}
    for name, row in table.items():
        print(name, *(f"\n  {what}: {value}" for what, value in row.items()))
    write_atomically(workdir / "outside.json", json.dumps(table, indent=2) + "\n")


def _row(union, average, outside_union, outside_average) -> dict[str, str]:
    return {
        "one draw in union": _mean(union),
        "average": _mean(average),
        "official minus this, in union": _mean(outside_union.astype(float) - union),
        "official minus this, average": _mean(outside_average - average),
    }


def _mean(each: np.ndarray) -> str:
    found = paired_difference(each, np.zeros(len(each)))
    return f"{found.value:.3f} ± {found.high - found.value:.3f}"


def _ours(suite: str, key, defense, dataset) -> tuple[np.ndarray, np.ndarray]:
    """For each image: whether one draw is right before and after every attack, and the share of right draws."""
    options = suites.Options(norm=FLAGS.norm, epsilon=FLAGS.epsilon)
    table = suites.build(suite, defense, options)
    execution = pj.Execution(batch_size=FLAGS.batch_size)
    records = evaluate(
        key, defense, table, dataset, draws=FLAGS.draws, drop_fallen=True, execution=execution
    )
    survived = np.ones(len(dataset), bool)
    for record in records:
        survived[record["index"]] &= record.get("one_draw", False)
    kept = protocol.strongest(records)
    return survived, np.array([r["correct_draws"] / r["draws"] for r in kept])


def _autoattack(defense, dataset) -> saved.SavedImages:
    try:
        import torch
        from autoattack import AutoAttack
    except ImportError as error:
        raise InputError(f"autoattack: {error}, expected it and PyTorch installed") from error
    images, labels = dataset.batch(np.arange(len(dataset)))
    module = pj.bridges.as_torch_module(defense, key=jax.random.key(FLAGS.seed))
    names = {"linf": "Linf", "l2": "L2"}
    attack = AutoAttack(
        module, norm=names[FLAGS.norm], eps=FLAGS.epsilon, version="rand", device="cpu",
        seed=FLAGS.seed,
    )  # fmt: skip
    x = torch.from_numpy(np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2)))
    moved = attack.run_standard_evaluation(x, torch.from_numpy(labels).long(), bs=FLAGS.batch_size)
    return saved.SavedImages(
        moved.numpy().transpose(0, 2, 3, 1).copy(), labels, images, FLAGS.epsilon, FLAGS.norm
    )


if __name__ == "__main__":
    cli.run(main)
