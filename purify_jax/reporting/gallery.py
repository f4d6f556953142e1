"""What the image browser of a page shows: attacked images, every step of their purification, answers.

Pixels travel as 8-bit values inside the page, so that a picture there is the image to one part in 255.
"""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.defense import Defense
from purify_jax.purifiers.loop import SteppedPurifier
from purify_jax.pytrees import Partial, jit
from purify_jax.types import Array, Json, Keys

#: Outcome → in words. Clean and attacked images are judged by the classifier alone, purified ones by
#: the whole defense.
OUTCOMES = {
    "saved": "clean right → attacked wrong → purified right",
    "lost": "clean right → attacked wrong → purified wrong",
    "unmoved": "clean right → attacked right → purified right",
    "harmed": "clean right → attacked right → purified wrong",
    "wrong": "clean wrong already",
}
#: Images and steps shown at most, and the characters that they may take of the page.
MOST_IMAGES, MOST_STEPS, MOST_CHARACTERS = 64, 8, 2_200_000


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The browser's content; ``json`` is safe inside a page."""

    content: Json

    @property
    def json(self) -> str:
        """The content, without the characters that could end or open a tag."""
        text = json.dumps(self.content, separators=(",", ":"), allow_nan=False)
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def outcome(label: int, clean: int, attacked: int, purified: int) -> str:
    """The key in :data:`OUTCOMES` for three answers to an image of class ``label``.

    >>> outcome(3, clean=3, attacked=8, purified=3)
    'saved'
    """
    if clean != label:
        return "wrong"
    if attacked != label:
        return "saved" if purified == label else "lost"
    return "unmoved" if purified == label else "harmed"


def how_many(image_shape: Sequence[int], classes: int, attacks: int, steps: int) -> int:
    """How many images fit into the page, for so many attacks and pictures of the way.

    >>> how_many((8, 8, 1), classes=10, attacks=2, steps=6)
    64
    """
    picture = int(np.prod(image_shape)) * 4 // 3 + 6 * classes
    each = picture * (1 + attacks * (1 + steps))
    return int(np.clip(MOST_CHARACTERS // each, 1, MOST_IMAGES))


def shown_steps(total: int) -> list[int]:
    """The steps whose images are shown: all, or some of many, from 0 (the noised image) to the last.

    >>> shown_steps(3)
    [0, 1, 2, 3]
    """
    return sorted({int(s) for s in np.linspace(0, total, min(total + 1, MOST_STEPS)).round()})


def gallery(
    defense: Defense,
    keys: Keys,
    images: Array,
    labels: Array,
    attacked: Mapping[str, Array],
    indices: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Gallery:
    """The browser's content for a batch.

    Args:
      defense: its purifier has a ``trajectory`` (a :class:`~purify_jax.purifiers.loop.SteppedPurifier`).
      keys: of the purification, one per image.
      images, labels: a batch; as many of its first images are taken as fit into a page.
      attacked: attack → the attacked batch.
      indices: the images' numbers in their data set, 0, 1, … by default.
      class_names: the numbers themselves by default.
    """
    shape = tuple(int(n) for n in images.shape[1:])
    chances_of = jax.jit(lambda x: jax.nn.softmax(defense.logits_fn(x)))
    clean_chances = np.asarray(chances_of(jnp.asarray(images)))
    classes = clean_chances.shape[-1]
    purifier = cast(SteppedPurifier, defense.purifier)
    total, restarts = int(purifier.num_steps), int(purifier.num_restarts)
    steps = shown_steps(total)
    count = min(how_many(shape, classes, len(attacked), len(steps)), len(labels))
    indices = list(range(len(labels))) if indices is None else list(indices)
    true, few = np.asarray(labels)[:count], np.asarray(images)[:count]
    cases, largest = [], 0.0
    for number, made in enumerate(attacked.values()):
        batch = np.asarray(made)[:count]
        largest = max(largest, float(np.abs(batch - few).max()))
        given = keys[:count], jnp.asarray(batch)
        path = np.asarray(jit(Partial(trajectory, purifier))(*given))[steps]
        purified, info = jit(purifier)(*given)
        answer = np.asarray(jnp.exp(defense.classify(purified)))
        # Step k's numbers stand beside the image that it led to; none led to the first.
        sizes, norms = (np.asarray(x)[:, 0] for x in (info.step_sizes, info.score_norms))
        chances = np.stack([np.asarray(chances_of(jnp.asarray(stage))) for stage in path])
        before = np.asarray(chances_of(jnp.asarray(batch)))
        for i, label in enumerate(true):
            answers = (clean_chances[i], before[i], answer[i])
            cases.append(
                {
                    "image": i,
                    "attack": number,
                    "outcome": outcome(int(label), *(int(a.argmax()) for a in answers)),
                    "attacked": _pixels(batch[i]),
                    "attackedProbabilities": _rounded(before[i]),
                    "answer": _rounded(answer[i]),
                    "path": _pixels(path[:, i]),
                    "probabilities": [_rounded(row) for row in chances[:, i]],
                    "sizes": [_short(sizes, s, i) for s in steps],
                    "norms": [_short(norms, s, i) for s in steps],
                }
            )
    names = [str(n) for n in (range(classes) if class_names is None else class_names)]
    clean = [
        {
            "index": int(indices[i]),
            "label": int(true[i]),
            "clean": _pixels(few[i]),
            "probabilities": _rounded(clean_chances[i]),
        }
        for i in range(count)
    ]
    content = {
        "shape": shape,
        "classes": names,
        "attacks": list(attacked),
        "outcomes": OUTCOMES,
        "restarts": f"{restarts} purified copies" if restarts > 1 else "one purified copy",
        "factor": amplification(largest),
        "total": total,
        "steps": steps,
        "images": clean,
        "cases": cases,
    }
    return Gallery(content)


def amplification(largest: float) -> int:
    """The whole factor that makes the largest difference fill the range around mid-grey.

    >>> amplification(0.15)
    3
    """
    # Rounding of float32 must not lose a whole step: 0.1 is 5, not 4.
    return int(np.clip(np.floor(0.5 / max(largest, 1e-3) + 1e-3), 1, 100))


def trajectory(purifier: SteppedPurifier, keys: Keys, images: Array) -> Array:
    """``purifier.trajectory`` as a function that carries its arrays, for :func:`purify_jax.pytrees.jit`."""
    return purifier.trajectory(keys, images)


def _pixels(image: np.ndarray) -> str:
    levels = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    return base64.b64encode(levels.tobytes()).decode()


def _rounded(chances: np.ndarray) -> list[float]:
    return [round(float(c), 3) for c in np.nan_to_num(chances)]


def _short(values: np.ndarray, step: int, image: int) -> str | None:
    return None if step == 0 else f"{float(values[step - 1, image]):.3g}"
