"""Attacks made on one purifier, scored on every other: who is fooled by whose images.

A purifier whose own exact gradient is weaker than images made for another one hides its gradients; its
figure is then the smallest of its column, not its own attack's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import purify_jax as pj
from purify_jax.atomic import write_atomically

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from purify_jax.evaluation.red_flags import RedFlag
    from purify_jax.evaluation.statistics import Interval


def file_name(name: str) -> str:
    """A purifier's name as part of a file's."""
    return name.replace(" ", "_")


def path(workdir: str | Path, name: str) -> Path:
    """Where a purifier's attacked images lie."""
    return Path(workdir) / "adversarial" / f"{file_name(name)}.npz"


class Kept:
    """The images of one attack on one purifier, written whole: ``adversarial/NAME.npz``."""

    def __init__(self, workdir: Path, name: str, attack: str, count: int):
        self.path = path(workdir, name)
        self.attack, self.images, self.count = attack, dict[int, np.ndarray](), count

    def __call__(self, attack: str, indices: np.ndarray, images: np.ndarray) -> None:
        """For ``evaluate(keep_images=...)``."""
        if attack == self.attack:
            self.images |= dict(zip(indices.tolist(), images, strict=True))

    def write(self) -> None:
        """Writes all images in order."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        with open(beside, "wb") as file:
            np.savez(file, images=np.stack([self.images[i] for i in range(self.count)]))
        beside.rename(self.path)


class Matrix(NamedTuple):
    """names; right: made on A → scored on B → right draws of each image; draws of each of them."""

    names: list[str]
    right: dict[str, dict[str, list[int]]]
    draws: dict[str, int]

    def share(self, made_on: str, scored_on: str) -> Interval:
        """Accuracy of one draw, averaged over all, with its 95% interval over images."""
        right = np.array(self.right[made_on][scored_on])
        return pj.evaluation.worst_of.mean_survival(right, self.draws[scored_on], 1)

    def strongest(self, scored_on: str) -> tuple[str, Interval]:
        """(name, accuracy) of whose images leave a purifier the least; its own among equals."""
        shares = {name: self.share(name, scored_on) for name in self.names}
        own = shares[scored_on].value
        best = min(shares, key=lambda name: (shares[name].value, name != scored_on))
        return (scored_on, shares[scored_on]) if shares[best].value == own else (best, shares[best])


def measure(
    workdir: Path,
    defenses: Mapping[str, Callable[[], pj.defense.Defense]],
    dataset: pj.data.Dataset,
    *,
    draws: int,
    seed: int,
    batch_size: int,
    mesh: Mesh | None = None,
) -> Matrix:
    """Scores every purifier's kept images on every purifier; continues from ``transfer_NAME.json``."""
    import jax

    images = {name: _kept(workdir, name) for name in defenses}
    right: dict[str, dict[str, list[int]]] = {name: {} for name in defenses}
    counted: dict[str, int] = {}
    for scored_on, make in defenses.items():
        counts = workdir / f"transfer_{file_name(scored_on)}.json"
        content = json.loads(counts.read_text()) if counts.exists() else {}
        defense = make()
        counted[scored_on] = 1 if defense.is_deterministic else draws
        for made_on in defenses:
            if made_on not in content:
                # The same draws for every column entry, so that they compare by images alone.
                found = pj.evaluation.worst_of.correct_draws(
                    jax.random.key(seed),
                    defense,
                    images[made_on],
                    dataset.labels[: len(dataset)],
                    counted[scored_on],
                    batch_size=batch_size,
                    mesh=mesh,
                )
                content[made_on] = found.sum(axis=1).tolist()
                write_atomically(counts, json.dumps(content) + "\n")
            right[made_on][scored_on] = content[made_on]
    return Matrix(list(defenses), right, counted)


def _kept(workdir: Path, name: str) -> np.ndarray:
    with np.load(path(workdir, name)) as archive:
        return np.asarray(archive["images"])


def kept(workdir: Path, names: Sequence[str]) -> list[str]:
    """Those of the names whose attacked images are there: results of 0.2 did not keep them."""
    return [n for n in names if path(workdir, n).is_file()]


def red_flags(matrix: Matrix) -> list[RedFlag]:
    """Of each purifier that another's images fool by :data:`red_flags.MUCH` more than its own, paired."""
    flags = []
    for name in matrix.names:
        best, share = matrix.strongest(name)
        # One image says nothing of how much images differ.
        if best == name or share.images < 2:
            continue
        shares = lambda made_on, name=name: (
            np.array(matrix.right[made_on][name]) / matrix.draws[name]
        )
        difference = pj.evaluation.paired_difference(shares(name), shares(best))
        if difference.value > pj.evaluation.red_flags.MUCH and difference.low > 0:
            flags.append(
                pj.evaluation.red_flags.RedFlag(
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
