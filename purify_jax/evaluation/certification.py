"""Certification by randomised smoothing, of any classifier or defense.

Cohen, Rosenfeld & Kolter 2019, arXiv 1902.02918. The smoothed classifier answers the class that a
base classifier f gives most often to x + N(0, σ²I). With probability 1 − α over the samples, its
answer does not change within an L2 ball of the certified radius. f may be random itself (a purifier
with fresh noise for every sample): what is certified is the answer averaged over all randomness.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from purify_jax.checks import (
    InputError,
    check_at_least,
    check_count,
    check_images,
    check_labels,
    check_number,
    check_outputs,
)
from purify_jax.data import Dataset
from purify_jax.devices import memory, progress
from purify_jax.devices.batches import batches, completed, of_shard, padded_size
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.identity import identity
from purify_jax.evaluation.predictions import is_finite
from purify_jax.evaluation.records import Record, open_records
from purify_jax.evaluation.statistics import Interval, wilson
from purify_jax.keys import draw_each, fold_keys, image_keys, normal_like, stream_key
from purify_jax.pytrees import Pytree, static
from purify_jax.types import BOUNDS, Array, Keys, PredictFn

#: The prediction of an image on which the smoothed classifier abstains.
ABSTAIN = -1


class Certificate(NamedTuple):
    """prediction: a class, or ABSTAIN. radius: certified L2 radius, in units of a pixel's range."""

    prediction: int
    radius: float


def check_settings(sigma: float, n0: int, n: int, alpha: float) -> None:
    """Raises InputError unless σ > 0, 1 ≤ n₀ ≤ n and 0 < α < 1."""
    check_number("sigma", sigma, 0.0, open_low=True)
    check_count("n0", n0)
    check_count("n", n)
    if n0 > n:
        raise InputError(f"n0: got {n0} samples to select with, expected at most n = {n}")
    check_number("alpha", alpha)
    if not 0 < alpha < 1:
        raise InputError(f"alpha: got {alpha}, expected a number between 0 and 1, both excluded")


def lower_bound(successes: int, total: int, alpha: float) -> float:
    """One-sided Clopper–Pearson bound: p ≥ it with confidence 1 − α (exact binomial, by scipy)."""
    test = scipy.stats.binomtest(int(successes), int(total), alternative="greater")
    return float(test.proportion_ci(1 - alpha, "exact").low)


def certificate(
    selection: np.ndarray, estimation: np.ndarray, sigma: float, alpha: float
) -> Certificate:
    """Class counts ``[classes]`` of n₀ and of n samples → prediction and radius σΦ⁻¹(p_A).

    Cohen et al. 2019, CERTIFY in section 3.2.2: abstains where p_A, the lower bound on the share
    of the class that the first counts select, is at most ½.
    """
    top = int(np.argmax(selection))
    p_lower = lower_bound(estimation[top], int(estimation.sum()), alpha)
    if p_lower <= 0.5:
        return Certificate(ABSTAIN, 0.0)
    return Certificate(top, float(sigma * scipy.stats.norm.ppf(p_lower)))


class ClassCounts(Pytree):
    """(keys ``[batch]``, images, first ``[batch]``) → counts ``[batch, classes]`` of noisy predictions.

    Samples ``first`` to ``first + num_samples``, ``samples_at_once`` of them side by side: by
    default 100, fewer where memory asks. Sample i of an image depends on its key and i alone.

    predict: (keys, images) → log-probabilities.
    sigma: standard deviation of the noise ≥ 0.
    bounds: clips noisy images before ``predict``, as part of the base classifier; None for no bounds.
    """

    predict: PredictFn
    sigma: float
    num_samples: int = static()
    samples_at_once: int | None = static(default=None)
    bounds: tuple[float, float] | None = static(default=BOUNDS)

    #: Samples side by side where ``samples_at_once`` is None.
    most_at_once = 100

    def __post_init__(self) -> None:
        check_at_least("sigma", self.sigma, 0.0)
        check_count("num_samples", self.num_samples)
        if self.samples_at_once is not None:
            check_count("samples_at_once", self.samples_at_once)

    def __call__(self, keys: Keys, images: Array, first: Array) -> Array:
        batch = images.shape[0]
        at_once = min(self.samples_at_once or self.most_at_once, self.num_samples)
        repeated = jnp.repeat(images, at_once, axis=0)

        def chunk(total: Array, index: Array) -> tuple[Array, None]:
            numbers = index * at_once + jnp.arange(at_once)
            fold = lambda key, start: jax.vmap(jax.random.fold_in, (None, 0))(key, start + numbers)
            sample_keys = draw_each(fold, keys, first).reshape(-1)
            noisy = repeated + self.sigma * normal_like(fold_keys(sample_keys, 0), repeated)
            noisy = noisy if self.bounds is None else jnp.clip(noisy, *self.bounds)
            log_probs = self.predict(fold_keys(sample_keys, 1), noisy)
            votes = jax.nn.one_hot(log_probs.argmax(-1), log_probs.shape[-1], dtype=jnp.int32)
            # An answer that is not a number has no vote; :func:`certify` refuses such counts.
            votes = jnp.where(is_finite(log_probs)[:, None], votes, 0).reshape(batch, at_once, -1)
            counted = (numbers < self.num_samples)[None, :, None]
            return total + jnp.sum(jnp.where(counted, votes, 0), axis=1, dtype=jnp.int32), None

        answers = jax.eval_shape(self.predict, keys, images)
        none = jnp.zeros_like(answers, dtype=jnp.int32)
        chunks = -(-self.num_samples // at_once)
        total, _ = jax.lax.scan(chunk, none, jnp.arange(chunks))
        return total


def certify(
    key: Array,
    predict: PredictFn,
    dataset: Dataset,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    samples_at_once: int | None = None,
    label: str = "",
    execution: Execution = Execution(),
) -> list[Record]:
    """Certifies each image of a data set; one record per image: index, label, prediction, radius.

    Args:
      key: the run's key; an image's samples depend on it and on the image's index alone.
      predict: (keys, images) → log-probabilities: a ``Defense``, or ``undefended(logits_fn)``.
      dataset: images and labels.
      sigma: standard deviation of the smoothing noise, in units of a pixel's range.
      n0, n: samples that select the class, and fresh ones that bound its share.
      alpha: probability that an image's certificate is wrong.
      samples_at_once: samples of an image side by side. By default 100, and fewer where memory asks.
      label: the model's name, part of the name of its file: ``records_LABEL.jsonl``.
      execution: how it is executed; 10 images side by side by default. The records are written to its
        work directory as they come, and read back from there. A shard's units are batches.

    Raises InputError for α outside (0, 1), n₀ > n, σ ≤ 0, bad images, or a work directory whose records
    are of another model, other data or other settings.
    """
    check_settings(sigma, n0, n, alpha)
    execution.refuse("certification", "block")
    execution = completed(execution, 10)
    mesh, name = execution.mesh, f"records_{label}" if label else "records"
    batch_size = padded_size(execution.batch_size or 10, len(dataset), mesh)
    described = f"{len(dataset)} images in batches of {batch_size}"
    every = list(batches(range(len(dataset)), batch_size))
    mine = of_shard(every, execution.shard, described)
    header: Callable[[], dict[str, object]] = lambda: {
        "dataset": dataset.name,
        "split": dataset.split,
        "images": len(dataset),
        "sigma": sigma,
        "n0": n0,
        "n": n,
        "alpha": alpha,
        "batch_size": batch_size,
        "model": label,
        **identity(defense=predict, data=dataset),
    }
    file = open_records(execution, name, key, header)
    counter = lambda total: memory.divided(
        ClassCounts(predict, sigma, num_samples=total, samples_at_once=samples_at_once),
        mesh,
        split_large=execution.shard_parameters,
    )
    select, estimate = counter(n0), counter(n)
    records: list[Record] = []

    def compute(chosen: np.ndarray, padded: np.ndarray) -> list[Record]:
        images, labels = dataset.batch(padded)
        check_images(images, f"images of {dataset.name}")
        check_labels(labels, dataset.num_classes)
        keys = image_keys(stream_key(key, "certification"), padded)
        beginning = np.zeros(batch_size, np.int32)
        first = np.asarray(select(keys, images, beginning))
        check_outputs("defense", first.shape, dataset.num_classes)
        second = np.asarray(estimate(keys, images, beginning + n0))
        lost = n0 + n - (first.sum(-1) + second.sum(-1))
        if lost.any():
            raise InputError(
                f"defense: {int(lost.max())} of {n0 + n} noisy predictions of an image are not "
                "finite, expected numbers"
            )
        found = []
        for row, index in enumerate(chosen):
            one = certificate(first[row], second[row], sigma, alpha)
            found.append(
                {
                    "attack": "certify",
                    "index": int(index),
                    "label": int(labels[row]),
                    "prediction": one.prediction,
                    "radius": round(one.radius, 6),
                    "votes": int(second[row].max()),
                }
            )
        return found

    total = sum(len(chosen) for chosen, _ in mine)
    bar = progress.bar(
        total=total, desc=label or "certify", unit="image", disable=not execution.progress
    )
    with bar, contextlib.closing(file):
        for chosen, padded in mine:
            batch = file.batch("certify", chosen, functools.partial(compute, chosen, padded))
            records += batch
            bar.update(len(batch))
    return records


def certified_accuracy(records: Sequence[Record], radii: Sequence[float]) -> list[Interval]:
    """Share of images predicted right with a certified radius of at least r, for each r of ``radii``.

    At 0 it is the smoothed classifier's accuracy; it never rises with r. Wilson's 95% intervals.
    Raises InputError without records, or for a radius that is not a number.
    """
    if not records:
        raise InputError("records: got none, expected at least one")
    for radius in radii:
        check_at_least("radius", radius, 0.0)
    return [
        wilson(
            sum(r["prediction"] == r["label"] and r["radius"] >= radius for r in records),
            len(records),
        )
        for radius in radii
    ]
