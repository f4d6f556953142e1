"""Evaluation: attack every image, score with fresh keys, one record per image and attack."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
import scipy
from tqdm import tqdm

from purify_jax.attacks import norms
from purify_jax.checks import (
    InputError,
    check_count,
    check_epsilon,
    check_images,
    check_labels,
)
from purify_jax.costs import Passes
from purify_jax.data import Dataset
from purify_jax.devices import memory, progress
from purify_jax.devices.batches import batches, completed, of_shard, padded_size
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.adversarial import AdversarialImages
from purify_jax.evaluation.identity import identity
from purify_jax.evaluation.predictions import (
    Draws,
    ball_of,
    check_adversarial,
    check_log_probs,
    check_logits,
)
from purify_jax.evaluation.protocol import PROTOCOL, own_draws
from purify_jax.evaluation.records import Record, open_records
from purify_jax.keys import fold_keys, image_keys, stream_key
from purify_jax.pytrees import Partial
from purify_jax.types import Array, Attack, Json, Keys, PredictFn

#: Indices of images.
Indices = Sequence[int] | np.ndarray


def _unchanged(keys: Keys, images: Array, labels: Array) -> Array:
    return images


def evaluate(
    key: Array,
    defense: PredictFn,
    attacks: Mapping[str, Attack],
    dataset: Dataset,
    *,
    draws: int = 10,
    drop_fallen: bool = False,
    shared_keys: bool = False,
    passes: Mapping[str, Passes] = MappingProxyType({}),
    saved: AdversarialImages | None = None,
    execution: Execution = Execution(),
) -> list[Record]:
    """Runs attacks against a defense on a data set; returns the records, "clean" first.

    Scoring uses keys disjoint from every attack's (section 3 of Athalye et al. 2018 and Croce
    et al. 2022, arXiv 2202.13711). Of N draws, ``one_draw`` is the first draw's verdict, ``mean``
    that of the mean probability, ``vote`` that of the majority, ``all_draws`` whether all N are
    right; ``correct_draws`` counts them. ``own_correct`` and ``own_loss`` are what the attacker sees in
    draws of its own, disjoint from both: :func:`~purify_jax.evaluation.strongest` chooses by them.

    Args:
      key: the run's key. An image's results depend on it, the attack's name and the image's
        index, not on the batch size or on the other images.
      defense: (keys, images) → log-probabilities.
      attacks: name → attack, run in this order. Its images must lie inside the ball that it declares
        (``attack.norm``, ``attack.epsilon``); a plain function may be given both attributes.
      dataset: images and labels.
      draws: N ≥ 1 scoring draws (1 is enough for a deterministic model).
      drop_fallen: do not attack again an image of which some earlier attack left the attacker no right
        draw of its own.
      shared_keys: a white box that knows the defender's keys: attack and scoring get the same.
      passes: attack → what it costs per image with its own draws, for the records.
      saved: keeps the adversarial images.
      execution: how it is executed; 128 images side by side by default. The records are written to
        ``records.jsonl`` in its work directory as they come, and read back from there.

    Raises InputError for bad images or labels, a work directory whose records are of another defense,
    other data or other settings, an attack whose images are not numbers in [0, 1] inside its ball, and
    predictions that are not numbers.
    """
    run = Evaluation(key, defense, attacks, dataset, draws, drop_fallen, shared_keys, passes, saved)
    return run.records(execution)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` is given; name, header: of the records' file and its first line.

    seconds: no block of images is begun that would probably end later; the first one always is.
    """

    key: Array
    defense: PredictFn
    attacks: Mapping[str, Attack]
    dataset: Dataset
    draws: int
    drop_fallen: bool = False
    shared_keys: bool = False
    passes: Mapping[str, Passes] = dataclasses.field(default_factory=dict)
    saved: AdversarialImages | None = None
    name: str = "records"
    header: Mapping[str, object] = dataclasses.field(default_factory=dict)
    seconds: float | None = None

    def records(self, execution: Execution) -> list[Record]:
        """Runs all attacks, or reads back what an earlier run wrote."""
        if "clean" in self.attacks:
            raise InputError("attacks: the name 'clean' is taken, expected another")
        for attack in self.attacks.values():
            if (ball := ball_of(attack)) is not None:
                norm, epsilon = ball
                check_epsilon(epsilon, norm, self.dataset.image_shape)
        execution = completed(execution, 128)
        if self.attacks and not execution.shard_parameters:
            few, _ = self.dataset.batch(np.arange(min(8, len(self.dataset))))
            check_images(few, f"images of {self.dataset.name}", self.dataset.image_shape)
            check_logits(self.defense, few)
        mesh, dataset, split = execution.mesh, self.dataset, execution.shard_parameters
        size = padded_size(execution.batch_size or 128, len(dataset), mesh)
        blocks = shard_blocks(len(dataset), execution.block, execution.shard)
        scorer = memory.divided(Draws(self.defense, draws=self.draws), mesh, 1, split)
        attacks: dict[str, Attack] = {"clean": Partial(_unchanged), **self.attacks}
        runs = {n: memory.divided(attack, mesh, 0, split) for n, attack in attacks.items()}
        header = lambda: self._identify(size, execution.block)
        file = open_records(execution, self.name, self.key, header)
        total = len(self.attacks) * sum(len(block) for block in blocks)
        records: list[Record] = []
        bar = progress.bar(total=total, unit="image", disable=not execution.progress)
        with bar, contextlib.closing(file):
            shown = _Shown(bar, self.name.removeprefix("records").strip("_"))
            started = time.monotonic()
            for done, block in enumerate(blocks):
                # As long as those before it, and it would end too late.
                until = (time.monotonic() - started) * (done + 1) / max(done, 1)
                if self.seconds is not None and done and until > self.seconds:
                    break
                fallen: set[int] = set()
                for name in attacks:
                    shown.starting(name)
                    left = [i for i in block if not (self.drop_fallen and i in fallen)]
                    units: list[tuple[Indices, Callable[[], list[Record]]]] = [
                        (chosen, partial(self._batch, name, chosen, padded, runs[name], scorer))
                        for chosen, padded in batches(left, size)
                    ]
                    if skipped := sorted(set(block) - set(left)):
                        units.append((skipped, partial(self._skipped, name, skipped)))
                    for indices, compute in units:
                        batch = file.batch(name, indices, compute)
                        records += batch
                        fallen |= {r["index"] for r in batch if r.get("own_correct") == 0}
                        shown.add(name, batch)
        return records

    def _identify(self, batch_size: int, block: int | None) -> Json:
        return {
            "protocol": PROTOCOL,
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "images": len(self.dataset),
            "draws": self.draws,
            "batch_size": batch_size,
            "drop_fallen": self.drop_fallen,
            "shared_keys": self.shared_keys,
            "attacks": list(self.attacks),
            "block": block,
            **identity(defense=self.defense, data=self.dataset, attack_settings=self.attacks),
            **self.header,
        }

    def _skipped(self, name: str, indices: list[int]) -> list[Record]:
        label = lambda i: int(self.dataset.labels[i])
        return [{"attack": name, "index": i, "label": label(i), "skipped": True} for i in indices]

    def _batch(
        self, name: str, chosen: np.ndarray, padded: np.ndarray, attack: Callable, scorer: Callable
    ) -> list[Record]:
        images, labels = self.dataset.batch(padded)
        check_images(images, f"images of {self.dataset.name}", self.dataset.image_shape)
        check_labels(labels, self.dataset.num_classes)
        score_keys = image_keys(stream_key(self.key, "scoring"), padded)
        # A white box that knows the defender's keys works on the very draw that is scored first.
        own_keys = image_keys(stream_key(self.key, f"attack {name}"), padded)
        attack_keys = fold_keys(score_keys, 0) if self.shared_keys else own_keys
        adversarial = attack(attack_keys, images, labels)
        check_adversarial(name, adversarial, images, ball_of(self.attacks.get(name)))

        def scored(keys: Keys) -> np.ndarray:
            log_probs = np.asarray(scorer(keys, adversarial))
            check_log_probs(log_probs, len(padded), self.dataset.num_classes, f"attack {name!r}")
            return log_probs

        log_probs = scored(score_keys)
        draws = len(log_probs)
        # The same for all attacks, so that the attacker compares candidates by the same draws.
        judge_keys = image_keys(stream_key(self.key, "the attacker's own draws"), padded)
        times = own_draws(draws) // draws
        own = np.concatenate([scored(fold_keys(judge_keys, i)) for i in range(times)])
        if self.saved is not None:
            kept = np.asarray(adversarial)[: len(chosen)]
            self.saved.add(name, padded[: len(chosen)], kept)
        difference = jnp.asarray(adversarial) - images
        sizes = {n.name: np.asarray(n.size(difference)) for n in (norms.linf, norms.l2)}
        correct = log_probs.argmax(-1) == labels
        mean = scipy.special.logsumexp(log_probs.astype(np.float64), axis=0) - np.log(draws)
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
                "all_draws": bool(correct[:, row].all()),
                "correct_draws": int(correct[:, row].sum()),
                "draws": draws,
                "own_correct": int(own_right[row]),
                "own_loss": round(float(own_loss[row]), 5),
                "passes": list(self.passes.get(name, Passes())),
                "loss": round(float(-mean[row, labels[row]]), 5),
                "linf": round(float(sizes["linf"][row]), 6),
                "l2": round(float(sizes["l2"][row]), 6),
            }
            for row, index in enumerate(chosen)
        ]


class _Shown:
    """A bar that says which attack runs, and the share of images that every record has right so far."""

    def __init__(self, bar: tqdm, label: str):
        self.bar, self.label = bar, f"{label}, " if label else ""
        self.seen: set[str] = set()
        self.survived: dict[int, bool] = {}

    def starting(self, attack: str) -> None:
        if attack not in self.seen:
            self.seen.add(attack)
            self.bar.set_description(f"{self.label}{attack}: compiling")

    def add(self, attack: str, batch: list[Record]) -> None:
        for record in batch:
            right = bool(record.get("one_draw", False))
            self.survived[record["index"]] = self.survived.get(record["index"], True) and right
        robust = sum(self.survived.values()) / max(len(self.survived), 1)
        self.bar.set_description(f"{self.label}{attack}: robust so far {robust:.3f}")
        if attack != "clean":
            self.bar.update(len(batch))


def shard_blocks(count: int, block: int | None, shard: tuple[int, int]) -> list[range]:
    """The blocks of images of one shard (i, n); InputError if it would have none."""
    block = count if block is None else block
    check_count("block", block)
    every = [range(first, min(first + block, count)) for first in range(0, count, block)]
    return of_shard(every, shard, f"{count} images in blocks of {block}")
