"""What --save_adversarial leaves behind: a file per attack for ``python -m experiments.score``."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import purify_jax as pj
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError

if TYPE_CHECKING:
    from purify_jax.evaluation.records import Record


class AdversarialFiles:
    """Keeps adversarial images batch by batch, so that a killed evaluation loses none.

    Called with (attack, indices, images), as ``evaluate(keep_images=...)`` does. :meth:`finish` makes
    one file per attack of them and one of the worst case.
    """

    def __init__(self, folder: Path, dataset: pj.data.Dataset, norm: str, epsilon: float):
        self.folder, self.dataset, self.norm, self.epsilon = folder, dataset, norm, epsilon

    def __call__(self, attack: str, indices: np.ndarray, images: np.ndarray) -> None:
        if attack == "clean":
            return
        place = self._parts(attack)
        # Whole or not at all, and before the batch's records are written.
        buffer = io.BytesIO()
        np.savez(buffer, indices=indices, images=images)
        write_atomically(place / f"{int(indices[0]):08d}.npz", buffer.getvalue())

    def finish(self, records: Sequence[Record]) -> list[Path]:
        """Writes ``ATTACK.npz`` of every attack, and ``worst_case.npz``; returns their paths.

        The worst case of an image is the attack (or none) that the attacker's own draws prefer: the
        fewest right ones and, among equals, the highest loss. Raises InputError if the evaluation
        was begun without saving.
        """
        from purify_jax.evaluation.protocol import rank
        from purify_jax.evaluation.records import attack_names, of_attack

        written = []
        # The images of the worst case so far, what they are called, and how they rank.
        worst = np.array(self.dataset.batch(np.arange(len(self.dataset)))[0], np.float32)
        by = np.full(len(worst), "clean", dtype="<U32")
        ranks = {r["index"]: rank(r) for r in of_attack(records, "clean")}
        for attack in attack_names(records)[1:]:
            run = [r for r in of_attack(records, attack) if not r.get("skipped")]
            kept = self._kept(attack)
            missing = [r["index"] for r in run if r["index"] not in kept]
            if missing:
                raise InputError(
                    f"save_adversarial: {len(missing)} images of {attack} were attacked without it, "
                    "expected a new --workdir"
                )
            for record in run:
                index = record["index"]
                if rank(record) < ranks[index]:
                    worst[index], by[index], ranks[index] = kept[index], attack, rank(record)
            if run:
                indices = np.array([r["index"] for r in run])
                images = np.stack([kept[i] for i in indices])
                written.append(self._write(attack, indices, images))
            for part in self._parts(attack).glob("*"):
                part.unlink()
            if self._parts(attack).is_dir():
                self._parts(attack).rmdir()
        if written:
            everything = np.arange(len(worst))
            written.append(self._write("worst_case", everything, worst, attack=by))
        return written

    def _write(self, name: str, indices: np.ndarray, images: np.ndarray, **more) -> Path:
        clean, labels = self.dataset.batch(indices)
        path = self._path(name)
        saved = pj.attacks.saved
        found = saved.SavedImages(
            np.asarray(images, np.float32),
            np.asarray(labels, np.int32),
            np.asarray(clean, np.float32),
            self.epsilon,
            self.norm,
        )
        saved.save(path, found, indices=indices, **more)
        return path

    def _kept(self, attack: str) -> dict[int, np.ndarray]:
        # What an earlier, finished run wrote, and what has come since.
        found: dict[int, np.ndarray] = {}
        sources = [(self._path(attack), "adversarial")]
        sources += [(part, "images") for part in sorted(self._parts(attack).glob("*.npz"))]
        for path, name in sources:
            if path.is_file():
                with np.load(path) as archive:
                    found |= dict(zip(archive["indices"].tolist(), archive[name], strict=True))
        return found

    def _path(self, attack: str) -> Path:
        return self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', attack).strip('_')}.npz"

    def _parts(self, attack: str) -> Path:
        return self._path(attack).with_suffix(".parts")
