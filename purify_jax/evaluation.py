"""Evaluation: attack every image, score with fresh keys, one record per image and attack."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.special import logsumexp

from purify_jax import sharding
from purify_jax.attacks import norms
from purify_jax.data import Dataset
from purify_jax.records import Record, RecordFile, accuracy, wilson, worst_case
from purify_jax.types import (
    Array,
    Attack,
    InputError,
    Keys,
    PredictFn,
    check_at_least,
    check_images,
    check_labels,
    fold_keys,
    image_keys,
)

__all__ = ["accuracy", "evaluate", "score", "stream_key", "wilson", "worst_case"]


def stream_key(key: Array, name: str) -> Array:
    """The key of a named stream of randomness: an attack's, or scoring's. Disjoint by name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def score(defense: PredictFn, draws: int) -> Callable[[Keys, Array], Array]:
    """(keys, images) → log-probabilities of ``draws`` independent draws, ``[draws, batch, C]``."""
    check_at_least("draws", draws, 1)

    def scored(keys: Keys, images: Array) -> Array:
        return jax.lax.map(lambda draw: defense(fold_keys(keys, draw), images), jnp.arange(draws))

    return scored


def evaluate(
    key: Array,
    defense: PredictFn,
    attacks: Mapping[str, Attack],
    dataset: Dataset,
    *,
    draws: int = 10,
    batch_size: int = 128,
    path: str | Path | None = None,
    header: Mapping[str, Any] | None = None,
    drop_fallen: bool = False,
    shared_keys: bool = False,
    on_start: Callable[[str], None] | None = None,
    on_batch: Callable[[str, int, list[Record]], None] | None = None,
    keep_images: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
    mesh: Mesh | None = None,
) -> list[Record]:
    """Runs attacks against a defense on a data set; returns the records, "clean" first.

    Scoring uses keys disjoint from every attack's (section 3 of Athalye et al. 2018 and Croce
    et al. 2022, arXiv 2202.13711). Of N draws, ``one_draw`` is the first draw's verdict, ``mean``
    that of the mean probability, ``vote`` that of the majority, ``worst`` whether all N are
    right; ``correct_draws`` counts them.

    Args:
      key: the run's key. An image's results depend on it, the attack's name and the image's
        index, not on the batch size or on the other images.
      defense: (keys, images) → log-probabilities.
      attacks: name → attack, run in this order.
      dataset: images and labels.
      draws: N ≥ 1 scoring draws (1 is enough for a deterministic model).
      batch_size: images side by side; the last batch is padded, so each attack compiles once.
      path: a JSON-lines file to write records to as they come, and to continue from.
      header: settings that identify the run in that file, beside those known here.
      drop_fallen: do not attack again an image that some earlier attack made ``one_draw`` wrong.
      shared_keys: a white box that knows the defender's keys: attack and scoring get the same.
      on_start: called with the attack before its first batch, which compiles it.
      on_batch: called with (attack, images done, records of the batch), for progress.
      keep_images: called with (attack, indices, adversarial images).
      mesh: devices to split each batch over (``sharding.data_mesh()``); one device by default.

    Raises InputError for bad images or labels, or a file that belongs to another evaluation.
    """
    check_at_least("batch_size", batch_size, 1)
    if "clean" in attacks:
        raise InputError("attacks: the name 'clean' is taken, expected another")
    sharding.check_one_writer(path)
    batch_size = sharding.round_up(min(batch_size, len(dataset)), mesh)
    identify = {
        "dataset": dataset.name,
        "split": dataset.split,
        "images": len(dataset),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "draws": draws,
        "batch_size": batch_size,
        "drop_fallen": drop_fallen,
        "shared_keys": shared_keys,
    }
    file = RecordFile(path, {**identify, **(header or {})})
    scorer = sharding.over_images(score(defense, draws), mesh, batch_axis=1)
    everything: dict[str, Attack] = {"clean": lambda keys, images, labels: images, **attacks}
    records: list[Record] = []
    fallen: set[int] = set()
    try:
        for name, attack in everything.items():
            run = sharding.over_images(attack, mesh)
            todo = [i for i in range(len(dataset)) if not (drop_fallen and i in fallen)]
            skipped = sorted(set(range(len(dataset))) - set(todo))
            done: list[Record] = []
            if on_start is not None:
                on_start(name)
            for start in range(0, len(todo), batch_size):
                chosen = todo[start : start + batch_size]

                def compute(chosen=chosen, name=name, run=run) -> list[Record]:
                    attack_key = stream_key(key, f"attack {name}")
                    score_key = stream_key(key, "scoring")
                    return _one_batch(
                        dataset, chosen, batch_size, name, run, scorer, attack_key, score_key,
                        shared_keys, keep_images,
                    )  # fmt: skip

                batch = file.batch(name, chosen, compute)
                done += batch
                fallen |= {r["index"] for r in batch if not r["one_draw"]}
                if on_batch is not None:
                    on_batch(name, start + len(chosen), batch)
            if skipped:
                lines = lambda name=name, skipped=skipped: [
                    {"attack": name, "index": i, "label": int(dataset.labels[i]), "skipped": True}
                    for i in skipped
                ]
                done += file.batch(name, skipped, lines)
            records += done
    finally:
        file.close()
    return records


def _one_batch(
    dataset: Dataset,
    chosen: list[int],
    batch_size: int,
    name: str,
    attack: Callable,
    scorer: Callable,
    attack_key: Array,
    score_key: Array,
    shared_keys: bool,
    keep_images: Callable | None,
) -> list[Record]:
    padded = np.array((chosen + chosen[:1] * batch_size)[:batch_size])
    images, labels = dataset.batch(padded)
    check_images(images, f"images of {dataset.name}", dataset.image_shape)
    check_labels(labels, dataset.num_classes)
    score_keys = image_keys(score_key, padded)
    # A white box that knows the defender's keys works on the very draw that is scored first.
    attack_keys = fold_keys(score_keys, 0) if shared_keys else image_keys(attack_key, padded)
    adversarial = attack(attack_keys, images, labels)
    log_probs = np.asarray(scorer(score_keys, adversarial))
    if keep_images is not None:
        keep_images(name, padded[: len(chosen)], np.asarray(adversarial)[: len(chosen)])
    difference = jnp.asarray(adversarial) - images
    sizes = {n.name: np.asarray(n.size(difference)) for n in (norms.linf, norms.l2)}
    correct = log_probs.argmax(-1) == labels
    mean = logsumexp(log_probs.astype(np.float64), axis=0) - np.log(len(log_probs))
    votes = np.sum(np.eye(log_probs.shape[-1], dtype=int)[log_probs.argmax(-1)], axis=0)
    return [
        {
            "attack": name,
            "index": int(index),
            "label": int(labels[row]),
            "one_draw": bool(correct[0, row]),
            "mean": bool(mean[row].argmax() == labels[row]),
            "vote": bool(votes[row].argmax() == labels[row]),
            "worst": bool(correct[:, row].all()),
            "correct_draws": int(correct[:, row].sum()),
            "loss": round(float(-mean[row, labels[row]]), 5),
            "linf": round(float(sizes["linf"][row]), 6),
            "l2": round(float(sizes["l2"][row]), 6),
        }
        for row, index in enumerate(chosen)
    ]
