"""The transfer matrix: images that were made to fool one defense, scored on every other.

A defense that other defenses' images fool more than its own exact gradient does hides its gradients. Its
accuracy is then the smallest of its column of the matrix.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError
from purify_jax.defense import Defense
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.identity import difference, identity
from purify_jax.evaluation.probes.red_flags import MUCH, RedFlag
from purify_jax.evaluation.statistics import Interval, paired_difference
from purify_jax.evaluation.worst_of import correct_draws, mean_survival
from purify_jax.types import Array


class Matrix(NamedTuple):
    """names; right: made on A → scored on B → right draws of each image; draws of each of them."""

    names: list[str]
    right: dict[str, dict[str, list[int]]]
    draws: dict[str, int]

    def share(self, made_on: str, scored_on: str) -> Interval:
        """Accuracy of one draw, averaged over all, with its 95% interval over images."""
        right = np.array(self.right[made_on][scored_on])
        return mean_survival(right, self.draws[scored_on], 1)

    def strongest(self, scored_on: str) -> tuple[str, Interval]:
        """(name, accuracy) of the images that fool a defense the most; its own among equals."""
        shares = {name: self.share(name, scored_on) for name in self.names}
        best = min(shares, key=lambda name: (shares[name].value, name != scored_on))
        return best, shares[best]


def measure(
    key: Array,
    defenses: Mapping[str, Defense],
    images: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    draws: int,
    execution: Execution = Execution(),
) -> Matrix:
    """Scores the images that were made on each defense on every defense.

    Args:
      key: the same draws score all images, so that they differ by the images alone.
      defenses: name → defense.
      images: name → adversarial images ``[images, h, w, c]`` that were made on it.
      labels: their classes ``[images]``.
      draws: fresh draws for each image; a deterministic defense has one.
      execution: how it is executed; ``transfer_NAME.json`` in its work directory keeps what was
        counted, and is read back.
    """
    right: dict[str, dict[str, list[int]]] = {name: {} for name in defenses}
    counted = {n: 1 if each.is_deterministic else draws for n, each in defenses.items()}
    for scored_on, defense in defenses.items():
        about = identity(defense=defense, labels=labels, key=key) | {"draws": counted[scored_on]}
        kept = _Counts(execution, scored_on, about)
        for made_on in defenses:
            made = identity(images=images[made_on])
            if kept.read(made_on, made) is None:
                found = correct_draws(
                    key, defense, images[made_on], labels, counted[scored_on], execution=execution
                )
                kept.write(made_on, made, found.sum(axis=1).tolist())
            right[made_on][scored_on] = kept.read(made_on, made) or []
    return Matrix(list(defenses), right, counted)


class _Counts:
    """``transfer_NAME.json``: the right draws of a defense on the images made on each."""

    def __init__(self, execution: Execution, name: str, about: Mapping[str, object]):
        workdir = execution.workdir
        self.path = None if workdir is None else Path(workdir) / f"transfer_{file_name(name)}.json"
        self.content: dict[str, Any] = {"made with": about, "right": {}}
        if self.path is not None and self.path.exists():
            self.content = json.loads(self.path.read_text())
            self._check(self.content.get("made with", {}), about)

    def read(self, made_on: str, made: Mapping[str, object]) -> list[int] | None:
        entry = self.content["right"].get(made_on)
        if entry is None:
            return None
        self._check(entry["made with"], made)
        return entry["counts"]

    def write(self, made_on: str, made: Mapping[str, object], counts: list[int]) -> None:
        self.content["right"][made_on] = {"made with": made, "counts": counts}
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.content) + "\n")

    def _check(self, before: Mapping[str, object], now: Mapping[str, object]) -> None:
        if (differs := difference(before, now)) is not None:
            raise InputError(
                f"transfer: {self.path} belongs to another evaluation ({differs}), expected the same one "
                "or another work directory"
            )


def file_name(name: str) -> str:
    """A defense's name as part of a file's."""
    return name.replace(" ", "_")


def red_flags(matrix: Matrix) -> list[RedFlag]:
    """One for each defense that another's images fool by more than ``red_flags.MUCH``, paired by image."""
    flags = []
    for name in matrix.names:
        best, share = matrix.strongest(name)
        # A single image has no spread.
        if best == name or share.images < 2:
            continue
        shares = lambda made_on, name=name: (
            np.array(matrix.right[made_on][name]) / matrix.draws[name]
        )
        difference = paired_difference(shares(name), shares(best))
        if difference.value > MUCH and difference.low > 0:
            flags.append(
                RedFlag(
                    f"{name}: images made for {best} beat its own exact gradient",
                    f"they leave {share}, its own attack {matrix.share(name, name)}",
                    "its gradient is masked or too noisy: more draws, another loss, and quote the lowest",
                )
            )
    return flags


def table(matrix: Matrix) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): scored on a row, made on a column, and whose images are strongest."""
    rows = []
    for name in matrix.names:
        best, share = matrix.strongest(name)
        cells = [f"{matrix.share(made_on, name).value:.3f}" for made_on in matrix.names]
        rows.append([name, *cells, f"{best}: {share}"])
    return ["scored on \\ made on", *matrix.names, "strongest"], rows


def content(matrix: Matrix, flags: Sequence[RedFlag]) -> dict[str, Any]:
    """For results.json."""
    share = {a: {b: matrix.share(a, b) for b in matrix.names} for a in matrix.names}
    strongest = {name: matrix.strongest(name) for name in matrix.names}
    counts = {name: [best for best, _ in strongest.values()].count(name) for name in matrix.names}
    return {
        "made_on_scored_on": share,
        "strongest": strongest,
        "times_strongest": counts,
        "red_flags": [flag._asdict() for flag in flags],
    }
