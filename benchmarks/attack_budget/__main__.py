"""How strong an attack is for what it costs: average accuracy against backward passes per image.

python -m benchmarks.attack_budget --model=digits --split='train[80%:]' --epsilon=0.15 --workdir=runs/budget
python -m benchmarks.attack_budget.figure    # what was recorded, drawn

Attacks of equal cost side by side, and the suites. Every row is judged by the attacker's own draws and scored
by fresh ones; differences are paired over images. The settings of the ``honest`` suite were chosen by this,
on images that no table reports. A run that was killed continues; ``attack_budget.json`` in the workdir keeps
every row, with the right draws of each image. --budgets draws curves: every row at several budgets.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from absl import flags

import purify_jax as pj
from benchmarks.attack_budget import recorded, rows
from experiments.common import cli, loading, locks, provenance
from purify_jax import costs
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError
from purify_jax.data import Dataset
from purify_jax.defense import Defense
from purify_jax.evaluation import evaluate, protocol

loading.define(images=128, batch_size=64)
loading.define_ball()
flags.DEFINE_integer("draws", 20, "Scoring draws.")
flags.DEFINE_list("budgets", ["400"], "Backward passes of one attack; a suite's in proportion.")
flags.DEFINE_multi_string("only", [], "Rows, by name or its beginning; all by default.")
flags.DEFINE_string("against", "exhaustive", "The row that the others are compared with.")
FLAGS = flags.FLAGS

_SETTINGS = ("model", "dataset", "split", "images", "batch_size", "seed", "norm", "epsilon", "draws")  # fmt: skip


def main(argv: list[str]) -> None:
    """Flags in; a table on the terminal and ``attack_budget.json`` in the workdir out."""
    del argv
    workdir = Path(FLAGS.workdir)
    locks.hold("workdir", workdir)
    path = workdir / "attack_budget.json"
    budgets = [_whole(text) for text in FLAGS.budgets]
    loaded = loading.load()
    defense, dataset = loaded.models["defended"], loaded.dataset.take(FLAGS.images)
    image, _ = dataset.batch(np.arange(1))
    settings = {name: FLAGS[name].value for name in _SETTINGS}
    content: recorded.Json = {"settings": settings, "versions": pj.reporting.versions(), "rows": []}
    if path.is_file():
        content |= {"rows": recorded.read(path, settings)["rows"]}
    for row in content["rows"]:
        print(recorded.line(content, row, FLAGS.against), flush=True)
    for budget in budgets:
        table = rows.table(FLAGS.epsilon, FLAGS.norm, budget)
        for name in _chosen(table):
            if recorded.find(content, name, budget):
                continue
            row = _measure(name, budget, table[name], defense, dataset, image, workdir)
            content["rows"].append(row)
            write_atomically(path, recorded.written(content))
            print(recorded.line(content, row, FLAGS.against), flush=True)


def _chosen(names: Iterable[str]) -> list[str]:
    """The rows that --only names, by the whole name or, if that is no row, by its beginning."""
    names, found = list(names), []
    for only in FLAGS.only:
        these = [only] if only in names else [name for name in names if name.startswith(only)]
        found += these
        if not these:
            raise InputError(f"only: got {only!r}, expected the beginnings of some of {names}")
    return [name for name in names if name in found or not FLAGS.only]


def _measure(
    name: str,
    budget: int,
    build: rows.Build,
    defense: Defense,
    dataset: Dataset,
    image: np.ndarray,
    workdir: Path,
) -> recorded.Json:
    def one(attack: str) -> costs.Passes:
        return costs.count(lambda d: build(d)[attack], defense, image)

    attacks = build(defense)
    own = costs.count_prediction(defense, image).times(protocol.own_draws(FLAGS.draws))
    records = evaluate(
        jax.random.key(FLAGS.seed),
        defense,
        attacks,
        dataset,
        draws=FLAGS.draws,
        passes={attack: one(attack) + own for attack in attacks},
        drop_fallen=True,
        execution=pj.Execution(
            batch_size=FLAGS.batch_size,
            workdir=workdir / f"{re.sub('[^a-z0-9]+', '_', name.lower())}_{budget}",
        ),
    )
    found = protocol.summary(records)
    return {
        "name": name,
        "budget": budget,
        "commit": provenance.commit(),
        "average": found.average,
        "worst": found.all_draws,
        "passes": found.cost,
        "by": found.by,
        "right": [r["correct_draws"] for r in protocol.strongest(records)],
    }


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]+", text) or int(text) < 1:
        raise InputError(f"budgets: got {text!r}, expected whole numbers ≥ 1")
    return int(text)


if __name__ == "__main__":
    cli.run(main)
