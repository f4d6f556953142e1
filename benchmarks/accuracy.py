"""Accuracy: what the cheaper curvature estimate costs, on the models that ship; how attacked images are judged."""

from typing import Any

import jax
import numpy as np

import purify_jax as pj
from benchmarks.settings import Settings
from purify_jax import attacks, models
from purify_jax.checks import InputError
from purify_jax.evaluation import records, worst_of
from purify_jax.types import PredictFn

#: By data set.
_EPSILON = {"digits": 0.15, "mnist": 0.2, "cifar10": 8 / 255}


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Accuracy with secant and with finite differences: clean images, and a classifier attacked blind.

    The same images, attack and noise for both; everything else as in the model's file.
    """
    rows = []
    for name in settings.models:
        shipped = pj.pretrained.load(name)
        data = shipped.card["data"]
        dataset = pj.data.load_split(data, f"test[:{settings.accuracy_images}]", settings.data_dir)
        epsilon = _EPSILON[data]
        blind = attacks.PGD(
            attacks.blind(shipped.logits_fn), epsilon=epsilon, step_size=epsilon / 8, num_steps=20
        )
        found = {}
        for curvature in ("finite_difference", "secant"):
            purifier = models.adp_purifier(shipped.score_model, curvature=curvature)
            found[curvature] = pj.evaluation.evaluate(
                jax.random.key(0), pj.Defense(purifier, shipped.logits_fn), {"blind PGD": blind},
                dataset, draws=1, execution=pj.Execution(batch_size=64),
            )  # fmt: skip
        for attack in ("clean", "blind PGD"):
            right = lambda curvature, attack=attack: np.array(
                [r["one_draw"] for r in records.of_attack(found[curvature], attack)], float
            )
            first, second = right("finite_difference"), right("secant")
            change = second - first
            half = 1.96 * change.std() / np.sqrt(len(change))
            rows.append(
                {
                    "what": f"{name}, {attack}" + (f" {epsilon:.3g}" if attack != "clean" else ""),
                    "images": len(dataset),
                    "finite difference": first.mean(),
                    "secant": second.mean(),
                    "difference, points": 100 * change.mean(),
                    "95% interval": [100 * (change.mean() - half), 100 * (change.mean() + half)],
                }
            )
    return rows


def judge(
    defense: PredictFn, test: pj.data.Dataset, adversarial: np.ndarray, epsilon: float, draws: int
) -> dict[str, Any]:
    """The average over fresh draws with its interval, and the share of images that all draws have right.

    Raises InputError for images outside the ball.
    """
    clean, labels = test.batch(np.arange(len(test)))
    distance = np.abs(adversarial - clean).max()
    if not distance <= epsilon + 1e-5:
        raise InputError(f"adversarial: {distance:g} from the images, expected {epsilon:g}")
    right = worst_of.correct_draws(
        jax.random.key(1), defense, adversarial, labels, draws, pj.Execution(batch_size=64)
    )
    average = worst_of.mean_survival(right.sum(1), draws, 1)
    return {
        "average": average.value,
        "95% interval": [average.low, average.high],
        f"worst of {draws}": float(right.all(1).mean()),
    }
