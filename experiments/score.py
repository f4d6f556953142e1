"""Scores saved adversarial images again: the average over fresh draws, and the worst of M draws.

purify-jax score --images=FILE.npz --model=digits

--defense=FILE.py:FUNCTION scores your own code in place of a model.
FILE.npz holds "adversarial" [images, h, w, c] in [0, 1] and "labels" [images]; if it also holds
"clean", "epsilon" and "norm", the ball is checked. ``experiments.evaluate --save_adversarial`` writes
such files; so does np.savez. Writes results.json and a page next to the file, or to --workdir.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, loading
from experiments.common.workdirs import claim_workdir
from purify_jax.checks import InputError

loading.define_models()
loading.define_defense()
loading.define_purifier()
flags.DEFINE_string("images", None, "File of adversarial images (.npz).", required=True)
flags.DEFINE_string("workdir", None, "Folder for the results (default: FILE_score).")
flags.DEFINE_integer("draws", 20, "Fresh draws per image; a deterministic model has one.")
flags.DEFINE_bool("undefended", False, "Score the classifier without the purifier.")
flags.DEFINE_integer("batch_size", 128, "Images side by side.")
flags.DEFINE_integer("seed", 0, "Seed of the draws.")
FLAGS = flags.FLAGS

NOTE = (
    "Share of images that are right, with 95% intervals over images. Average: of one draw, averaged over "
    "all draws. Worst of M: right in M draws (an attacker who may resubmit), estimated without bias from "
    "all draws."
)


def main(argv: list[str]) -> None:
    """A file of images in, results.json and a page out."""
    del argv
    file = Path(FLAGS.images)
    defense, found = _own_code(file) if loading.own_code() else _models(file)
    workdir = FLAGS.workdir or file.with_name(f"{file.stem}_score")
    made_with = pj.evaluation.identity(defense=defense, images=found.adversarial)
    workdir = claim_workdir(workdir, {**_settings(), "made_with": made_with}, "settings.json")
    draws = 1 if defense.is_deterministic else FLAGS.draws
    execution = pj.Execution(batch_size=FLAGS.batch_size)
    judge = lambda images: pj.evaluation.worst_of.correct_draws(
        loading.key(), defense, images, found.labels, draws, execution
    )
    adversarial = judge(found.adversarial)
    clean = None if found.clean is None else judge(found.clean)
    _write(workdir, found, adversarial, clean)


def _own_code(file: Path) -> tuple[pj.defense.Attackable, pj.attacks.saved.SavedImages]:
    found = pj.attacks.saved.load(file)
    _, own = loading.read_own_code(FLAGS.defense, found.adversarial)
    if FLAGS.undefended and not isinstance(own, pj.Defense):
        raise InputError(
            "undefended: got it for one function, expected a pair (purifier, classifier)"
        )
    return pj.undefended(own.logits_fn) if FLAGS.undefended else own, found


def _models(file: Path) -> tuple[pj.Defense, pj.attacks.saved.SavedImages]:
    score_model, classifier = loading.read_models(needs_score_model=False)
    found = pj.attacks.saved.load(file, tuple(classifier.image_shape))
    defense = None if FLAGS.undefended else loading.make_defense(score_model, classifier)
    return defense or pj.undefended(pj.models.logits_fn(classifier)), found


def _settings() -> dict[str, Any]:
    names = (
        "model",
        "score_model",
        "classifier",
        "images",
        "draws",
        "undefended",
        "batch_size",
        "seed",
    )
    given = [name for name in ("rate", "defense") if FLAGS[name].value is not None]
    return loading.values(*names, *loading.PURIFIER, *given)


def _write(
    workdir: Path,
    found: pj.attacks.saved.SavedImages,
    adversarial: np.ndarray,
    clean: np.ndarray | None,
) -> None:
    worst_of = pj.evaluation.worst_of
    images, draws = adversarial.shape
    # How the accuracy falls with the number of draws: powers of two, and all draws.
    counts = sorted({m for m in (2, 4, 8, 16, 32, 64) if m < draws} | {draws})
    curve = worst_of.worst_of_curve(adversarial, counts)
    rows = [[f"average of {draws} draws", str(worst_of.average(adversarial))]]
    rows += [[f"worst of {m}", str(interval)] for m, interval in curve.items() if m > 1]
    if clean is not None:
        rows.append([f"clean, average of {draws} draws", str(worst_of.average(clean))])
    ball, size = None, "no ball is known"
    if found.clean is not None:
        largest = {
            n: float(pj.attacks.saved.distances(found, n).max()) for n in ("linf", "l2", "l1")
        }
        ball = {"norm": found.norm, "epsilon": found.epsilon, "largest": largest}
        size = f"at most {largest[found.norm or 'linf']:.4g} ({found.norm or 'linf'}) from clean"
        if found.norm is not None:
            size += f", inside the ball of {found.epsilon:.4g}"
    columns = ["scoring", "accuracy"]
    average = pj.reporting.verdicts.share(worst_of.average(adversarial))
    pj.reporting.pages.write_results(
        workdir,
        title="Saved adversarial images, scored again",
        summary=f"{images} images of {Path(FLAGS.images).name}, {size}; {draws} fresh draws each.",
        columns=columns,
        rows=rows,
        sections=[pj.reporting.Section("Accuracy", NOTE, columns, rows)],
        content={
            "settings": _settings(),
            "images": images,
            "draws": draws,
            "average": worst_of.average(adversarial),
            "all_draws": worst_of.worst_of(adversarial),
            "worst_of": curve,
            "clean": None if clean is None else worst_of.average(clean),
            "correct_draws": adversarial.sum(axis=1).tolist(),
            "ball": ball,
        },
        seed=FLAGS.seed,
        notes=[f"{images} images, {size}"],
        verdict=[f"One answer is right for {average} of {images} images."],
    )


if __name__ == "__main__":
    cli.run(main)
