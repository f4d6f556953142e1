"""Accuracy under corruptions: computed or read from CIFAR-10-C files; mCE."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from purify_jax.checks import InputError, check_count
from purify_jax.corruptions import BENCHMARK, NAMES, SEVERITIES, check_name, corrupt
from purify_jax.data import Dataset
from purify_jax.devices import sharding
from purify_jax.devices.batches import map_images, of_shard
from purify_jax.evaluation.predictions import check_classes, predicted_class
from purify_jax.evaluation.records import Record, RecordFile
from purify_jax.evaluation.statistics import Interval, wilson
from purify_jax.keys import stream_key
from purify_jax.pytrees import Partial, as_pytree
from purify_jax.types import Array, Keys, PredictFn

#: name → (severity → accuracy).
Accuracies = Mapping[str, Mapping[int, Interval]]


def corrupted(dataset: Dataset, name: str, severity: int, seed: int = 0) -> Dataset:
    """The data set's images, corrupted; see :func:`purify_jax.corruptions.corrupt`."""
    images, labels = dataset.batch(np.arange(len(dataset)))
    changed = corrupt(images, name, severity, seed=seed)
    split = f"{dataset.split}, {name} {severity}"
    return dataclasses.replace(dataset, split=split, images=changed, labels=labels)


def load_folder(folder: str | Path, name: str, severity: int, num_classes: int = 10) -> Dataset:
    """One corruption and severity of a CIFAR-10-C folder (``<name>.npy``, ``labels.npy``).

    Each file holds severities 1 to 5 one after the other: 5·n images uint8 ``[h, w, c]``, and
    ``labels.npy`` 5·n labels, or n for all severities alike.

    Raises InputError if a file is missing, damaged or of another shape.
    """
    check_name(name)
    check_count("severity", severity, 1, 5)
    images, labels = (_load_npy(Path(folder) / f"{n}.npy") for n in (name, "labels"))
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) % 5:
        raise InputError(
            f"corruptions: {folder}/{name}.npy is {images.dtype} {images.shape}, expected uint8 "
            "[5·n, height, width, channels]"
        )
    count = len(images) // 5
    chosen = slice((severity - 1) * count, severity * count)
    if labels.shape == (5 * count,):
        labels = labels[chosen]
    if labels.shape != (count,):
        raise InputError(
            f"corruptions: labels.npy has shape {labels.shape}, expected ({count},) or ({5 * count},)"
        )
    return Dataset(
        f"{Path(folder).name}", f"{name} {severity}", images[chosen], labels.astype(np.int32),
        num_classes,
    )  # fmt: skip


def _load_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"corruptions: {path} is missing, expected a CIFAR-10-C folder")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"corruptions: {path} is not a readable .npy file: {error}") from error


def evaluate_corrupted(
    key: Array,
    models: Mapping[str, PredictFn],
    load: Callable[[str, int], Dataset],
    *,
    names: Sequence[str] = NAMES,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 128,
    paths: Mapping[str, str | Path] | None = None,
    header: Mapping[str, Any] | None = None,
    on_done: Callable[[str, int], None] | None = None,
    mesh: Mesh | None = None,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, dict[str, dict[int, Interval]]]:
    """Accuracy of each model under each corruption and severity.

    Args:
      key: the run's key; every image's prediction has its own.
      models: name → (keys, images) → log-probabilities.
      load: (corruption, severity) → data set.
      names, severities: which, in this order.
      batch_size: images side by side; the last batch is padded.
      paths: model → JSON-lines file of per-image records to write, and to continue from.
      header: settings that identify the run in those files.
      on_done: called with (corruption, severity).
      mesh: devices to split each batch over; one device by default.
      shard: (i, n): of all pairs of a corruption and a severity only i, i + n, i + 2n, ...

    Returns model → corruption → severity → accuracy of one draw, with 95% interval.
    """
    check_count("batch_size", batch_size)
    for given, field in ((names, "names"), (severities, "severities")):
        if not given or len(set(given)) < len(given):
            raise InputError(f"{field}: got {list(given)}, expected some, each of them once")
    for name in names:
        check_name(name)
    for severity in severities:
        check_count("severities", severity, 0, 5)
    for path in (paths or {}).values():
        sharding.check_one_writer(path, mesh)
    identify = {"batch_size": batch_size, "severities": list(severities), **(header or {})}
    every = [(name, severity) for name in names for severity in severities]
    mine = of_shard(every, shard, f"{len(every)} pairs of a corruption and a severity")
    if shard != (0, 1):
        identify["shard"] = list(shard)
    files = {m: RecordFile((paths or {}).get(m), {**identify, "model": m}) for m in models}
    found: dict[str, dict[str, dict[int, Interval]]] = {m: {n: {} for n in names} for m in models}
    try:
        for name, severity in mine:
            dataset = load(name, severity)
            label = f"{name} {severity}"
            for model, predict in models.items():
                compute = lambda predict=predict, label=label, dataset=dataset: _predictions(
                    key, predict, dataset, label, batch_size, mesh
                )
                batch = files[model].batch(label, range(len(dataset)), compute)
                right = sum(bool(r["one_draw"]) for r in batch)
                found[model][name][severity] = wilson(right, len(batch))
            if on_done is not None:
                on_done(name, severity)
    finally:
        for file in files.values():
            file.close()
    return found


def _predictions(
    key: Array,
    predict: PredictFn,
    dataset: Dataset,
    label: str,
    batch_size: int,
    mesh: Mesh | None,
) -> list[Record]:
    images, labels = dataset.batch(np.arange(len(dataset)))
    run = Partial(_predicted_class, as_pytree(predict))
    predicted = map_images(run, stream_key(key, label), images, batch_size=batch_size, mesh=mesh)
    check_classes(predicted, label)
    return [
        {
            "attack": label,
            "index": index,
            "label": int(truth),
            "prediction": int(guess),
            "one_draw": bool(guess == truth),
        }
        for index, (guess, truth) in enumerate(zip(predicted, labels, strict=True))
    ]


def _predicted_class(predict: PredictFn, keys: Keys, images: Array) -> Array:
    return predicted_class(predict(keys, images))


def mean_accuracy(accuracies: Accuracies, names: Sequence[str] = BENCHMARK) -> float:
    """The mean over corruptions (those of ``names`` that were evaluated) and severities."""
    chosen = [
        interval.value for n in names if n in accuracies for interval in accuracies[n].values()
    ]
    return float(np.mean(chosen)) if chosen else float("nan")


def mean_corruption_error(
    accuracies: Accuracies, baseline: Accuracies, names: Sequence[str] = BENCHMARK
) -> float:
    """mCE: mean over corruptions of Σ_s error / Σ_s baseline error (Hendrycks & Dietterich 2019).

    1 means: as many errors as the baseline, here usually the undefended classifier. A corruption
    on which the baseline never errs has ratio 1 if the model never errs either, else infinity.
    """
    ratios = []
    for name in names:
        if name in accuracies:
            errors, reference = (
                sum(1 - interval.value for interval in table[name].values())
                for table in (accuracies, baseline)
            )
            ratios.append(errors / reference if reference else (1.0 if not errors else np.inf))
    return float(np.mean(ratios)) if ratios else float("nan")
