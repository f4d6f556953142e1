"""Attacks and purifies images with a model that ships: no data set, no training, about a minute.

purify-jax demo --model=cifar10

Writes results.json, report.html (self-contained) and figures/*.png; purification.png shows some images clean,
attacked and purified, with the classifier's prediction for each. The attacks are short, so that a minute is
enough: the model's size decides the number of images and steps, unless --images, --steps and --eot are given.
To measure robust accuracy, run purify-jax evaluate --suite=honest.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging
from experiments.common.workdirs import claim_workdir
from purify_jax.checks import InputError, check_choice

if TYPE_CHECKING:
    from experiments.story import budget

flags.DEFINE_string("model", "cifar10", "A model that ships, by name: digits, cifar10, ...")
flags.DEFINE_string("workdir", None, "Folder for the report (default: runs/demo/MODEL).")
flags.DEFINE_integer("images", None, "Images to attack (default: what a minute allows).")
flags.DEFINE_integer("steps", None, "Attack steps (default: what a minute allows).")
flags.DEFINE_integer("eot", None, "Draws whose gradients are averaged (default: likewise).")
flags.DEFINE_integer("seed", 0, "Seed of all randomness.")
flagging.define_data()
FLAGS = flags.FLAGS

#: A model's data set → images of it inside the package.
IMAGES = {"digits": "digits", "cifar10": "cifar10_photos"}


def main(argv: list[str]) -> None:
    """A model's name in, a report out."""
    del argv
    started = time.monotonic()
    import jax

    from experiments.story import accuracy, budget, illustrations, page

    check_choice("model", FLAGS.model, pj.pretrained.available())
    workdir = Path(FLAGS.workdir or f"runs/demo/{FLAGS.model}")
    names = ("model", "images", "steps", "eot", "seed", "data_dir")
    claim_workdir(workdir, {name: FLAGS[name].value for name in names}, "settings.json")
    ready = pj.pretrained.load(FLAGS.model)
    test = _images(ready.card["data"])
    counted = budget.size(ready.defense, test)
    given = {name: FLAGS[name].value for name in counted._fields}
    size = counted._replace(**{name: n for name, n in given.items() if n is not None})
    test = test.take(size.images)
    ball = _ball(ready.card["data"])
    print(f"{FLAGS.model}: {size.images} images, {_words(size)}", flush=True)

    key = jax.random.key(FLAGS.seed)
    attacks = accuracy.attacks(ready.defense, ball, steps=size.steps, num_samples=size.eot)
    found = accuracy.run_attacks(
        key, ready.defense, attacks, test, test, ball, FLAGS.progress, bare_on_blind=True
    )
    illustrated = illustrations.sections(
        key, ready.defense, ready.score_model, attacks, found.adversarial, test, ball, sweep=False
    )
    results = {
        "model": FLAGS.model,
        "dataset": test.name,
        "seed": FLAGS.seed,
        **found.results,
        "seconds": round(time.monotonic() - started, 1),
    }
    page.write(
        workdir,
        results,
        illustrated,
        title=f"Adversarial purification: {FLAGS.model}",
        summary=f"{accuracy.what_ships(ready.card)} {accuracy.THREE_ATTACKS}",
        verdict=[*accuracy.verdict(results), _limits(size, ready.card, ball)],
    )


def _images(dataset: str) -> pj.data.Dataset:
    if FLAGS.data_dir:
        return pj.load_split(dataset, "test", FLAGS.data_dir)
    if dataset not in IMAGES:
        raise InputError(
            f"model: the images of {dataset} are not in the package (those of "
            f"{' and '.join(sorted(IMAGES))} are), expected --data_dir=DIR beside it"
        )
    return pj.load_split(IMAGES[dataset], "test")


def _ball(dataset: str) -> Any:
    """The norm and the ε that this project attacks the data set with."""
    return importlib.import_module(f"experiments.configs.{dataset}").get_config().attack


def _words(size: budget.Size) -> str:
    draws = "one draw" if size.eot == 1 else f"{size.eot} draws"
    return f"{size.steps} attack steps with {draws} each"


def _limits(size: budget.Size, card: Any, ball: Any) -> str:
    """The limits of a demo, and the accuracy of the whole evaluation if the model's card has it."""
    text = f"This is a demo: {_words(size)}; longer attacks leave fewer images right."
    whole = f"honest_{ball.norm}_{ball.epsilon:.3g}"
    try:
        found = card["evaluations"][whole]["summary"]["defended"]
        quoted = pj.evaluation.Interval(*found["average"])
        share = pj.reporting.verdicts.share(quoted)
        return (
            f"{text} The whole evaluation left {share} ({quoted.images} images, the model's card)."
        )
    except (LookupError, TypeError):
        return f"{text} purify-jax evaluate --suite=honest measures robust accuracy."


if __name__ == "__main__":
    cli.run(main)
