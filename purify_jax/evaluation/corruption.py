"""Accuracy under corruptions: computed or read from CIFAR-10-C files; mCE."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from purify_jax.checks import InputError, check_count, check_images, check_labels
from purify_jax.corruptions import BENCHMARK, NAMES, SEVERITIES, check_name, corrupt
from purify_jax.data import Dataset
from purify_jax.data.array_files import as_labels, load_npy
from purify_jax.devices import progress
from purify_jax.devices.batches import completed, map_images, of_shard
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.identity import identity
from purify_jax.evaluation.predictions import Predicted, check_classes
from purify_jax.evaluation.records import Record, open_records
from purify_jax.evaluation.statistics import Interval, wilson
from purify_jax.keys import stream_key
from purify_jax.types import Array, PredictFn

#: name → (severity → accuracy).
Accuracies = Mapping[str, Mapping[int, Interval]]


def corrupted_dataset(dataset: Dataset, name: str, severity: int, seed: int = 0) -> Dataset:
    """The data set's images, corrupted; see :func:`purify_jax.corruptions.corrupt`."""
    images, labels = dataset.batch(np.arange(len(dataset)))
    changed = corrupt(images, name, severity, seed=seed)
    split = f"{dataset.split}, {name} {severity}"
    return dataclasses.replace(dataset, split=split, images=changed, labels=labels)


def load_folder(folder: str | Path, name: str, severity: int, num_classes: int = 10) -> Dataset:
    """One corruption and severity of a CIFAR-10-C folder (``<name>.npy``, ``labels.npy``).

    Each file holds severities 1 to 5 one after the other: 5·n images uint8 ``[h, w, c]``, and
    ``labels.npy`` 5·n labels, or n for all severities alike; images may be floats in [0, 1], labels one-hot.

    Raises InputError if a file is missing, damaged or of another shape.
    """
    check_name(name)
    check_count("severity", severity, 1, 5)
    images, labels = (_load_npy(Path(folder) / f"{n}.npy") for n in (name, "labels"))
    rows, kind = len(images) if images.ndim == 4 else 0, images.dtype
    if not rows or rows % 5 or (kind != np.uint8 and not np.issubdtype(kind, np.floating)):
        raise InputError(
            f"corruptions: {folder}/{name}.npy is {kind} {images.shape}, expected uint8, or floats in [0, 1], "
            "[5·n, height, width, channels]"
        )
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise InputError(
            f"corruptions: {folder}/{name}.npy is {images.shape}, expected channels last: "
            "np.moveaxis(images, 1, -1)"
        )
    labels = as_labels(labels, "corruptions: labels.npy")
    check_labels(labels, num_classes, "corruptions: labels.npy")
    count = len(images) // 5
    chosen = slice((severity - 1) * count, severity * count)
    if labels.shape == (5 * count,):
        labels = labels[chosen]
    if labels.shape != (count,):
        raise InputError(
            f"corruptions: labels.npy has shape {labels.shape}, expected ({count},) or ({5 * count},)"
        )
    images = images[chosen]
    if kind != np.uint8:
        check_images(images, f"corruptions: {folder}/{name}.npy")
    return Dataset(f"{Path(folder).name}", f"{name} {severity}", images, labels, num_classes)


def _load_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"corruptions: {path} is missing, expected a CIFAR-10-C folder")
    return load_npy(path, "corruptions")


def evaluate_corrupted(
    key: Array,
    models: Mapping[str, PredictFn],
    load: Callable[[str, int], Dataset],
    *,
    names: Sequence[str] = NAMES,
    severities: Sequence[int] = SEVERITIES,
    execution: Execution = Execution(),
) -> dict[str, dict[str, dict[int, Interval]]]:
    """Accuracy of each model under each corruption and severity.

    Args:
      key: the run's key; every image's prediction has its own.
      models: name → (keys, images) → log-probabilities.
      load: (corruption, severity) → data set.
      names, severities: which, in this order.
      execution: how it is executed; 128 images side by side by default. Per-image records are written to
        ``records_MODEL.jsonl`` in its work directory, and read back from there. A shard's units are
        pairs of a corruption and a severity.

    Returns model → corruption → severity → accuracy of one draw, with 95% interval. Raises InputError for
    a work directory whose records are of another model, other images or other settings.
    """
    for given, field in ((names, "names"), (severities, "severities")):
        if not given or len(set(given)) < len(given):
            raise InputError(f"{field}: got {list(given)}, expected some, each of them once")
    for name in names:
        check_name(name)
    for severity in severities:
        check_count("severities", severity, 0, 5)
    execution.refuse("corruptions", "block")
    execution = completed(execution, 128)
    every = [(name, severity) for name in names for severity in severities]
    described = f"{len(every)} pairs of a corruption and a severity"
    mine = of_shard(every, execution.shard, described)
    found: dict[str, dict[str, dict[int, Interval]]] = {m: {n: {} for n in names} for m in models}
    inside = dataclasses.replace(execution, progress=False)
    bar = progress.bar(
        total=len(mine), desc="corruptions", unit="set", disable=not execution.progress
    )
    with bar, contextlib.ExitStack() as stack:
        files = {}
        for model, predict in models.items():
            header = lambda model=model, predict=predict: {
                "batch_size": execution.batch_size,
                "severities": list(severities),
                "model": model,
                **identity(defense=predict),
            }
            file = open_records(execution, f"records_{model}", key, header)
            files[model] = stack.enter_context(contextlib.closing(file))
        for name, severity in mine:
            dataset = load(name, severity)
            label = f"{name} {severity}"
            data = identity(data=dataset)["data"] if execution.workdir is not None else None
            for model, predict in models.items():
                compute = lambda predict=predict, label=label, dataset=dataset, data=data: (
                    _predictions(key, predict, dataset, label, data, inside)
                )
                batch = files[model].batch(label, range(len(dataset)), compute, data)
                right = sum(bool(r["one_draw"]) for r in batch)
                found[model][name][severity] = wilson(right, len(batch))
            bar.update(1)
    return found


def _predictions(
    key: Array,
    predict: PredictFn,
    dataset: Dataset,
    label: str,
    data: str | None,
    execution: Execution,
) -> list[Record]:
    images, labels = dataset.batch(np.arange(len(dataset)))
    run = Predicted(predict, num_classes=dataset.num_classes)
    predicted = map_images(run, stream_key(key, label), images, execution=execution)
    check_classes(predicted, label)
    about = {} if data is None else {"data": data}
    return [
        {
            "attack": label,
            "index": index,
            "label": int(truth),
            "prediction": int(guess),
            "one_draw": bool(guess == truth),
            **about,
        }
        for index, (guess, truth) in enumerate(zip(predicted, labels, strict=True))
    ]


def right_answers(records: Sequence[Record], names: Sequence[str] = BENCHMARK) -> np.ndarray:
    """Which answers of :func:`evaluate_corrupted` were right, [images, corruptions × severities] bool.

    :func:`purify_jax.evaluation.worst_of.average` makes of them the mean accuracy with its 95% interval, that of
    a sample of images: an image's answers depend on one another. names: those that were evaluated count.
    Raises InputError for records that do not have the same images under every corruption.
    """
    chosen = [record for record in records if record["attack"].rpartition(" ")[0] in names]
    images, cells = ({record[field]: None for record in chosen} for field in ("index", "attack"))
    right = {(record["index"], record["attack"]): bool(record["one_draw"]) for record in chosen}
    if not chosen or len(right) < len(images) * len(cells):
        raise InputError(
            f"records: got {len(right)} answers of {len(images)} images under {len(cells)} corruptions, expected one "
            "each"
        )
    return np.array([[right[image, cell] for cell in cells] for image in images])


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
