"""The adversarial images of an evaluation: kept in memory, or as files that can be scored again."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purify_jax.atomic import write_atomically
from purify_jax.attacks import saved
from purify_jax.checks import InputError
from purify_jax.data import Dataset
from purify_jax.data.array_files import load_npz
from purify_jax.evaluation.protocol import rank
from purify_jax.evaluation.records import Record, attack_names, of_attack


class AdversarialImages:
    """Keeps adversarial images in memory, for ``evaluate(..., saved=AdversarialImages())``."""

    def __init__(self) -> None:
        self.images: dict[str, dict[int, np.ndarray]] = {}

    def add(self, attack: str, indices: np.ndarray, images: np.ndarray) -> None:
        """Keeps a batch of an attack's images."""
        place = self.images.setdefault(attack, {})
        place |= dict(zip(indices.tolist(), images, strict=True))

    def of(self, attack: str) -> np.ndarray:
        """The images of an attack in the order of their indices, ``[images, h, w, c]``."""
        found = self.images[attack]
        return np.stack([found[index] for index in sorted(found)])


class AdversarialFiles(AdversarialImages):
    """Keeps adversarial images in a folder, batch by batch, so that a killed evaluation loses none.

    :meth:`finish` writes one file per attack, and ``strongest.npz`` with each image's strongest candidate
    by the attacker's own draws.
    """

    def __init__(self, folder: str | Path, dataset: Dataset, norm: str, epsilon: float):
        super().__init__()
        self.folder, self.dataset, self.norm, self.epsilon = Path(folder), dataset, norm, epsilon

    def add(self, attack: str, indices: np.ndarray, images: np.ndarray) -> None:
        """Writes a batch of an attack's images, before its records are written."""
        if attack != "clean":
            place = self._parts(attack) / f"{int(indices[0]):08d}.npz"
            write_atomically(place, npz(indices=indices, images=images))

    def finish(self, records: Sequence[Record]) -> dict[str, Path]:
        """Writes ``ATTACK.npz`` of every attack, and ``strongest.npz``; returns their paths by name.

        Raises InputError if the evaluation was begun without saving.
        """
        written = {}
        # The strongest images so far, which attack made them, and how they rank.
        best = np.array(self.dataset.batch(np.arange(len(self.dataset)))[0], np.float32)
        by = np.full(len(best), "clean", dtype="<U32")
        ranks = {r["index"]: rank(r) for r in of_attack(records, "clean")}
        for attack in attack_names(records)[1:]:
            run = [r for r in of_attack(records, attack) if not r.get("skipped")]
            kept = self._kept(attack)
            if missing := [r["index"] for r in run if r["index"] not in kept]:
                raise InputError(
                    f"save_adversarial: {len(missing)} images of {attack} were attacked without it, "
                    "expected a new work directory"
                )
            for record in run:
                index = record["index"]
                if rank(record) < ranks[index]:
                    best[index], by[index], ranks[index] = kept[index], attack, rank(record)
            if run:
                indices = np.array([r["index"] for r in run])
                images = np.stack([kept[i] for i in indices])
                written[attack] = self._write(attack, indices, images)
            for part in self._parts(attack).glob("*"):
                part.unlink()
            if self._parts(attack).is_dir():
                self._parts(attack).rmdir()
        if written:
            everything = np.arange(len(best))
            written["strongest"] = self._write("strongest", everything, best, attack=by)
        return written

    def _write(
        self, name: str, indices: np.ndarray, images: np.ndarray, **more: np.ndarray
    ) -> Path:
        clean, labels = self.dataset.batch(indices)
        arrays = (images, labels.astype(np.int32), clean)
        found = saved.SavedImages(*arrays, epsilon=self.epsilon, norm=self.norm)
        saved.save(self._path(name), found, indices=indices, **more)
        return self._path(name)

    def _kept(self, attack: str) -> dict[int, np.ndarray]:
        # What an earlier, finished run wrote, and what has come since.
        found: dict[int, np.ndarray] = {}
        sources = [(self._path(attack), "adversarial")]
        sources += [(part, "images") for part in sorted(self._parts(attack).glob("*.npz"))]
        for path, name in sources:
            if path.is_file():
                archive = _arrays(path, "indices", name)
                found |= dict(zip(archive["indices"].tolist(), archive[name], strict=True))
        return found

    def _path(self, attack: str) -> Path:
        return self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', attack).strip('_')}.npz"

    def _parts(self, attack: str) -> Path:
        return self._path(attack).with_suffix(".parts")


def read_npz(path: Path) -> np.ndarray:
    """The array "images" of an .npz file; InputError if it is damaged."""
    return _arrays(path, "images")["images"]


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    try:
        found = load_npz(path, "workdir", names)[0]
        return {name: found[name] for name in names}
    except (InputError, LookupError) as error:
        raise InputError(
            f"workdir: {path} is damaged ({error}), expected a file as written; delete it to compute "
            "the images again"
        ) from error


def npz(**arrays: Any) -> bytes:
    """The content of an .npz file of these arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
