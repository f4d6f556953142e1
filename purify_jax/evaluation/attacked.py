"""Evaluation: attack every image, score with fresh keys, one record per image and attack."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.sharding import Mesh

from purify_jax.attacks import norms
from purify_jax.checks import InputError, check_count, check_images, check_labels
from purify_jax.costs import Passes
from purify_jax.data import Dataset
from purify_jax.devices import memory, sharding
from purify_jax.devices.batches import batches, of_shard, padded_size
from purify_jax.evaluation.predictions import (
    ball_of,
    check_adversarial,
    check_log_probs,
    fresh_draws,
)
from purify_jax.evaluation.protocol import PROTOCOL, own_draws
from purify_jax.evaluation.records import Record, RecordFile
from purify_jax.keys import fold_keys, image_keys, stream_key
from purify_jax.pytrees import Partial
from purify_jax.types import Array, Attack, Keys, PredictFn


def _unchanged(keys: Keys, images: Array, labels: Array) -> Array:
    return images


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
    ball: tuple[str, float] | None = None,
    passes: Mapping[str, Passes] | None = None,
    on_start: Callable[[str], None] | None = None,
    on_batch: Callable[[str, int, list[Record]], None] | None = None,
    keep_images: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
    mesh: Mesh | None = None,
    shard_parameters: bool = False,
    block: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> list[Record]:
    """Runs attacks against a defense on a data set; returns the records, "clean" first.

    Scoring uses keys disjoint from every attack's (section 3 of Athalye et al. 2018 and Croce
    et al. 2022, arXiv 2202.13711). Of N draws, ``one_draw`` is the first draw's verdict, ``mean``
    that of the mean probability, ``vote`` that of the majority, ``worst`` whether all N are
    right; ``correct_draws`` counts them. ``own_correct`` and ``own_loss`` are what the attacker sees in
    draws of its own, disjoint from both: :func:`~purify_jax.evaluation.strongest` chooses by them.

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
      drop_fallen: do not attack again an image of which some earlier attack left the attacker no right
        draw of its own.
      shared_keys: a white box that knows the defender's keys: attack and scoring get the same.
      ball: (norm, ε) that every attack's images must lie in; what each attack says of itself by
        default (``attack.norm``, ``attack.epsilon``), any for a plain function.
      passes: attack → what it costs per image with its own draws, for the records.
      on_start: called with the attack before its first batch, which compiles it.
      on_batch: called with (attack, images done, records of the batch), for progress.
      keep_images: called with (attack, indices, adversarial images).
      mesh: devices to split each batch over (``sharding.data_mesh()``); one device by default.
      shard_parameters: split large parameters over the devices too, for those that no device holds.
      block: images that go through all attacks before the next ones start; fallen images make room for
        others of their block. All of them by default.
      shard: (i, n): only blocks i, i + n, i + 2n, ...; the records are those of the whole run.

    Raises InputError for bad images or labels, a file that belongs to another evaluation, an attack
    whose images are not numbers in [0, 1] inside its ball, and predictions that are not numbers.
    """
    if "clean" in attacks:
        raise InputError("attacks: the name 'clean' is taken, expected another")
    sharding.check_one_writer(path, mesh)
    batch_size = padded_size(batch_size, len(dataset), mesh)
    identify = {
        "protocol": PROTOCOL,
        "dataset": dataset.name,
        "split": dataset.split,
        "images": len(dataset),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "draws": draws,
        "batch_size": batch_size,
        "drop_fallen": drop_fallen,
        "shared_keys": shared_keys,
    }
    blocks = shard_blocks(len(dataset), block, shard)
    identify |= {"attacks": list(attacks), "block": block}
    if shard != (0, 1):
        identify["shard"] = list(shard)
    file = RecordFile(path, {**identify, **(header or {})})
    scorer = memory.divided(
        fresh_draws(defense, draws), mesh, batch_axis=1, split_large=shard_parameters
    )
    everything: dict[str, Attack] = {"clean": Partial(_unchanged), **attacks}
    runs = {
        name: memory.divided(attack, mesh, split_large=shard_parameters)
        for name, attack in everything.items()
    }
    done = dict.fromkeys(everything, 0)
    records: list[Record] = []

    def run_block(indices: range) -> None:
        fallen: set[int] = set()
        for name, attack in everything.items():
            inside = ball_of(attack) if ball is None else ball
            price = (passes or {}).get(name, Passes())
            todo = [i for i in indices if not (drop_fallen and i in fallen)]
            if on_start is not None and done[name] == 0:
                on_start(name)
            for chosen, padded in batches(todo, batch_size):
                compute = functools.partial(
                    _one_batch,
                    key,
                    dataset,
                    chosen,
                    padded,
                    name,
                    runs[name],
                    scorer,
                    shared_keys,
                    keep_images,
                    inside,
                    price,
                )
                batch = file.batch(name, chosen, compute)
                records.extend(batch)
                fallen |= {r["index"] for r in batch if r["own_correct"] == 0}
                done[name] += len(batch)
                if on_batch is not None:
                    on_batch(name, done[name], batch)
            skipped = sorted(set(indices) - set(todo))
            done[name] += len(skipped)
            if skipped:
                records.extend(file.batch(name, skipped, lambda: _skipped(name, dataset, skipped)))

    try:
        for indices in blocks:
            run_block(indices)
    finally:
        file.close()
    return records


def shard_blocks(count: int, block: int | None, shard: tuple[int, int]) -> list[range]:
    """The blocks of images of one shard (i, n); InputError if it would have none."""
    block = count if block is None else block
    check_count("block", block)
    every = [range(first, min(first + block, count)) for first in range(0, count, block)]
    return of_shard(every, shard, f"{count} images in blocks of {block}")


def _skipped(name: str, dataset: Dataset, indices: list[int]) -> list[Record]:
    label = lambda i: int(dataset.labels[i])
    return [{"attack": name, "index": i, "label": label(i), "skipped": True} for i in indices]


def _one_batch(
    key: Array,
    dataset: Dataset,
    chosen: np.ndarray,
    padded: np.ndarray,
    name: str,
    attack: Callable,
    scorer: Callable,
    shared_keys: bool,
    keep_images: Callable | None,
    ball: tuple[str, float] | None,
    passes: Passes,
) -> list[Record]:
    images, labels = dataset.batch(padded)
    check_images(images, f"images of {dataset.name}", dataset.image_shape)
    check_labels(labels, dataset.num_classes)
    score_keys = image_keys(stream_key(key, "scoring"), padded)
    # A white box that knows the defender's keys works on the very draw that is scored first.
    own_keys = image_keys(stream_key(key, f"attack {name}"), padded)
    attack_keys = fold_keys(score_keys, 0) if shared_keys else own_keys
    adversarial = attack(attack_keys, images, labels)
    check_adversarial(name, adversarial, images, ball)

    def scored(keys: Keys) -> np.ndarray:
        log_probs = np.asarray(scorer(keys, adversarial))
        check_log_probs(log_probs, len(padded), dataset.num_classes, f"attack {name!r}")
        return log_probs

    log_probs = scored(score_keys)
    draws = len(log_probs)
    # The same for all attacks, so that the attacker compares candidates by the same draws.
    judge_keys = image_keys(stream_key(key, "the attacker's own draws"), padded)
    times = own_draws(draws) // draws
    own = np.concatenate([scored(fold_keys(judge_keys, i)) for i in range(times)])
    if keep_images is not None:
        keep_images(name, padded[: len(chosen)], np.asarray(adversarial)[: len(chosen)])
    difference = jnp.asarray(adversarial) - images
    sizes = {n.name: np.asarray(n.size(difference)) for n in (norms.linf, norms.l2)}
    correct = log_probs.argmax(-1) == labels
    mean = scipy.special.logsumexp(log_probs.astype(np.float64), axis=0) - np.log(len(log_probs))
    own_right = (own.argmax(-1) == labels).sum(axis=0)
    # Of single answers, where "loss" is that of the mean probability: what one fresh draw will see.
    own_loss = -np.maximum(own[:, np.arange(len(labels)), labels], -1e4).mean(axis=0)
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
            "draws": draws,
            "own_correct": int(own_right[row]),
            "own_loss": round(float(own_loss[row]), 5),
            "passes": list(passes),
            "loss": round(float(-mean[row, labels[row]]), 5),
            "linf": round(float(sizes["linf"][row]), 6),
            "l2": round(float(sizes["l2"][row]), 6),
        }
        for row, index in enumerate(chosen)
    ]
