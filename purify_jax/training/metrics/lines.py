"""The metrics of a run: ``metrics.jsonl``, and TensorBoard's events where they are asked for."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from purify_jax.training.metrics.tensorboard import Events


class Metrics:
    """Writes each dispatch's means; a context that closes its files."""

    def __init__(self, workdir: Path, step: int, tensorboard: bool):
        self._lines = _continued(workdir / "metrics.jsonl", step)
        self._events = Events(workdir / "tensorboard", step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers at the end of a dispatch."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        if self._events is not None:
            self._events.scalars(step, values)

    def picture(self, step: int, name: str, picture: np.ndarray | None) -> None:
        """An image ``[h, w, c]`` in [0, 1], for TensorBoard alone; None is left out."""
        if self._events is not None and picture is not None:
            self._events.picture(step, name, picture)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._lines.close()
        if self._events is not None:
            self._events.close()


def open_metrics(workdir: str | Path, step: int, tensorboard: bool = False) -> Metrics:
    """Opens a run's metrics to continue after ``step``: what a run that died wrote of later steps is gone."""
    return Metrics(Path(workdir), step, tensorboard)


def _continued(path: Path, step: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record: Mapping[str, Any] = json.loads(line)
        except json.JSONDecodeError:  # the line being written when the process died
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(kept))
    os.replace(beside, path)
    return open(path, "a")
